"""The cell: against the NumPy reference, its symmetries, dtypes, capture, and errors."""

from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.interop import to_sonnet
from tests.core import reference
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

SIZES: dict[str, Any] = {"mem_slots": 3, "head_size": 2, "num_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "unit": {},
    "memory": {"gate_style": "memory", "forget_bias": 0.3, "input_bias": -0.6},
    "no gates, blocks": {"gate_style": None, "num_blocks": 2, "attention_mlp_layers": 3},
    "matrix, key size": {"matrix_inputs": True, "key_size": 3},
    "output gate": {"output_gate": True, "forget_bias": 0.3, "input_bias": -0.6},
    "output gate, memory": {"output_gate": True, "gate_style": "memory", "matrix_inputs": True},
    "paper's queries, no norm": {"num_blocks": 2, "input_queries": False, "qkv_norm": False},
}
# Both gate styles, no gates, both kinds of inputs, several blocks and an output gate.
KEPT = ("no gates, blocks", "matrix, key size", "output gate, memory")
INPUTS = 5


def make(batch=(2,), seed=0, **config) -> Any:
    """A cell, its variables, a random carry and an input."""
    cell: Any = RelationalMemoryCell(**{**SIZES, **config})
    rng = np.random.default_rng(seed)
    x = normal(rng, (*batch, 2, INPUTS) if cell.matrix_inputs else (*batch, INPUTS))
    shape = (*batch, cell.mem_slots, cell.mem_size)
    carry = (normal(rng, shape), normal(rng, shape)) if cell.output_gate else normal(rng, shape)
    return cell, random_variables(cell, carry, x, seed=seed), carry, x


def double(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def sonnet_names(cell, variables):
    """Arrays by Sonnet's names in float64; with an output gate those of a third gate too."""
    params = dict(variables["params"])
    if not cell.qkv_norm:  # Sonnet always has these norms: lend it some, and take them back.
        for k in range(cell.num_blocks):
            attention = params["memory"][f"block_{k}"]["attention"]
            like = attention["qkv"]["bias"]
            attention = attention | {"qkv_norm": {"scale": like, "bias": like}}
            block = params["memory"][f"block_{k}"] | {"attention": attention}
            params["memory"] = params["memory"] | {f"block_{k}": block}
        names = sonnet_names(cell.clone(qkv_norm=True), {"params": params})
        return {name: value for name, value in names.items() if "qkv_norm" not in name}
    if not cell.output_gate:
        return {name: double(value) for name, value in to_sonnet(params).items()}
    gates = params.pop("gates")
    arrays = {name: double(value) for name, value in to_sonnet(params).items()}
    for name in ("input", "memory"):
        arrays[f"gate_{name}/w"] = double(gates[name]["kernel"])
        arrays[f"gate_{name}/b"] = double(gates[name]["bias"])
    return arrays


@pytest.mark.parametrize("name", CONFIGS)
def test_step_against_reference(name):
    cell, variables, carry, x = make(**CONFIGS[name])
    apply = jax.jit(lambda *args: cell.apply(*args, mutable=["intermediates"]))
    (new_carry, y), captured = apply(variables, carry, x)
    memory, hidden = carry if cell.output_gate else (carry, None)
    expected = reference.step(
        sonnet_names(cell, variables),
        double(x),
        double(memory),
        heads=cell.num_heads,
        hidden=None if hidden is None else double(hidden),
        forget_bias=cell.forget_bias,
        input_bias=cell.input_bias,
        input_queries=cell.input_queries,
    )
    if cell.output_gate:
        np.testing.assert_allclose(new_carry[0], expected.memory, atol=1e-5)
        np.testing.assert_allclose(new_carry[1], expected.hidden, atol=1e-5)
    else:
        np.testing.assert_allclose(new_carry, expected.memory, atol=1e-5)
    np.testing.assert_allclose(y, expected.output, atol=1e-5)
    captured = {name: value for name, (value,) in captured["intermediates"].items()}
    np.testing.assert_allclose(captured.pop("attention_weights"), expected.attention, atol=1e-5)
    assert captured.keys() == {f"{gate}_gate" for gate in expected.gates}
    for gate, value in expected.gates.items():
        np.testing.assert_allclose(captured[f"{gate}_gate"], value, atol=1e-5)


@pytest.mark.parametrize("name", mostly_slow(CONFIGS, keep=KEPT[2:]))
def test_batch_ranks_agree(name):
    cell, variables, carry, x = make(batch=(2, 3), **CONFIGS[name])
    run = jax.jit(cell.apply)
    one_axis = jax.tree.map(lambda a: a.reshape(6, *a.shape[2:]), (carry, x))
    last = jax.tree.map(lambda a: a[-1], one_axis)
    expected = run(variables, *one_axis)
    two = jax.tree.map(lambda a: a.reshape(6, *a.shape[2:]), run(variables, carry, x))
    chex.assert_trees_all_close(two, expected, atol=1e-6)
    none = run(variables, *last)
    chex.assert_trees_all_close(none, jax.tree.map(lambda a: a[-1], expected), atol=1e-6)


PROPERTY = settings(max_examples=12, deadline=None)


@cache
def prepared(name) -> Any:
    """A cell's jitted step, variables, carry and input: made once, not in every example."""
    cell, variables, carry, x = make(**CONFIGS[name])
    return jax.jit(cell.apply), variables, carry, x


def draw(name, seed, scale) -> Any:
    """The step and variables, with another carry and input of the same shapes."""
    run, variables, carry, x = prepared(name)
    rng = np.random.default_rng(seed)
    carry, x = jax.tree.map(lambda a: normal(rng, a.shape, scale=scale), (carry, x))
    return run, variables, carry, x


names = st.sampled_from(list(CONFIGS))
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.1, 1.0, 10.0])


