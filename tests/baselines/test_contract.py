"""One suite for every baseline: flax's RNN contract, resets, masks, batch axes and dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN
from rrnn_jax.baselines import DNCCell, EntNetCell, LSTMBankCell, StackedLSTMCell
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

B, T, I = 2, 6, 3  # noqa: E741

DNC = DNCCell(
    memory_size=4, word_size=3, num_reads=2, num_writes=2, controller_size=4, output_size=3
)
CELLS: dict[str, Any] = {
    "stacked lstm": StackedLSTMCell((3, 4)),
    "lstm bank": LSTMBankCell(4, num_cells=3),
    "ungated lstm bank": LSTMBankCell(4, num_cells=2, gated=False),
    "entnet": EntNetCell(4, num_cells=3),
    "entnet, concatenated": EntNetCell(I, num_cells=2, output="concatenate", project_inputs=False),
    "entnet, attending": EntNetCell(4, num_cells=3, output="attend"),
    "dnc": DNC,
    "dnc, two layers": DNC.clone(num_writes=1, controller_layers=2),
    "dnc, feedforward": DNC.clone(num_writes=1, controller="feedforward"),
}
OUTPUT_SIZES = dict(zip(CELLS, (7, 4, 4, 4, 6, 4, 3, 3, 3), strict=True))
# Those whose carry tells the output, as `RNN` needs it before the first step of a mask.
TELLING = ("stacked lstm", "lstm bank", "ungated lstm bank")


# One of each family: the others are variants of them.
KEPT = ("stacked lstm", "entnet, attending", "dnc")


@pytest.fixture(params=mostly_slow(CELLS, keep=KEPT))
def name(request) -> str:
    return request.param


def sequence(*shape: int, seed: int = 0) -> jax.Array:
    return normal(np.random.default_rng(seed), shape or (B, T, I))


def cell_variables(cell, x) -> dict[str, Any]:
    carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
    return random_variables(cell, carry, x[:, 0])


def of_rnn(variables) -> dict[str, Any]:
    return {"params": {"cell": variables["params"]}}


def run(cell, variables, x, **options) -> Any:
    return RNN(cell, return_carry=True).apply(of_rnn(variables), x, **options)


def flags(*steps: int) -> jax.Array:
    return jnp.zeros((B, T), bool).at[:, list(steps)].set(True)


def assert_close(actual, expected, atol=2e-6, rtol=1e-4) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=atol, rtol=rtol)


def with_gradients(function, variables, x) -> Any:
    """The result of ``function(variables, x)`` and the gradient of a sum over all of it."""

    def loss(variables, x):
        result = function(variables, x)
        leaves = jax.tree.leaves(result)
        weighted = [jnp.vdot(jnp.cos(jnp.arange(a.size, dtype=a.dtype)), a) for a in leaves]
        return jnp.sum(jnp.stack(weighted)) / 10.0, result

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)


def test_flax_rnn_and_ours_equal_a_loop(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    step = jax.jit(cell.apply)
    carry, outputs = cell.initialize_carry(jax.random.key(0), (B, I)), []
    for t in range(T):
        before = carry
        carry, y = step(variables, carry, x[:, t])
        outputs.append(y)
        assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, before)
    expected = carry, jnp.stack(outputs, axis=1)
    assert expected[1].shape == (B, T, OUTPUT_SIZES[name])
    assert cell.output_size == OUTPUT_SIZES[name]
    assert cell.num_feature_axes == 1
    theirs, ours = nn.RNN(cell, return_carry=True), RNN(cell, return_carry=True)
    assert_close(jax.jit(theirs.apply)(of_rnn(variables), x), expected)
    assert_close(jax.jit(ours.apply)(of_rnn(variables), x), expected)
    if name in TELLING:
        assert_close(cell.output_from_carry(carry), y)
    else:
        assert not hasattr(cell, "output_from_carry")


def test_initialising_makes_the_same_tree_everywhere(name):
    cell, x = CELLS[name], sequence()
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    own = jax.jit(cell.init)(jax.random.key(1), carry, x[:, 0])
    shapes = jax.tree.map(jnp.shape, own["params"])
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype(jnp.float32)}
    for layer in (nn.RNN(cell), RNN(cell)):
        made = jax.eval_shape(layer.init, jax.random.key(1), x)
        assert jax.tree.map(jnp.shape, made["params"]["cell"]) == shapes
    # Steps from initial weights stay finite, gradients included.
    _, gradients = jax.jit(jax.value_and_grad(lambda v: jnp.sum(run(cell, v, x)[1])))(own)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # Every weight counts, but for what the zero state hides.
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(leaf).max() > 0
    ]
    assert not silent


def test_packed_with_resets_equals_apart(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)

    def packed(variables, x):
        return run(cell, variables, x, resets=flags(0, 2))

    def apart(variables, x):
        _, first = run(cell, variables, x[:, :2])
        carry, second = run(cell, variables, x[:, 2:])
        return carry, jnp.concatenate([first, second], axis=1)

    assert_close(with_gradients(packed, variables, x), with_gradients(apart, variables, x))


def test_padded_with_mask_equals_unpadded(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    mask = ~flags(0, 3, T - 1)

    def padded(variables, x):
        x = jnp.where(mask[..., None], x, jnp.nan)
        carry, y = run(cell, variables, x, mask=mask)
        valid = carry, jnp.concatenate([y[:, 1:3], y[:, 4 : T - 1]], axis=1)
        return valid, jax.lax.stop_gradient(y)

    def unpadded(variables, x):
        return run(cell, variables, jnp.concatenate([x[:, 1:3], x[:, 4 : T - 1]], axis=1))

    gradients, (valid, y) = with_gradients(padded, variables, x)
    assert_close((gradients, valid), with_gradients(unpadded, variables, x))
    np.testing.assert_array_equal(y[:, 3], y[:, 2])
    np.testing.assert_array_equal(y[:, T - 1], y[:, T - 2])
    np.testing.assert_array_equal(y[:, 0], 0.0)


@pytest.mark.parametrize("name", mostly_slow(TELLING, keep=KEPT[:1]))
def test_masked_output_before_the_first_step_is_that_of_the_carry(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    apply = jax.jit(lambda x, carry, mask: run(cell, variables, x, initial_carry=carry, mask=mask))
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    carry, y = apply(x, carry, flags(*range(T)))
    _, masked = apply(x, carry, ~flags(0))
    np.testing.assert_allclose(masked[:, 0], y[:, -1], atol=1e-6)


def test_no_and_two_batch_axes_and_time_major(name):
    cell, x = CELLS[name], sequence(2, B, T, I)
    variables = cell_variables(cell, x[0])
    carry, y = jax.jit(lambda x: run(cell, variables, x))(x)
    flat = x.reshape(2 * B, T, I)
    flat_carry, flat_y = jax.jit(lambda x: run(cell, variables, x, time_major=True))(
        jnp.moveaxis(flat, 1, 0)
    )
    assert_close(y.reshape(2 * B, T, -1), jnp.moveaxis(flat_y, 0, 1))
    assert_close(jax.tree.map(lambda a: a.reshape(2 * B, *a.shape[2:]), carry), flat_carry)
    one = jax.jit(lambda x: run(cell, variables, x))(x[1, 0])
    assert_close(one, jax.tree.map(lambda leaf: leaf[1, 0], (carry, y)))


def test_lengths_give_the_carry_of_the_last_valid_step(name):
    cell, x = CELLS[name], sequence()
    variables, lengths = cell_variables(cell, x), jnp.asarray([2, 5])
    carry, _ = jax.jit(lambda x: run(cell, variables, x, seq_lengths=lengths))(x)
    theirs = nn.RNN(cell, return_carry=True)
    expected, _ = jax.jit(theirs.apply)(of_rnn(variables), x, seq_lengths=lengths)
    assert_close(carry, expected)


def test_scan_of_the_class_and_vmap_of_a_step(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    scanned = nn.scan(
        type(cell), variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
    )
    fields = {f: getattr(cell, f) for f in cell.__dataclass_fields__ if f not in ("parent", "name")}
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    actual = jax.jit(scanned(**fields).apply)(variables, carry, x)
    expected = jax.jit(lambda x: run(cell, variables, x))(x)
    assert_close(actual, expected)
    mapped = jax.jit(jax.vmap(cell.apply, in_axes=(None, 0, 0)))
    whole = jax.jit(cell.apply)
    args = variables, actual[0], x[:, 0]
    assert_close(mapped(*args), whole(*args))


OURS = [name for name in CELLS if "stacked" not in name]


@pytest.mark.usefixtures("standard_promotion")  # For flax's own LSTM.
@pytest.mark.parametrize("name", [name for name in CELLS if "stacked" in name])
def test_bfloat16_of_flax_cells(name):
    check_bfloat16(name)


@pytest.mark.parametrize("name", mostly_slow(OURS, keep=KEPT[1:]))
def test_bfloat16(name):
    check_bfloat16(name)


def check_bfloat16(name) -> None:
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    low = cell.clone(dtype=jnp.bfloat16)
    exact, y = jax.jit(lambda x: run(cell, variables, x))(x)
    # Inputs in float32, then in bfloat16, as a model in mixed precision hands them over.
    for inputs in (x, x.astype(jnp.bfloat16)):
        carry, low_y = jax.jit(lambda x: run(low, variables, x))(inputs)
        assert low_y.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.float32)}
        assert 0 < np.abs(low_y.astype(jnp.float32) - y).max() < 0.1
    # A carry of any dtype comes back in it.
    carry = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact)
    carry, _ = jax.jit(low.apply)(variables, carry, x[:, 0])
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", mostly_slow(OURS, keep=KEPT[1:]))
def test_float32_computation_on_bfloat16_inputs(name):
    """``dtype=None`` follows the wider of inputs and parameters."""
    cell, x = CELLS[name], sequence()
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    new_carry, y = jax.eval_shape(
        cell.apply, cell_variables(cell, x), carry, x[:, 0].astype(jnp.bfloat16)
    )
    assert y.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(new_carry)} == {jnp.dtype(jnp.float32)}
