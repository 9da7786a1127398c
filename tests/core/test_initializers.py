"""Initial weights and the initial memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.initializers import fan_in_truncated_normal, identity_rows
from tests.core import reference


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize(("slots", "width"), [(3, 3), (2, 5), (5, 2), (1, 4), (4, 1)])
def test_identity_rows_padded_and_truncated(batch, slots, width):
    memory = identity_rows(None, (*batch, slots, width))
    assert (memory.shape, memory.dtype) == ((*batch, slots, width), jnp.float32)
    for index in np.ndindex(*batch):
        np.testing.assert_array_equal(memory[index], reference.initial_memory(1, slots, width)[0])


def test_identity_rows_by_hand():
    np.testing.assert_array_equal(identity_rows(None, (2, 3)), [[1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(identity_rows(None, (3, 2)), [[1, 0], [0, 1], [0, 0]])
    assert identity_rows(jax.random.key(0), (2, 3), jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"shape must be \[\*B, S, F\], got \(3,\)"):
        identity_rows(None, (3,))


@pytest.mark.parametrize("matrix_inputs", [False, True])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_cell_starts_from_identity_rows(batch, matrix_inputs):
    cell = RelationalMemoryCell(
        mem_slots=5, head_size=2, num_heads=2, matrix_inputs=matrix_inputs, dtype=jnp.bfloat16
    )
    features = (7, 6) if matrix_inputs else (6,)
    memory = cell.initialize_carry(jax.random.key(0), (*batch, *features))
    expected = np.broadcast_to(np.eye(5, 4), (*batch, 5, 4))
    assert memory.dtype == jnp.float32
    np.testing.assert_array_equal(memory, expected)
    m, h = cell.clone(output_gate=True).initialize_carry(jax.random.key(0), (*batch, *features))
    np.testing.assert_array_equal(m, expected)
    np.testing.assert_allclose(h, np.tanh(expected), atol=1e-6)


def test_carry_init_can_be_another():
    cell = RelationalMemoryCell(
        mem_slots=2, head_size=2, num_heads=1, carry_init=jax.nn.initializers.normal(1.0)
    )
    first = cell.initialize_carry(jax.random.key(0), (3, 1))
    assert first.shape == (3, 2, 2)
    assert not np.array_equal(first, cell.initialize_carry(jax.random.key(1), (3, 1)))


def test_weights_are_normal_cut_at_two_deviations():
    fan_in, fan_out = 64, 500
    weights = np.asarray(fan_in_truncated_normal(jax.random.key(0), (fan_in, fan_out)))
    scaled = weights * fan_in**0.5
    assert weights.dtype == np.float32
    assert 1.99 < np.abs(scaled).max() <= 2.0 + 1e-6
    assert abs(scaled.mean()) < 0.02
    # The deviation of a unit normal that is cut at two; not widened back to one.
    assert abs(scaled.std() - 0.8796) < 0.01


def test_cell_weights_biases_and_scales():
    cell = RelationalMemoryCell(mem_slots=2, head_size=8, num_heads=2)
    x = jnp.ones((1, 9))
    params = jax.jit(
        lambda: cell.init(jax.random.key(1), cell.initialize_carry(jax.random.key(0), x.shape), x)
    )()["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name == "kernel":
            bound = 2 / leaf.shape[0] ** 0.5
            assert 0.8 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6), path
        else:
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, float(name == "scale")))


def test_initialisers_and_dtype_are_passed_on():
    cell = RelationalMemoryCell(
        mem_slots=2,
        head_size=2,
        num_heads=2,
        kernel_init=jax.nn.initializers.constant(0.25),
        bias_init=jax.nn.initializers.constant(-3.0),
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
    )
    x = jnp.ones((1, 3), jnp.bfloat16)
    params = jax.jit(
        lambda: cell.init(jax.random.key(1), cell.initialize_carry(jax.random.key(0), x.shape), x)
    )()["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert leaf.dtype == jnp.bfloat16
        is_norm = path[-2].key.endswith("norm")
        expected = {"kernel": 0.25, "scale": 1.0, "bias": 0.0 if is_norm else -3.0}[path[-1].key]
        assert np.all(leaf == expected), path
