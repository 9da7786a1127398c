"""The cell as Flax uses it: its transformations, and the known traps of the RNN contract."""

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

SIZES: dict[str, Any] = {"mem_slots": 2, "head_size": 2, "num_heads": 2, "attention_mlp_layers": 1}
B, T, I = 3, 4, 5  # noqa: E741

# Named: "auto" takes the plain scan for so few rows.
HOISTED = partial(RNN, implementation="hoisted")
both_layers = pytest.mark.parametrize("layer", mostly_slow([nn.RNN, HOISTED], keep=[HOISTED]))


def sequence(shape=(B, T, I), seed=0):
    return normal(np.random.default_rng(seed), shape)


def make_cell(**options) -> Any:
    return RelationalMemoryCell(**{**SIZES, **options})


def cell_variables(cell, x_t):
    return random_variables(cell, cell.initialize_carry(jax.random.key(0), x_t.shape), x_t)


def loop(cell, variables, x, carry=None):
    """The outputs and the last carry of a Python loop over axis 1."""
    step = jax.jit(cell.apply)
    carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape) if carry is None else carry
    outputs = []
    for t in range(x.shape[1]):
        carry, y = step(variables, carry, x[:, t])
        outputs.append(y)
    return carry, jnp.stack(outputs, axis=1)


# Transformations


def test_jit_vmap_and_grad_of_a_step():
    cell, x = make_cell(), sequence()[:, 0]
    variables, carry = cell_variables(cell, x), sequence((B, 2, 4))
    expected = jax.jit(cell.apply)(variables, carry, x)
    mapped = jax.jit(jax.vmap(cell.apply, in_axes=(None, 0, 0)))(variables, carry, x)
    for a, b in zip(mapped, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

    def loss(variables, carry):
        return jnp.sum(jnp.sin(cell.apply(variables, carry, x)[1]))

    # Directional derivative against central differences, in a fixed random direction.
    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    _, gradient = value_and_grad(variables, carry)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda a: normal(rng, a.shape), (variables, carry))
    slope = optax.tree.vdot(gradient, direction)
    step = 2e-3

    def shifted(sign):
        return jax.tree.map(
            lambda a, d: a + jnp.float32(sign * step) * d, (variables, carry), direction
        )

    ahead, behind = (value_and_grad(*shifted(sign))[0] for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=2e-2)


@pytest.mark.slow
def test_remat_of_the_cell():
    x = sequence()
    cell = make_cell()
    rematted = nn.remat(RelationalMemoryCell)(**SIZES)
    variables = cell_variables(cell, x[:, 0])

    def loss(cell) -> Callable:
        rnn: Any = nn.RNN(cell)
        return lambda v: jnp.sum(jnp.sin(rnn.apply({"params": {"cell": v["params"]}}, x)))

    expected = jax.jit(jax.value_and_grad(loss(cell)))(variables)
    actual = jax.jit(jax.value_and_grad(loss(rematted)))(variables)
    chex.assert_trees_all_close(actual, expected, atol=1e-5)


@both_layers
def test_bidirectional(layer):
    x = sequence()
    both = nn.Bidirectional(layer(make_cell()), layer(make_cell()))
    variables = random_variables(both, x)
    forward, backward = (
        {"params": variables["params"][name]["cell"]} for name in ("forward_rnn", "backward_rnn")
    )
    _, ahead = loop(make_cell(), forward, x)
    _, behind = loop(make_cell(), backward, x[:, ::-1])
    expected = jnp.concatenate([ahead, behind[:, ::-1]], axis=-1)
    np.testing.assert_allclose(jax.jit(both.apply)(variables, x), expected, atol=1e-5)


def test_scan_over_time_and_vmap_over_members():
    x = sequence()
    scanned = nn.scan(
        RelationalMemoryCell,
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )(**SIZES)
    carry = make_cell().initialize_carry(jax.random.key(0), (B, I))
    variables = random_variables(scanned, carry, x)
    expected = loop(make_cell(), variables, x)
    actual = jax.jit(scanned.apply)(variables, carry, x)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    members: Any = nn.vmap(
        RelationalMemoryCell, variable_axes={"params": 0}, split_rngs={"params": True}
    )(**SIZES)
    variables = random_variables(members, carry, x[:, 0])
    assert variables["params"]["input_projection"]["kernel"].shape == (B, I, 4)
    _, actual = jax.jit(members.apply)(variables, carry, x[:, 0])
    step = jax.jit(make_cell().apply)
    for member in range(B):
        own = jax.tree.map(lambda leaf: leaf[member], variables)  # noqa: B023
        _, expected = step(own, carry[member], x[member, 0])
        np.testing.assert_allclose(actual[member], expected, atol=1e-5)


