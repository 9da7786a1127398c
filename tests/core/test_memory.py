"""The relational memory: blocks against the reference, shared weights, unused parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RelationalMemory
from rrnn_jax.memory import RowMLP
from tests.core import reference
from tests.core.random_variables import normal, random_variables


def module_and_arguments(batch=(), slots=3, rows=2, dtype=None, **options):
    module: Any = RelationalMemory(num_heads=2, head_size=2, dtype=dtype, **options)
    rng = np.random.default_rng(1)
    memory, inputs = normal(rng, (*batch, slots, 4)), normal(rng, (*batch, rows, 4))
    return module, random_variables(module, memory, inputs), memory, inputs


def test_mlp_by_hand():
    # ReLU between the layers (the -1 is lost) and none after the last (the -2 stays).
    params = {
        "layer_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
        "layer_1": {"kernel": -jnp.eye(2), "bias": jnp.asarray([0.0, 0.5])},
    }
    result = RowMLP(num_layers=2).apply({"params": params}, jnp.asarray([[-1.0, 2.0]]))
    np.testing.assert_array_equal(result, [[0.0, -1.5]])
    del params["layer_1"]
    result = RowMLP(num_layers=1).apply({"params": params}, jnp.asarray([[-1.0, 2.0]]))
    np.testing.assert_array_equal(result, [[-1.0, 2.0]])


def test_blocks_share_one_mlp_and_nothing_else():
    _, variables, _, _ = module_and_arguments(num_blocks=3, attention_mlp_layers=2, key_size=5)
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
    linear = {"kernel": (4, 4), "bias": (4,)}
    norm = {"scale": (4,), "bias": (4,)}
    block = {
        "attention": {
            "qkv": {"kernel": (4, 24), "bias": (24,)},
            "qkv_norm": {"scale": (24,), "bias": (24,)},
        },
        "attention_norm": norm,
        "mlp_norm": norm,
    }
    assert shapes == {
        "mlp": {"layer_0": linear, "layer_1": linear},
        "block_0": block,
        "block_1": block,
        "block_2": block,
    }


def test_mlp_acts_in_every_block():
    # The same change of the MLP must show behind block 0 and behind block 1.
    module, variables, memory, inputs = module_and_arguments(num_blocks=1)
    two, more, _, _ = module_and_arguments(num_blocks=2)
    params, other = variables["params"], more["params"]

    @jax.jit
    def apply(mlp):
        middle = module.apply({"params": {"mlp": mlp, "block_0": other["block_0"]}}, memory, inputs)
        return two.apply({"params": {**other, "mlp": mlp}}, memory, inputs)[0], middle[0]

    final, middle = apply(other["mlp"])
    new_final, new_middle = apply(params["mlp"])
    assert not np.allclose(middle, new_middle, atol=1e-2)
    assert not np.allclose(final, new_final, atol=1e-2)
    # Behind the last block: a fresh final norm of rows that went through the MLP once more.
    rebuilt, _ = reference_blocks(two, {"params": {**other, "mlp": params["mlp"]}}, memory, inputs)
    np.testing.assert_allclose(new_final, rebuilt, atol=1e-5)


def reference_blocks(module, variables, memory, inputs):
    """The blocks in NumPy."""
    params = variables["params"]
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(entry.key) for entry in path]
        is_norm = names[-2].endswith("norm")
        leaf_name = {"kernel": "w", "bias": "offset" if is_norm else "b"}.get(names[-1], names[-1])
        names = [name.replace("_", "") if name[-1].isdigit() else name for name in names[:-1]]
        names = [name for name in names if name != "attention"]
        arrays["/".join([*names, leaf_name])] = np.asarray(leaf, np.float64)
    batch = memory.shape[:-2]
    memory = np.asarray(memory, np.float64).reshape(-1, *memory.shape[-2:])
    inputs = np.asarray(inputs, np.float64).reshape(-1, *inputs.shape[-2:])
    rows, weights = np.concatenate([memory, inputs], axis=1), []
    slots = memory.shape[1]
    for k in range(module.num_blocks):
        attended, attention = reference.attend(arrays, f"block{k}", rows, module.num_heads)
        rows = reference.layer_norm(arrays, f"block{k}/attention_norm", rows + attended)
        rows = reference.layer_norm(
            arrays, f"block{k}/mlp_norm", rows + reference.mlp(arrays, rows)
        )
        weights.append(attention[:, :, :slots].reshape(*batch, *attention[0, :, :slots].shape))
    return rows[:, :slots].reshape(*batch, slots, -1), weights


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"num_blocks": 3, "attention_mlp_layers": 1}])
def test_against_reference_for_any_batch(batch, options):
    module, variables, memory, inputs = module_and_arguments(batch, key_size=3, **options)
    candidate, weights = jax.jit(module.apply)(variables, memory, inputs)
    expected, expected_weights = reference_blocks(module, variables, memory, inputs)
    assert candidate.dtype == jnp.float32
    np.testing.assert_allclose(candidate, expected, atol=1e-5)
    assert len(weights) == module.num_blocks
    for actual, wanted in zip(weights, expected_weights, strict=True):
        assert actual.shape == (*batch, 2, 3, 5)
        np.testing.assert_allclose(actual, wanted, atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2])
def test_residual_stream_stays_float32(blocks):
    module, variables, memory, inputs = module_and_arguments(num_blocks=blocks, dtype=jnp.bfloat16)
    candidate, weights = jax.jit(module.apply)(variables, memory, inputs)
    assert candidate.dtype == jnp.float32
    assert {w.dtype for w in weights} == {jnp.dtype(jnp.float32)}
    exact, _ = jax.jit(module.clone(dtype=None).apply)(variables, memory, inputs)
    np.testing.assert_allclose(candidate, exact, atol=5e-2)
    assert not np.array_equal(candidate, exact)
    # Values that bfloat16 cannot hold survive: the stream was never rounded to it.
    rounded = candidate.astype(jnp.bfloat16).astype(jnp.float32)
    assert not np.array_equal(candidate, rounded)


@pytest.mark.parametrize(
    ("memory", "inputs", "message"),
    [
        ((3, 5), (2, 4), r"memory must have shape \[\*B, S, F\] = \(3, 4\), got \(3, 5\)"),
        ((3, 4), (2, 5), r"input_rows must have shape \[\*B, R, F\] = \(2, 4\), got \(2, 5\)"),
        ((7, 3, 4), (6, 2, 4), r"input_rows .* = \(7, 2, 4\), got \(6, 2, 4\)"),
        ((4,), (2, 4), r"\[\*B, S, F\] and \[\*B, R, F\], got \(4,\) and \(2, 4\)"),
    ],
)
def test_shape_errors(memory, inputs, message):
    module = RelationalMemory(num_heads=2, head_size=2)
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), jnp.ones(memory), jnp.ones(inputs))
