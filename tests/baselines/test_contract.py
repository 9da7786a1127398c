"""One suite for every baseline: flax's RNN contract, resets, masks, batch axes and dtypes."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import chex
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


# One of each family: the others are variants of them. The DNC takes as long as both.
KEPT = ("stacked lstm", "entnet, attending")


@pytest.fixture(params=mostly_slow(CELLS, keep=KEPT))
def name(request) -> str:
    return request.param


with_dnc = pytest.mark.parametrize("name", mostly_slow(CELLS, keep=(*KEPT, "dnc")))


def sequence(*shape: int, seed: int = 0) -> jax.Array:
    return normal(np.random.default_rng(seed), shape or (B, T, I))


def cell_variables(cell, x) -> dict[str, Any]:
    carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
    return random_variables(cell, carry, x[:, 0])


def of_rnn(variables) -> dict[str, Any]:
    return {"params": {"cell": variables["params"]}}


def run(cell, variables, x, **options) -> Any:
    return RNN(cell, return_carry=True).apply(of_rnn(variables), x, **options)


def flags(*steps: int) -> np.ndarray:
    return np.isin(np.arange(B * T).reshape(B, T) % T, steps)


def assert_close(actual, expected, atol=2e-6, rtol=1e-4) -> None:
    chex.assert_trees_all_equal_dtypes(actual, expected)
    chex.assert_trees_all_close(actual, expected, atol=atol, rtol=rtol)


@cache
def forward(name: str) -> Callable[..., Any]:
    """Our layer around the cell, compiled once for all tests that give it the same shapes."""
    return jax.jit(partial(run, CELLS[name]))


@cache
def pull(name: str) -> Callable[..., Any]:
    """Carry and outputs, and gradients in variables and inputs of their sum with weights."""

    @jax.jit
    def differentiate(variables, x, weights, options):
        result, back = jax.vjp(partial(run, CELLS[name], **options), variables, x)
        return result, *back(weights)

    def of(variables, x, weights, **options):
        return jax.tree.map(np.asarray, differentiate(variables, x, weights, options))

    return of


def weights_of(name: str) -> tuple[Any, np.ndarray]:
    """Random numbers of the shapes of the carry and of the outputs."""
    rng = np.random.default_rng(1)
    carry = jax.eval_shape(lambda: CELLS[name].initialize_carry(jax.random.key(0), (B, I)))
    of_carry = jax.tree.map(lambda c: rng.normal(size=c.shape).astype(c.dtype), carry)
    return of_carry, rng.normal(size=(B, T, OUTPUT_SIZES[name])).astype(np.float32)


@with_dnc
def test_flax_rnn_and_ours_equal_a_loop(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    step = jax.jit(cell.apply)
    carry, carries, outputs = cell.initialize_carry(jax.random.key(0), (B, I)), [], []
    for t in range(T):
        before = carry
        carry, y = step(variables, carry, x[:, t])
        carries.append(carry)
        outputs.append(y)
        assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, before)
    expected = carry, jnp.stack(outputs, axis=1)
    assert expected[1].shape == (B, T, OUTPUT_SIZES[name])
    assert cell.output_size == OUTPUT_SIZES[name]
    assert cell.num_feature_axes == 1
    theirs = nn.RNN(cell, return_carry=True)
    assert_close(jax.jit(theirs.apply)(of_rnn(variables), x), expected)
    assert_close(forward(name)(variables, x), expected)
    last, _ = forward(name)(variables, x, seq_lengths=jnp.asarray([2, 5]))
    assert_close(last, jax.tree.map(lambda a, b: jnp.stack([a[0], b[1]]), carries[1], carries[4]))
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
    of_carry, of_y = jax.tree.map(np.zeros_like, weights_of(name))
    _, gradients, _ = pull(name)(own, np.asarray(x[:, :3]), (of_carry, of_y[:, :3] + 1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # Every weight counts, but for what the zero state hides.
    silent = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
        if not np.abs(leaf).max() > 0
    ]
    assert not silent


def test_packed_with_resets_equals_apart(name):
    x, (of_carry, of_y) = np.asarray(sequence()), weights_of(name)
    variables, of = cell_variables(CELLS[name], sequence()), pull(name)
    everywhere = np.ones((B, T), bool)
    packed = of(variables, x, (of_carry, of_y), resets=flags(0, 3), mask=everywhere)
    nothing = jax.tree.map(np.zeros_like, of_carry)
    (_, y), first, x_first = of(variables, x[:, :3], (nothing, of_y[:, :3]))
    (carry, y_last), last, x_last = of(variables, x[:, 3:], (of_carry, of_y[:, 3:]))
    expected = (carry, np.concatenate([y, y_last], axis=1)), jax.tree.map(np.add, first, last)
    assert_close(packed, (*expected, np.concatenate([x_first, x_last], axis=1)))


def test_padded_with_mask_equals_unpadded(name):
    x, (of_carry, of_y) = np.asarray(sequence()), weights_of(name)
    variables, of = cell_variables(CELLS[name], sequence()), pull(name)
    there, mask = [1, 2, 4], ~flags(0, 3, T - 1)
    dirty = np.where(mask[..., None], x, np.nan)
    weights = of_carry, np.where(mask[..., None], of_y, 0)
    (carry, y), of_variables, of_x = of(variables, dirty, weights, resets=flags(), mask=mask)
    valid = (carry, y[:, there]), of_variables, of_x[:, there]
    assert_close(valid, of(variables, x[:, there], (of_carry, of_y[:, there])))
    np.testing.assert_array_equal(of_x[:, [0, 3, T - 1]], 0)
    np.testing.assert_array_equal(y[:, [3, T - 1]], y[:, [2, T - 2]])
    np.testing.assert_array_equal(y[:, 0], 0.0)


@pytest.mark.parametrize("name", mostly_slow(TELLING, keep=KEPT[:1]))
def test_masked_output_before_the_first_step_is_that_of_the_carry(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    carry, y = forward(name)(variables, x, initial_carry=carry, mask=flags(*range(T)))
    _, masked = forward(name)(variables, x, initial_carry=carry, mask=~flags(0))
    np.testing.assert_allclose(masked[:, 0], y[:, -1], atol=1e-6)


def test_arrays_of_numpy_in_double_precision(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    expected = jax.jit(cell.apply)(variables, carry, x[:, 0])
    doubles = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (carry, x[:, 0]))
    # The arrays are constants: `jax.jit` hands arguments over in single precision.
    assert_close(jax.jit(lambda: cell.apply(variables, *doubles))(), expected)


def test_no_and_two_batch_axes_and_time_major(name):
    cell, x = CELLS[name], sequence(2, B, T, I)
    variables = cell_variables(cell, x[0])
    carry, y = forward(name)(variables, x)
    flat = x.reshape(2 * B, T, I)
    flat_carry, flat_y = jax.jit(lambda x: run(cell, variables, x, time_major=True))(
        jnp.moveaxis(flat, 1, 0)
    )
    assert_close(y.reshape(2 * B, T, -1), jnp.moveaxis(flat_y, 0, 1))
    assert_close(jax.tree.map(lambda a: a.reshape(2 * B, *a.shape[2:]), carry), flat_carry)
    one = forward(name)(variables, x[1, 0])
    assert_close(one, jax.tree.map(lambda leaf: leaf[1, 0], (carry, y)))


def test_a_batch_of_no_sequences(name):
    cell = CELLS[name]
    y = jax.eval_shape(RNN(cell).apply, of_rnn(cell_variables(cell, sequence())), sequence(0, T, I))
    assert y.shape == (0, T, OUTPUT_SIZES[name])


@with_dnc
def test_bad_carries_and_inputs(name):
    cell, x = CELLS[name], jnp.ones((B, I))
    good = cell.initialize_carry(jax.random.key(0), (B, I))
    variables = cell_variables(cell, sequence())
    shorter = jax.tree.map(lambda leaf: leaf[:1], good)
    integers = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), good)
    for carry, inputs, error, message in (
        (None, x, TypeError, "carry must have the structure that "),
        ((good, good, good), x, TypeError, "carry must have the structure that "),
        (integers, x, TypeError, r"carry.* must be floating-point, got int32"),
        (shorter, x, ValueError, r"carry.* must have shape \[\*B, \.\.\.\] = \(2, .* got \(1, "),
        (good, x.astype(jnp.complex64), TypeError, "inputs must be real, got complex64"),
        (good, [1.0, 2.0], TypeError, "inputs must be one array, got list"),
        (good, jnp.ones((B, 0)), ValueError, r"inputs must have .*\(2, 0\)"),
    ):
        with pytest.raises(error, match=message):
            cell.apply(variables, carry, inputs)
    with pytest.raises(ValueError, match=r"inputs must have shape \[\*B, I\] .* got \(\)"):
        cell.initialize_carry(jax.random.key(0), ())


def test_scan_of_the_class_and_vmap_of_a_step(name):
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    scanned = nn.scan(
        type(cell), variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
    )
    fields = {f: getattr(cell, f) for f in cell.__dataclass_fields__ if f not in ("parent", "name")}
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    actual = jax.jit(scanned(**fields).apply)(variables, carry, x)
    assert_close(actual, forward(name)(variables, x))
    mapped = jax.jit(jax.vmap(cell.apply, in_axes=(None, 0, 0)))
    whole = jax.jit(cell.apply)
    args = variables, actual[0], x[:, 0]
    assert_close(mapped(*args), whole(*args))


OURS = [name for name in CELLS if "stacked" not in name]


@pytest.mark.usefixtures("standard_promotion")  # For flax's own LSTM.
@pytest.mark.parametrize("name", [name for name in CELLS if "stacked" in name])
def test_bfloat16_of_flax_cells(name):
    check_bfloat16(name)


@pytest.mark.parametrize("name", mostly_slow(OURS, keep=["entnet, attending", "dnc"]))
def test_bfloat16(name):
    check_bfloat16(name)


def check_bfloat16(name) -> None:
    cell, x = CELLS[name], sequence()
    variables = cell_variables(cell, x)
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    low = cell.clone(dtype=jnp.bfloat16)
    exact, y = forward(name)(variables, x)
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