# The traps, in the order in which people fall into them


class NaiveCell(nn.RNNCellBase):
    """A cell that lets the compute dtype leak into its carry."""

    dtype: Any = jnp.bfloat16

    @nn.compact
    def __call__(self, carry, x):
        carry = nn.Dense(4, dtype=self.dtype)(x.astype(self.dtype)) + carry.astype(self.dtype)
        return carry, carry

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], 4))

    num_feature_axes = 1


@pytest.mark.parametrize("layer", [nn.RNN, RNN])
def test_trap_1_a_carry_that_changes_its_dtype(layer):
    with pytest.raises(TypeError, match="equal types"):
        layer(NaiveCell()).init(jax.random.key(0), sequence())


@both_layers
def test_trap_1_carry_dtype_under_bfloat16(layer):
    x = sequence()
    exact, low = layer(make_cell()), layer(make_cell(dtype=jnp.bfloat16))
    variables = random_variables(exact, x)
    expected = jax.jit(exact.apply)(variables, x)
    run = jax.jit(lambda v, x: low.apply(v, x, return_carry=True))
    # Inputs in float32, then in bfloat16, as a model in mixed precision hands them over.
    for inputs in (x, x.astype(jnp.bfloat16)):
        carry, y = run(variables, inputs)
        assert (carry.dtype, y.dtype) == (jnp.float32, jnp.bfloat16)
        assert 0 < np.abs(y.astype(jnp.float32) - expected).max() < 2e-2


@both_layers
def test_trap_2_matrix_inputs_have_two_feature_axes(layer):
    x = sequence((B, T, 2, I))
    cell = make_cell(matrix_inputs=True)
    assert cell.num_feature_axes == 2
    variables = cell_variables(cell, x[:, 0])
    carry, expected = loop(cell, variables, x)
    rnn = layer(cell, return_carry=True)
    last, y = jax.jit(rnn.apply)({"params": {"cell": variables["params"]}}, x)
    assert y.shape == (B, T, cell.output_size)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(last, carry, atol=1e-5)


@pytest.mark.parametrize("name", mostly_slow(["RMC", "LSTM"], keep=["RMC"]))
def test_trap_3_lengths_and_carry_with_two_batch_axes(name):
    cell = make_cell() if name == "RMC" else nn.LSTMCell(4)
    x, lengths = sequence((2, B, T, I)), jnp.asarray([[1, 4, 4], [4, 1, 0]])
    rnn = RNN(cell, return_carry=True)
    variables = random_variables(rnn, x)
    carry, _ = jax.jit(rnn.apply)(variables, x, seq_lengths=lengths)
    one = jax.jit(rnn.apply)
    for i, j in np.ndindex(2, B):
        length = int(lengths[i, j])
        expected = cell.initialize_carry(jax.random.key(0), (I,))
        if length:
            expected, _ = one(variables, x[i, j, :length])
        found = jax.tree.map(lambda a, i=i, j=j: a[i, j], carry)
        chex.assert_trees_all_close(found, expected, atol=1e-5)


@pytest.mark.parametrize("time_major", mostly_slow([False, True], keep=[True]))
def test_trap_4_capture_under_rnn(time_major):
    x = sequence((T, B, I) if time_major else (B, T, I))
    axis = 0 if time_major else 1
    cell = make_cell(num_blocks=2)
    silent = nn.RNN(cell, time_major=time_major)
    told = nn.RNN(cell, time_major=time_major, variable_axes={"intermediates": axis})
    ours = RNN(cell, time_major=time_major)
    variables = random_variables(ours, x)

    def capture(rnn):
        apply = jax.jit(lambda v, x: rnn.apply(v, x, mutable=["intermediates"]))
        return apply(variables, x)

    y, lost = capture(silent)
    assert not jax.tree.leaves(lost)
    _, expected = capture(told)
    our_y, captured = capture(ours)
    np.testing.assert_allclose(our_y, y, atol=1e-5)
    captured = captured["intermediates"]["cell"]
    lead = (T, B) if time_major else (B, T)
    assert jax.tree.map(jnp.shape, dict(captured)) == {
        "attention_weights": ((*lead, 2, 2, 2, 3),),
        "input_gate": ((*lead, 2, 4),),
        "forget_gate": ((*lead, 2, 4),),
    }
    for name, (value,) in expected["intermediates"]["cell"].items():
        np.testing.assert_allclose(captured[name][0], value, atol=1e-6)
    # And step by step, from the cell itself.
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    step = jax.jit(lambda c, x: cell.apply(cell_params, c, x, mutable=["intermediates"]))
    cell_params = {"params": variables["params"]["cell"]}
    for t in range(T):
        (carry, _), one = step(carry, jnp.take(x, t, axis=axis))
        for name, (value,) in one["intermediates"].items():
            np.testing.assert_allclose(jnp.take(captured[name][0], t, axis=axis), value, atol=1e-5)


