"""NaN where nothing is used, and cells without a derivative at zero: gradients stay finite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental import checkify

from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.test_transparent import CELL, MASK, RESETS, B, T, X, assert_close, variables_of
from tests.grids import mostly_slow


@pytest.mark.parametrize("implementation", mostly_slow(["scan", "hoisted"], keep=["hoisted"]))
@pytest.mark.parametrize("with_carry", mostly_slow([True, False], keep=[True]))
def test_nan_past_the_end_of_a_sequence(implementation, with_carry):
    lengths = jnp.asarray([2, 6, 1, 4])
    used = jnp.arange(T)[None] < lengths[:, None]
    rnn = RNN(CELL, implementation=implementation, return_carry=True)
    variables = variables_of()

    def loss(variables: Any, x: Any) -> Any:
        carry, y = rnn.apply(variables, x, seq_lengths=lengths)  # type: ignore[misc]
        return jnp.sum(carry**2) if with_carry else jnp.sum(jnp.where(used[..., None], y, 0.0) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    clean = gradient(variables, jnp.where(used[..., None], X, 0.0))
    dirty = gradient(variables, jnp.where(used[..., None], X, jnp.nan))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))
    assert_close(dirty, clean)


@pytest.mark.parametrize("implementation", mostly_slow(["scan", "hoisted"], keep=["hoisted"]))
def test_nothing_of_a_memory_that_is_reset_comes_through(implementation):
    resets = jnp.zeros((B, T), bool).at[:, 0].set(True)
    rnn = RNN(CELL, implementation=implementation)
    variables = variables_of()

    def loss(variables: Any, carry: Any) -> Any:
        return jnp.sum(rnn.apply(variables, X, initial_carry=carry, resets=resets) ** 2)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    clean = gradient(variables, jnp.zeros((B, 2, 8)))
    for bad in (jnp.nan, jnp.inf):
        assert_close(gradient(variables, jnp.full((B, 2, 8), bad)), clean)
    assert not jnp.any(clean[1][1])


# For the plain scan see `test_checkify_finds_nothing`.
@pytest.mark.parametrize("implementation", mostly_slow(["scan", "hoisted"], keep=["hoisted"]))
def test_debug_nans_finds_none(implementation):
    rnn = RNN(CELL, implementation=implementation)
    dirty = jnp.where(MASK[..., None], X, jnp.nan)

    def loss(variables: Any) -> Any:
        return jnp.sum(rnn.apply(variables, dirty, resets=RESETS, mask=MASK) ** 2)

    with jax.debug_nans(True):
        value, _ = jax.jit(jax.value_and_grad(loss))(variables_of())
    assert float(value) > 0


@pytest.mark.parametrize(
    ("cell", "implementation"),
    mostly_slow(
        [(CELL, "scan"), (CELL, "hoisted"), (nn.GRUCell(3), "scan")],
        keep=[(nn.GRUCell(3), "scan")],
    ),
)
def test_checkify_finds_nothing(cell, implementation):
    rnn = RNN(cell, implementation=implementation)
    dirty = jnp.where(MASK[..., None], X, jnp.nan)
    gradient = jax.grad(lambda v: jnp.sum(rnn.apply(v, dirty, resets=RESETS, mask=MASK) ** 2))
    checked = checkify.checkify(gradient, errors=checkify.index_checks | checkify.nan_checks)
    error, _ = jax.jit(checked)(variables_of(cell))
    error.throw()


class _Normalising(nn.RNNCellBase):
    """Divides inputs by their length, which has no derivative at zero."""

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        carry = carry + x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return carry, carry

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: Any) -> Any:
        return jnp.zeros(input_shape)

    num_feature_axes = 1


class _NormalisingMemory(RelationalMemoryCell):
    """The same, with a step of its own."""

    def __call__(self, carry: Any, x: Any) -> Any:
        return super().__call__(carry, x / jnp.linalg.norm(x, axis=-1, keepdims=True))


def test_a_subclass_without_a_derivative_at_zero():
    cell: Any = _NormalisingMemory(mem_slots=2, head_size=4, num_heads=2, attention_mlp_layers=1)
    rnn, variables = RNN(cell), variables_of(cell)

    def loss(variables: Any, flags: Any) -> Any:
        y = rnn.apply(variables, X, **flags)
        return jnp.sum(jnp.where(MASK[..., None], y, 0.0) ** 2)

    lengths = jnp.asarray([2, 6, 1, 4])
    gradient = jax.jit(jax.grad(loss))(variables, {"mask": MASK, "seq_lengths": lengths})
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("time_axis", [0, 1])
def test_a_cell_without_a_derivative_at_zero(time_axis):
    mask = MASK.at[0].set(False).at[1, 0].set(False)
    rnn = RNN(_Normalising(), time_major=time_axis == 0)
    x, flags = jnp.where(mask[..., None], X, jnp.nan), mask
    if time_axis == 0:
        x, flags = jnp.swapaxes(x, 0, 1), mask.T
    loss = lambda x: jnp.sum(rnn.apply({}, x, mask=flags)[..., -1, :] ** 2)  # noqa: E731
    gradient = jnp.moveaxis(jax.jit(jax.grad(loss))(x), time_axis, 1)
    some = mask.any(axis=1)  # Of a sequence without any step there is nothing to take.
    assert bool(jnp.isfinite(gradient[some]).all())
    np.testing.assert_array_equal(gradient[some][~mask[some]], 0.0)