@PROPERTY
@given(names, seeds, scales, st.permutations(range(3)))
def test_slots_are_equivariant(name, seed, scale, order):
    """No slot has weights of its own: slots in another order come out in that order."""
    run, variables, carry, x = draw(name, seed, scale)
    index = np.asarray(order)
    expected, _ = run(variables, carry, x)
    actual, _ = run(variables, jax.tree.map(lambda m: m[:, index], carry), x)
    reordered = jax.tree.map(lambda m: m[:, index], expected)
    chex.assert_trees_all_close(actual, reordered, atol=2e-5)


@PROPERTY
@given(names, seeds, scales)
def test_batch_elements_do_not_touch(name, seed, scale):
    """Another first element changes nothing in the second."""
    run, variables, carry, x = draw(name, seed, scale)
    _, _, other_carry, other_x = draw(name, seed + 1, scale)

    def mix(a, b):
        return jnp.concatenate([a[:1], b[1:]])

    mixed_carry, mixed_x = jax.tree.map(mix, (other_carry, other_x), (carry, x))
    expected = run(variables, carry, x)
    actual = run(variables, mixed_carry, mixed_x)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a[1], b[1])
        assert not np.array_equal(a[0], b[0])


@PROPERTY
@given(names, seeds)
def test_equal_slots_stay_equal(name, seed):
    """Why the memory does not start at zero."""
    run, variables, carry, x = draw(name, seed, 1.0)
    carry = jax.tree.map(lambda m: jnp.broadcast_to(m[:, :1], m.shape), carry)
    carry, _ = run(variables, carry, x)
    for m in jax.tree.leaves(carry):
        np.testing.assert_allclose(m, np.broadcast_to(m[:, :1], m.shape), atol=1e-6)


@PROPERTY
@given(seeds, scales)
def test_gated_memory_is_bounded_by_the_old_one(seed, scale):
    """|i tanh(X) + f M| < 1 + |M|, however wild the input."""
    run, variables, carry, x = draw("unit", seed, scale)
    new, _ = run(variables, carry, 100 * x)
    assert np.all(np.abs(new) <= 1 + np.abs(carry))


def test_order_of_input_rows_matters_to_gates_alone():
    cell, variables, carry, x = make(matrix_inputs=True, gate_style=None)
    run = jax.jit(cell.apply)
    expected, _ = run(variables, carry, x)
    np.testing.assert_allclose(run(variables, carry, x[:, ::-1])[0], expected, atol=1e-6)
    cell, variables, carry, x = make(matrix_inputs=True)
    run = jax.jit(cell.apply)
    expected, _ = run(variables, carry, x)
    assert not np.allclose(run(variables, carry, x[:, ::-1])[0], expected, atol=1e-3)


def test_one_row_matrix_is_a_vector():
    cell, variables, carry, x = make()
    expected, _ = jax.jit(cell.apply)(variables, carry, x)
    matrix = cell.clone(matrix_inputs=True)
    actual, _ = jax.jit(matrix.apply)(variables, carry, x[:, None])
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_init_makes_params_only_of_float32(name):
    cell, _, carry, x = make(**CONFIGS[name])
    made = jax.eval_shape(lambda: cell.init(jax.random.key(0), carry, x))
    assert set(made) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}
    gates = 0 if cell.gate_style is None else (3 if cell.output_gate else 2)
    assert ("gates" in made["params"]) == (gates > 0)
    if gates:
        width = gates * (4 if cell.gate_style == "unit" else 1)
        rows = 2 if cell.matrix_inputs else 1
        assert made["params"]["gates"]["input"]["kernel"].shape == (4 * rows, width)
        assert made["params"]["gates"]["memory"]["kernel"].shape == (4, width)


