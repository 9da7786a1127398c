"""Weights in practice: TensorFlow 1 checkpoints, metadata boxes, bfloat16 in files."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.interop import from_sonnet, load_sonnet, to_sonnet
from tests.core.test_interop import assert_same_arrays, sonnet_arrays

# The names that dm-sonnet 1.36 makes of a module of two blocks and two layers, written out by hand.
TWO_BLOCKS = {
    "linear": "input_projection",
    "linear_1": "block0/qkv",
    "layer_norm": "block0/qkv_norm",
    "layer_norm_1": "block0/attention_norm",
    "layer_norm_2": "block0/mlp_norm",
    "linear_2": "block1/qkv",
    "layer_norm_3": "block1/qkv_norm",
    "layer_norm_4": "block1/attention_norm",
    "layer_norm_5": "block1/mlp_norm",
    "mlp/linear_0": "mlp/layer0",
    "mlp/linear_1": "mlp/layer1",
    "linear_3": "gate_input",
    "linear_4": "gate_memory",
}
LEAVES = {"w": "w", "b": "b", "gamma": "scale", "beta": "offset"}


def checkpoint(arrays, prefix="", suffix=""):
    """The arrays under TensorFlow's names."""
    renamed = {
        f"{prefix}{module}/{leaf}{suffix}": arrays[f"{ours}/{our_leaf}"]
        for module, ours in TWO_BLOCKS.items()
        for leaf, our_leaf in LEAVES.items()
        if f"{ours}/{our_leaf}" in arrays
    }
    assert len(renamed) == len(arrays)
    return renamed


@pytest.mark.parametrize("suffix", ["", ":0"])
@pytest.mark.parametrize("prefix", ["", "relational_memory/", "agent/core/relational_memory_3/"])
@pytest.mark.parametrize("gates", [0, 2, 8])
def test_tensorflow_names_are_those_arrays(gates, prefix, suffix):
    arrays = sonnet_arrays(gates=gates)
    params = from_sonnet(checkpoint(arrays, prefix, suffix))
    assert_same_arrays(to_sonnet(params), arrays)
    written = to_sonnet(params, tensorflow_scope=prefix.rstrip("/"))
    assert_same_arrays(written, checkpoint(arrays, prefix))


@pytest.mark.parametrize("prefix", ["", "agent/relational_memory/"])
def test_slots_and_other_modules_are_passed_over(prefix):
    arrays = sonnet_arrays()
    found = checkpoint(arrays, prefix)
    slots = {f"{name}/Adam": value for name, value in found.items()}
    slots |= {f"training/{name}/RMSProp_1": value for name, value in found.items()}
    other = {
        "global_step": np.int64(3),
        "beta1_power": np.float32(0.9),
        "policy/w": np.ones((2, 2)),
        "agent/head/linear/w": np.ones((2, 2)),
        "agent/head/linear/w/Adam": np.ones((2, 2)),
        "read_out/mlp/linear_0/w": np.ones((2, 2)),
    }
    assert_same_arrays(to_sonnet(from_sonnet({**found, **slots, **other})), arrays)


def test_the_scope_is_named_where_there_are_two():
    first, second = sonnet_arrays(), sonnet_arrays(width=8, packed=24, gates=16)
    both = {**checkpoint(first, "encoder/rmc/"), **checkpoint(second, "decoder/rmc/", ":0")}
    with pytest.raises(ValueError, match=r"several modules.* scope: 'encoder/rmc', 'decoder/rmc'"):
        from_sonnet(both)
    assert_same_arrays(to_sonnet(from_sonnet(both, scope="decoder/rmc")), second)
    with pytest.raises(ValueError, match=r"scope must be one of \['encoder/rmc'.*got 'rmc'"):
        from_sonnet(both, scope="rmc")
    with pytest.raises(ValueError, match="no TensorFlow names"):
        from_sonnet(first, scope="rmc")
    name = next(name for name in both if name.endswith(":0"))
    with pytest.raises(ValueError, match=r"must hold .* once, got .* besides"):
        from_sonnet(both | {name.removesuffix(":0"): both[name]}, scope="decoder/rmc")


def test_an_incomplete_checkpoint_is_refused_by_its_own_names():
    arrays = checkpoint(sonnet_arrays(), "rmc/")
    for name in arrays:
        if "mlp/linear_0/w" not in name:
            fewer = {key: value for key, value in arrays.items() if key != name}
            with pytest.raises(ValueError, match=f"'{name.removeprefix('rmc/')}' is missing"):
                from_sonnet(fewer)
    fewer = {key: value for key, value in arrays.items() if "layer_norm_5" not in key}
    with pytest.raises(ValueError, match=r"three for each block, got \[0, 1, 2, 3, 4\]"):
        from_sonnet(fewer)
    with pytest.raises(ValueError, match="'embedding/w' is unknown"):
        from_sonnet({**arrays, "rmc/embedding/w": np.ones((2, 2))})


@pytest.mark.parametrize("name", ["qkv_projector.weight", "rmc.attended_memory_layernorm.weight"])
def test_pytorch_ports_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=rf"'{name}' belongs to a PyTorch port.*ReLU"):
        from_sonnet({name: np.ones((3, 3))})


def test_boxed_parameters_are_opened():
    def partitioned(init, *names):
        return nn.with_partitioning(init, names)

    init = nn.initializers.lecun_normal()
    cell = RelationalMemoryCell(
        mem_slots=2,
        head_size=2,
        num_heads=1,
        kernel_init=partitioned(init, None, "model"),
        bias_init=partitioned(nn.initializers.zeros_init(), "model"),
    )
    variables = jax.jit(RNN(cell).init)(jax.random.key(0), jnp.ones((1, 2, 3)))
    assert isinstance(
        variables["params"]["cell"]["input_projection"]["kernel"], nn.meta.AxisMetadata
    )
    assert_same_arrays(to_sonnet(variables), to_sonnet(nn.meta.unbox(variables)))


def test_bfloat16_survives_a_file(tmp_path):
    arrays = sonnet_arrays(dtype=ml_dtypes.bfloat16)
    np.savez(tmp_path / "half.npz", **arrays)
    with np.load(tmp_path / "half.npz") as raw:
        assert raw["gate_input/w"].dtype.kind == "V"  # NumPy has forgotten what it is.
    assert_same_arrays(to_sonnet(load_sonnet(tmp_path / "half.npz")), arrays)


def test_bytes_of_another_dtype_are_refused(tmp_path):
    arrays = sonnet_arrays()
    arrays["gate_input/w"] = arrays["gate_input/w"].astype(ml_dtypes.float8_e4m3fn)
    np.savez(tmp_path / "eight.npz", **arrays)
    with pytest.raises(TypeError, match=r"'gate_input/w' must be floating-point, got \|V1"):
        load_sonnet(tmp_path / "eight.npz")
