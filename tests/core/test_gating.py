"""Gates: order, biases, widths, inputs, and the blend."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import Gates, MemoryGates, RelationalMemoryCell
from rrnn_jax.gating import STYLES, GateStyle, gate_memory
from tests.core.random_variables import normal, random_variables


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def gates_and_arguments(style, batch=(), rows=2, slots=3, width=4, **options):
    module: Any = MemoryGates(style, **options)
    rng = np.random.default_rng(2)
    inputs, hidden = normal(rng, (*batch, rows, width)), normal(rng, (*batch, slots, width))
    return module, random_variables(module, inputs, hidden), inputs, hidden


@pytest.mark.parametrize(("style", "width"), [("unit", 4), ("memory", 1)])
@pytest.mark.parametrize(
    ("batch", "biases"), [((), {}), ((2,), {"input_bias": -0.4, "forget_bias": 0.7}), ((2, 3), {})]
)
@pytest.mark.parametrize("output_gate", [False, True])
def test_against_numpy_input_then_forget_then_output(style, width, batch, biases, output_gate):
    module, variables, inputs, hidden = gates_and_arguments(
        style, batch, output_gate=output_gate, **biases
    )
    params = jax.tree.map(np.asarray, variables["params"])
    from_input = np.asarray(inputs).reshape(*batch, 1, 8) @ params["input"]["kernel"]
    from_memory = np.asarray(hidden) @ params["memory"]["kernel"]
    packed = from_input + params["input"]["bias"] + from_memory + params["memory"]["bias"]
    assert packed.shape == (*batch, 3, width * (3 if output_gate else 2))
    gates = jax.jit(module.apply)(variables, inputs, hidden)
    offsets = [biases.get("input_bias", 0.0), biases.get("forget_bias", 1.0), 0.0]
    for k, gate in enumerate(gates[: 3 if output_gate else 2]):
        part = packed[..., k * width : (k + 1) * width]
        np.testing.assert_allclose(gate, sigmoid(part + offsets[k]), atol=1e-6)
    assert (gates.output is None) == (not output_gate)


def test_gates_are_float32_whatever_the_compute_dtype():
    module, variables, inputs, hidden = gates_and_arguments("unit", dtype=jnp.bfloat16)
    gates = jax.jit(module.apply)(variables, inputs, hidden)
    assert (gates.input.dtype, gates.forget.dtype) == (jnp.float32, jnp.float32)
    exact = module.clone(dtype=None).apply(variables, inputs, hidden)
    np.testing.assert_allclose(gates.input, exact.input, atol=2e-2)
    np.testing.assert_allclose(gates.forget, exact.forget, atol=2e-2)


def test_blend_by_hand():
    gates = Gates(jnp.asarray([[0.5], [1.0]]), jnp.asarray([[0.25], [0.0]]))
    candidate, memory = jnp.asarray([[2.0, 4.0], [6.0, 8.0]]), jnp.asarray([[4.0, 8.0], [1.0, 1.0]])
    np.testing.assert_array_equal(gate_memory(gates, candidate, memory), [[2.0, 4.0], [6.0, 8.0]])
    low = gate_memory(gates, candidate, memory.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize("infinity", [1e9, float("inf")])
@pytest.mark.parametrize("style", ["unit", "memory"])
def test_exact_erasure_and_exact_keeping(style, infinity):
    options: dict[str, Any] = {"mem_slots": 3, "head_size": 2, "num_heads": 2}
    rng = np.random.default_rng(3)
    x, memory = normal(rng, (2, 5)), normal(rng, (2, 3, 4))
    plain = RelationalMemoryCell(**options, gate_style=None)
    erasing = RelationalMemoryCell(
        **options, gate_style=style, forget_bias=-infinity, input_bias=infinity
    )
    keeping = RelationalMemoryCell(
        **options, gate_style=style, forget_bias=infinity, input_bias=-infinity
    )
    variables = random_variables(erasing, memory, x)
    ungated = {"params": {k: v for k, v in variables["params"].items() if k != "gates"}}
    candidate, _ = plain.apply(ungated, memory, x)
    erased, _ = erasing.apply(variables, memory, x)
    np.testing.assert_array_equal(erased, jnp.tanh(candidate))
    kept, _ = jax.jit(keeping.apply)(variables, memory, x)
    np.testing.assert_array_equal(kept, memory)


def test_styles_and_errors():
    assert tuple(STYLES) == get_args(GateStyle)
    for style in (None, "units"):
        with pytest.raises(ValueError, match=rf"gate_style .* 'unit', 'memory'; got {style!r}"):
            MemoryGates(style).init(jax.random.key(0), jnp.ones((1, 4)), jnp.ones((3, 4)))  # type: ignore[arg-type]