@pytest.mark.parametrize("implementation", ["scan", "hoisted"])
def test_trap_4_nothing_is_stacked_unless_asked(implementation):
    x, rnn = sequence(), RNN(make_cell(num_blocks=2), implementation=implementation)
    variables = random_variables(rnn, x)
    text = str(jax.make_jaxpr(rnn.apply)(variables, x))
    (result,) = jax.tree.leaves(jax.eval_shape(rnn.apply, variables, x))
    assert result.shape == (B, T, 8)
    # Attention weights of all steps: [B, T, blocks, H, S, S+1], or with T leading in the loop.
    for stacked in ("3,4,2,2,2,3", "4,3,2,2,2,3", "3,4,2,2,3", "4,3,2,2,3"):
        assert f"[{stacked}]" not in text


def test_trap_5_inputs_are_one_array():
    x = sequence()
    resets = jnp.zeros((B, T), bool)
    with pytest.raises(TypeError, match="inputs must be one array, got tuple"):
        RNN(make_cell()).init(jax.random.key(0), (x, resets))  # type: ignore[arg-type]


class DropoutCell(nn.RNNCellBase):
    """Shows which of its units are dropped."""

    @nn.compact
    def __call__(self, carry, x):
        return carry, nn.Dropout(0.5, deterministic=False)(jnp.ones_like(x))

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(input_shape)

    num_feature_axes = 1


@pytest.mark.parametrize("layer", [nn.RNN, RNN])
@pytest.mark.parametrize("per_step", [True, False])
def test_trap_6_dropout_masks(layer, per_step):
    x = sequence((2, T, 64))
    rnn = layer(DropoutCell(), split_rngs={"params": False, "dropout": per_step})
    y = jax.jit(rnn.apply)({}, x, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, 2.0}
    same = [np.array_equal(y[:, 0], y[:, t]) for t in range(1, T)]
    assert same == [not per_step] * (T - 1)


class ProjectedGRU(nn.GRUCell):
    @nn.compact
    def __call__(self, carry, inputs):
        carry, y = super().__call__(carry, inputs)
        return carry, nn.Dense(7, name="projection")(y)


@pytest.mark.parametrize("cell", [ProjectedGRU, nn.remat(ProjectedGRU), nn.remat(nn.GRUCell)])
def test_output_before_the_first_valid_step(cell):
    """The carry for Flax's own step, else zeros."""
    rnn, x, carry = RNN(cell(4)), sequence(), jnp.full((B, 4), 0.5)
    variables = rnn.init(jax.random.key(0), x)
    y = rnn.apply(variables, x, initial_carry=carry, mask=np.arange(T) > np.zeros((B, 1)))
    before = y[:, 0]
    expected = carry if y.shape[-1] == 4 else jnp.zeros((B, 7))
    np.testing.assert_array_equal(before, expected)
    assert np.all(y[:, 1] != before)


def test_trap_7_strict_promotion_of_flax_cells():
    x = sequence()
    for cell in (nn.LSTMCell(4), nn.OptimizedLSTMCell(4), nn.GRUCell(4)):
        assert jax.eval_shape(RNN(cell).init_with_output, jax.random.key(0), x)[0].shape == (
            B,
            T,
            4,
        )
    # The relational memory needs no relaxing.
    ours = RNN(make_cell(dtype=jnp.bfloat16))
    assert jax.eval_shape(ours.init_with_output, jax.random.key(0), x)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "cell", mostly_slow([nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell], keep=[nn.GRUCell])
)
def test_trap_7_flax_cells_in_bfloat16(cell, standard_promotion):
    """They need promotion as Flax expects it, and then run as in `nn.RNN`."""
    x = sequence()
    ours, theirs = RNN(cell(4, dtype=jnp.bfloat16)), nn.RNN(cell(4, dtype=jnp.bfloat16))
    variables = random_variables(ours, x)
    y, expected = jax.jit(ours.apply)(variables, x), jax.jit(theirs.apply)(variables, x)
    assert y.dtype == expected.dtype
    np.testing.assert_allclose(y.astype(jnp.float32), expected.astype(jnp.float32), atol=1e-2)