@pytest.mark.parametrize("name", mostly_slow(CONFIGS, keep=KEPT[2:]))
def test_bfloat16_keeps_the_carry_in_float32(name):
    cell, variables, carry, x = make(**CONFIGS[name])
    low: Any = cell.clone(dtype=jnp.bfloat16)
    exact_carry, exact = jax.jit(cell.apply)(variables, carry, x)
    new_carry, y = jax.jit(low.apply)(variables, carry, x)
    assert y.dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(new_carry), jax.tree.leaves(exact_carry), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=5e-2)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=6e-2)


def test_a_low_precision_carry_keeps_its_dtype():
    cell, variables, carry, x = make(dtype=jnp.bfloat16)
    new_carry, y = jax.jit(cell.apply)(variables, carry.astype(jnp.bfloat16), x)
    assert (new_carry.dtype, y.dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_output_from_carry():
    cell, variables, carry, x = make()
    new_carry, y = jax.jit(cell.apply)(variables, carry, x)
    np.testing.assert_array_equal(cell.output_from_carry(new_carry), y)
    np.testing.assert_array_equal(y, np.reshape(new_carry, (2, -1)))
    cell, variables, carry, x = make(output_gate=True, dtype=jnp.bfloat16)
    new_carry, y = jax.jit(cell.apply)(variables, carry, x)
    np.testing.assert_array_equal(cell.output_from_carry(new_carry), y)
    np.testing.assert_array_equal(y, np.reshape(new_carry[1].astype(jnp.bfloat16), (2, -1)))


def test_sizes():
    cell = RelationalMemoryCell(mem_slots=3, head_size=5, num_heads=2, matrix_inputs=True)
    assert (cell.mem_size, cell.output_size, cell.num_feature_axes) == (10, 30, 2)
    assert RelationalMemoryCell().num_feature_axes == 1


def test_nothing_is_captured_unless_asked():
    cell, variables, carry, x = make(num_blocks=2)
    result = jax.eval_shape(cell.apply, variables, carry, x)
    assert [leaf.shape for leaf in jax.tree.leaves(result)] == [(2, 3, 4), (2, 12)]
    _, other = jax.jit(partial(cell.apply, mutable=["cache"]))(variables, carry, x)
    assert not other

    def num_equations(**options):
        jaxpr = jax.make_jaxpr(lambda *args: cell.apply(*args, **options))(variables, carry, x)
        return str(jaxpr).count(" = ")

    assert num_equations(mutable=["intermediates"]) > num_equations()


@pytest.mark.parametrize(
    ("config", "carry", "x", "error", "message"),
    [
        ({}, (3, 4), (2, 5), ValueError, r"carry .* \[\*B, S, F\] = \(2, 3, 4\), got \(3, 4\)"),
        ({}, (2, 4, 4), (2, 5), ValueError, r"carry must .* = \(2, 3, 4\), got \(2, 4, 4\)"),
        ({}, (1, 3, 4), (2, 5), ValueError, r"carry must .* = \(2, 3, 4\), got \(1, 3, 4\)"),
        ({}, (3, 4), (), ValueError, r"inputs must have shape \[\*B, I\], got \(\)"),
        ({}, (3, 4), (0,), ValueError, r"inputs must have at least one feature, got shape \(0,\)"),
        (
            {"matrix_inputs": True},
            (3, 4),
            (5,),
            ValueError,
            r"inputs must have shape \[\*B, R, I\] \(matrix_inputs=True\), got \(5,\)",
        ),
        (
            {"matrix_inputs": True},
            (3, 4),
            (0, 5),
            ValueError,
            r"inputs must have at least one feature, got shape \(0, 5\)",
        ),
        ({"output_gate": True}, (3, 4), (5,), TypeError, r"pair \(m, h\) because output_gate=True"),
    ],
)
def test_shape_errors(config, carry, x, error, message):
    cell = RelationalMemoryCell(**{**SIZES, **config})
    with pytest.raises(error, match=message):
        cell.init(jax.random.key(0), jnp.ones(carry), jnp.ones(x))


def test_carry_errors():
    cell = RelationalMemoryCell(**SIZES)
    x, memory = jnp.ones((5,)), jnp.ones((3, 4))
    with pytest.raises(TypeError, match=r"one array .* because output_gate=False, got PyTreeDef"):
        cell.init(jax.random.key(0), (memory, memory), x)
    gated = RelationalMemoryCell(**SIZES, output_gate=True)
    with pytest.raises(ValueError, match=r"carry\[0\] \(m\) must .* \(3, 4\), got \(3, 5\)"):
        gated.init(jax.random.key(0), (jnp.ones((3, 5)), memory), x)
    with pytest.raises(ValueError, match=r"carry\[1\] \(h\) must .* \(3, 4\), got \(2, 4\)"):
        gated.init(jax.random.key(0), (memory, jnp.ones((2, 4))), x)
    with pytest.raises(ValueError, match=r"inputs must have shape \[\*B, I\], got \(\)"):
        cell.initialize_carry(jax.random.key(0), ())
