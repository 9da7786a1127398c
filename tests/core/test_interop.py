"""Weights to and from Sonnet: exact round trips, and errors that name the array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.interop import from_sonnet, load_sonnet, to_sonnet
from tests.core import golden
from tests.core.random_variables import random_variables


def sonnet_arrays(
    *, width=4, packed=12, gates=8, rows=1, inputs=3, blocks=2, layers=2, dtype=np.float32
):
    """Random arrays of a module, written out by hand, not by the code under test."""
    shapes = {"input_projection/w": (inputs, width), "input_projection/b": (width,)}
    for k in range(blocks):
        shapes |= {
            f"block{k}/qkv/w": (width, packed),
            f"block{k}/qkv/b": (packed,),
            f"block{k}/qkv_norm/scale": (packed,),
            f"block{k}/qkv_norm/offset": (packed,),
            f"block{k}/attention_norm/scale": (width,),
            f"block{k}/attention_norm/offset": (width,),
            f"block{k}/mlp_norm/scale": (width,),
            f"block{k}/mlp_norm/offset": (width,),
        }
    for j in range(layers):
        shapes |= {f"mlp/layer{j}/w": (width, width), f"mlp/layer{j}/b": (width,)}
    if gates:
        shapes |= {"gate_input/w": (rows * width, gates), "gate_input/b": (gates,)}
        shapes |= {"gate_memory/w": (width, gates), "gate_memory/b": (gates,)}
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def assert_same_arrays(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, jnp.bfloat16])
@pytest.mark.parametrize("gates", [0, 2, 8])
def test_round_trip_is_exact_and_keeps_dtypes(dtype, gates):
    arrays = sonnet_arrays(gates=gates, rows=3, dtype=dtype)
    assert_same_arrays(to_sonnet(from_sonnet(arrays)), arrays)


@pytest.mark.parametrize("name", golden.NAMES)
def test_round_trip_of_golden_arrays(name, tmp_path):
    arrays = golden.load(name).arrays
    arrays = {key: value for key, value in arrays.items() if key.startswith("params/")}
    bare = {key.removeprefix("params/"): value for key, value in arrays.items()}
    assert len(bare) >= 12
    assert_same_arrays(to_sonnet(from_sonnet(arrays)), bare)
    params = load_sonnet(golden.FOLDER / f"{name}.npz")
    assert_same_arrays(to_sonnet(params), bare)
    np.savez(tmp_path / "tf.npz", **to_sonnet(params, tensorflow_scope="rmc"))
    assert_same_arrays(to_sonnet(load_sonnet(tmp_path / "tf.npz")), bare)


def test_each_array_goes_where_its_name_says():
    arrays = sonnet_arrays()
    params = from_sonnet(arrays)
    block = params["memory"]["block_1"]
    for leaf, name in [
        (params["input_projection"]["kernel"], "input_projection/w"),
        (params["input_projection"]["bias"], "input_projection/b"),
        (block["attention"]["qkv"]["kernel"], "block1/qkv/w"),
        (block["attention"]["qkv"]["bias"], "block1/qkv/b"),
        (block["attention"]["qkv_norm"]["scale"], "block1/qkv_norm/scale"),
        (block["attention"]["qkv_norm"]["bias"], "block1/qkv_norm/offset"),
        (block["attention_norm"]["scale"], "block1/attention_norm/scale"),
        (block["attention_norm"]["bias"], "block1/attention_norm/offset"),
        (block["mlp_norm"]["scale"], "block1/mlp_norm/scale"),
        (block["mlp_norm"]["bias"], "block1/mlp_norm/offset"),
        (params["memory"]["mlp"]["layer_1"]["kernel"], "mlp/layer1/w"),
        (params["memory"]["mlp"]["layer_1"]["bias"], "mlp/layer1/b"),
        (params["gates"]["input"]["kernel"], "gate_input/w"),
        (params["gates"]["input"]["bias"], "gate_input/b"),
        (params["gates"]["memory"]["kernel"], "gate_memory/w"),
        (params["gates"]["memory"]["bias"], "gate_memory/b"),
    ]:
        np.testing.assert_array_equal(leaf, arrays[name], err_msg=name)


@pytest.mark.parametrize("gate_style", ["unit", "memory", None])
def test_tree_is_the_one_that_the_cell_makes(gate_style):
    cell = RelationalMemoryCell(
        mem_slots=2, head_size=2, num_heads=2, num_blocks=12, key_size=3, gate_style=gate_style
    )
    x = jnp.ones((1, 5))
    shape = jax.eval_shape(
        lambda: cell.init(jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x)
    )
    made = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shape["params"])
    assert jax.tree.map(np.shape, from_sonnet(to_sonnet(made))) == jax.tree.map(np.shape, made)


def test_results_do_not_share_memory_with_the_arguments():
    arrays = sonnet_arrays()
    params = from_sonnet(arrays)
    back = to_sonnet(params)
    arrays["input_projection/w"][:] = 0
    params["input_projection"]["kernel"][:] = 1
    assert np.all(params["input_projection"]["kernel"] == 1)
    assert not np.any(np.isin(back["input_projection/w"], (0, 1)))


def test_to_sonnet_unwraps_variables_of_cell_and_rnn():
    cell = RelationalMemoryCell(mem_slots=2, head_size=2, num_heads=1)
    variables = random_variables(RNN(cell), jnp.ones((1, 2, 3)))
    expected = to_sonnet(variables["params"]["cell"])
    assert_same_arrays(to_sonnet(variables), expected)
    assert_same_arrays(to_sonnet(freeze(variables)), expected)
    assert_same_arrays(to_sonnet(variables["params"]), expected)
    assert_same_arrays(to_sonnet({"params": variables["params"]["cell"]}), expected)


def test_load_ignores_other_groups_only_beside_params(tmp_path):
    arrays = sonnet_arrays()
    other = {"inputs": np.ones(3), "grads/params/gate_input/w": np.ones(2), "config/seed": 1}
    path = tmp_path / "grouped.npz"
    np.savez(path, **{f"params/{name}": value for name, value in arrays.items()}, **other)
    assert_same_arrays(to_sonnet(load_sonnet(path)), arrays)
    np.savez(tmp_path / "bare.npz", **arrays)
    assert_same_arrays(to_sonnet(load_sonnet(str(tmp_path / "bare.npz"))), arrays)
    np.savez(tmp_path / "mixed.npz", **arrays, **other)
    with pytest.raises(ValueError, match=r"'inputs' is unknown"):
        load_sonnet(tmp_path / "mixed.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(
        ValueError, match=r"an \.npz of named arrays, got .* it holds a single array"
    ):
        load_sonnet(tmp_path / "one.npy")
    whole = (tmp_path / "bare.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 1  # In the first array.
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"an \.npz of named arrays, got .*broken"):
            load_sonnet(tmp_path / "broken.npz")


def without(arrays, *names):
    return {name: value for name, value in arrays.items() if name not in names}


def test_missing_unknown_and_repeated_arrays():
    arrays = sonnet_arrays()
    for name in arrays:
        if not name.startswith("mlp/layer"):
            with pytest.raises(ValueError, match=rf"'{name}' is missing; got "):
                from_sonnet(without(arrays, name))
    with pytest.raises(ValueError, match=r"'block1/qkv/scale' is unknown; expected .*block1/qkv/w"):
        from_sonnet({**arrays, "block1/qkv/scale": np.ones(4)})
    with pytest.raises(ValueError, match=r"without gaps, got \[0, 1, 1\]"):
        from_sonnet({**arrays, "block01/qkv/w": np.ones(4)})
    with pytest.raises(ValueError, match=r"'gate_input/b' is given twice"):
        from_sonnet({**arrays, "params/gate_input/b": arrays["gate_input/b"]})
    params = from_sonnet(arrays)
    del params["memory"]["block_1"]["mlp_norm"]["bias"]
    with pytest.raises(ValueError, match=r"'memory/block_1/mlp_norm/bias' is missing"):
        to_sonnet(params)
    params = from_sonnet(arrays)
    params["head"] = {"kernel": np.ones((2, 2))}
    with pytest.raises(ValueError, match=r"'head/kernel' is unknown"):
        to_sonnet(params)


def test_gaps_in_numbers():
    arrays = sonnet_arrays(blocks=3, layers=3)
    gap = {name: value for name, value in arrays.items() if not name.startswith("block1/")}
    with pytest.raises(ValueError, match=r"block0/.* without gaps, got \[0, 2\]"):
        from_sonnet(gap)
    gap = without(arrays, "mlp/layer0/w", "mlp/layer0/b")
    with pytest.raises(ValueError, match=r"layer0/.* without gaps, got \[1, 2\]"):
        from_sonnet(gap)
    none = {name: value for name, value in arrays.items() if not name.startswith("block")}
    with pytest.raises(ValueError, match=r"'block0/\.\.\.', got gate_input/b, .*, mlp/layer1/w"):
        from_sonnet(none)
    params = from_sonnet(arrays)
    del params["memory"]["block_0"]
    with pytest.raises(ValueError, match=r"'block_0/\.\.\.' .* without gaps, got \[1, 2\]"):
        to_sonnet(params)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("mlp/layer1/w", (4, 5), r"\[F, F\] with F = 4 as in 'input_projection/w', got \(4, 5\)"),
        ("mlp/layer0/b", (4, 1), r"\[F\], got \(4, 1\)"),
        ("input_projection/b", (5,), r"with F = 4 as in 'input_projection/w', got \(5,\)"),
        ("block1/qkv/w", (4, 14), r"H\*\(2K\+D\) = 12 as in 'block0/qkv/w', got \(4, 14\)"),
        ("block0/qkv_norm/scale", (4,), r"H\*\(2K\+D\) = 12 as in 'block0/qkv/w', got \(4,\)"),
        ("gate_memory/w", (4, 2), r"2\*g = 8 as in 'gate_input/w', got \(4, 2\)"),
        ("gate_input/w", (6, 8), r"R\*F rows, a multiple of F = 4, got 6"),
        ("gate_input/w", (0, 8), r"\[R\*F, 2\*g\], got \(0, 8\)"),
    ],
)
def test_shapes_that_do_not_fit(name, shape, message):
    arrays = sonnet_arrays()
    arrays[name] = np.ones(shape, np.float32)
    with pytest.raises(ValueError, match=f"'{name}' .*{message}"):
        from_sonnet(arrays)


@pytest.mark.parametrize("packed", [4, 11, 3])
def test_impossible_width_of_qkv(packed):
    with pytest.raises(ValueError, match=rf"'block0/qkv/w' .* F = H\*D = 4 by an even .*{packed}"):
        from_sonnet(sonnet_arrays(packed=packed))


@pytest.mark.parametrize(("gates", "message"), [(6, r"2 \('memory'\) wide, got 6"), (3, "three")])
def test_impossible_width_of_gates(gates, message):
    with pytest.raises(ValueError, match=rf"'gate_input/w' .*{message}"):
        from_sonnet(sonnet_arrays(gates=gates))


def test_kinds_of_values():
    arrays = sonnet_arrays()
    with pytest.raises(TypeError, match=r"'mlp/layer0/w' must be floating-point, got int32"):
        from_sonnet({**arrays, "mlp/layer0/w": np.ones((4, 4), np.int32)})
    with pytest.raises(TypeError, match=r"params must be a mapping, got ndarray"):
        to_sonnet({"params": np.ones(3)})  # type: ignore[arg-type]
    model = {"core": from_sonnet(arrays), "head": {"kernel": np.ones((2, 2))}}
    with pytest.raises(
        ValueError, match=r"must be arrays 'layer_0/\.\.\.', got core/.*, head/kernel"
    ):
        to_sonnet({"params": model})
    with pytest.raises(ValueError, match=r"must be arrays 'layer_0/\.\.\.', got none"):
        to_sonnet({})


@pytest.mark.parametrize("gate_style", ["unit", "memory"])
def test_output_gate_has_no_counterpart(gate_style):
    cell = RelationalMemoryCell(
        mem_slots=2, head_size=2, num_heads=2, gate_style=gate_style, output_gate=True
    )
    x = jnp.ones((1, 5))
    variables = random_variables(cell, cell.initialize_carry(jax.random.key(0), x.shape), x)
    with pytest.raises(ValueError, match=r"'gates/input/kernel' .* has no output gate"):
        to_sonnet(variables)
