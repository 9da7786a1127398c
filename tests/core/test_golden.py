"""Parity with the authors' module: outputs, memories, gates and gradients, however it is run."""

import itertools
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN
from rrnn_jax.interop import to_sonnet
from tests.core import golden, reference
from tests.core.golden import OUTPUT_ATOL, Golden
from tests.grids import mostly_slow

load = cache(golden.load)


def flax_rnn(case: Golden) -> Callable:
    """`flax.linen.RNN`, time-major."""
    rnn = nn.RNN(case.cell, time_major=True)
    return lambda params, inputs, memory: rnn.apply(
        {"params": {"cell": params}}, inputs, initial_carry=memory
    )


def flax_scan(case: Golden) -> Callable:
    """`flax.linen.scan` of the cell's class."""
    scanned = nn.scan(
        type(case.cell), variable_broadcast="params", split_rngs={"params": False}, in_axes=0
    )
    fields = {name: getattr(case.cell, name) for name in case.cell.__dataclass_fields__}
    cell = scanned(**{**fields, "parent": None, "name": None})
    return lambda params, inputs, memory: cell.apply({"params": params}, memory, inputs)[1]


def our_rnn(implementation: str, remat: str = "none") -> Callable[[Golden], Callable]:
    """`RNN`, time-major."""

    def make(case: Golden) -> Callable:
        rnn = RNN(case.cell, time_major=True, implementation=implementation, remat=remat)  # type: ignore[arg-type]
        return lambda params, inputs, memory: rnn.apply(
            {"params": {"cell": params}}, inputs, initial_carry=memory
        )

    return make


RUNNERS = {
    "nn.RNN": flax_rnn,
    "nn.scan": flax_scan,
    "RNN scan": our_rnn("scan"),
    "RNN hoisted": our_rnn("hoisted"),
}


def check(case: Golden, run: Callable, compile_with: Callable) -> None:
    """Compares outputs, loss and all gradients."""
    weights = case.loss_weights

    def loss(params, inputs, memory):
        outputs = run(params, inputs, memory)
        return jnp.mean(outputs * weights), outputs

    value_and_grad = compile_with(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, outputs), gradients = value_and_grad(case.params, case.inputs, case.initial_memory)
    np.testing.assert_allclose(outputs, case.arrays["outputs"], rtol=0, atol=OUTPUT_ATOL)
    np.testing.assert_allclose(value, case.arrays["loss"], rtol=0, atol=OUTPUT_ATOL)
    golden.assert_close(gradients, case.gradients)


def test_all_cases_are_there():
    assert len(golden.NAMES) == 11
    styles = {load(name).cell.gate_style for name in golden.NAMES}
    assert styles == {"unit", "memory", None}


# All gate styles, numbers of blocks, heads and input rows; the file's other checks run all cases.
KEPT = [name for name in golden.NAMES if name[4:6] in ("03", "05", "07")]


@pytest.mark.parametrize("name", mostly_slow(golden.NAMES, keep=KEPT[1:2]))
def test_python_loop(name):
    """Step by step with `cell.apply`, and back again with the cell's own vjp."""
    case = load(name)
    cell, params, arrays = case.cell, case.params, case.arrays

    def step(params, memory, x):
        return cell.apply({"params": params}, memory, x)

    @jax.jit
    def forward(params, memory, x):
        return cell.apply({"params": params}, memory, x, mutable=["intermediates"])

    @jax.jit
    def backward(params, memory, x, d_memory, d_y):
        return jax.vjp(step, params, memory, x)[1]((d_memory, d_y))

    memories, memory = [], case.initial_memory
    for t, x in enumerate(case.inputs):
        memories.append(memory)
        (memory, y), captured = forward(params, memory, x)
        close = partial(np.testing.assert_allclose, rtol=0, atol=OUTPUT_ATOL)
        close(y, arrays["outputs"][t])
        close(memory, arrays["memories"][t])
        for gate in ("input_gate", "forget_gate"):
            if cell.gate_style is None:
                assert gate not in captured["intermediates"]
            else:
                (value,) = captured["intermediates"][gate]
                close(value, arrays[f"{gate}s"][t])

    d_memory, d_params, d_inputs = jnp.zeros_like(memory), None, []
    for t in reversed(range(len(case.inputs))):
        d_y = case.loss_weights[t] / case.loss_weights.size
        d_step, d_memory, d_x = backward(params, memories[t], case.inputs[t], d_memory, d_y)
        d_params = d_step if d_params is None else jax.tree.map(jnp.add, d_params, d_step)
        d_inputs.insert(0, d_x)
    golden.assert_close((d_params, jnp.stack(d_inputs), d_memory), case.gradients)


RUN = [(KEPT[0], "RNN hoisted"), *((KEPT[2], run) for run in RUNNERS if run != "RNN hoisted")]


@pytest.mark.parametrize(
    ("name", "runner"), mostly_slow(itertools.product(golden.NAMES, RUNNERS), keep=RUN)
)
def test_sequences(name, runner):
    case = load(name)
    check(case, RUNNERS[runner](case), jax.jit)


# `test_sequences.py` has them for the hoisted scan.
@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "save_products", "chunked"])
@pytest.mark.parametrize("implementation", ["scan", "hoisted"])
def test_remat(implementation, remat):
    case = load(golden.NAMES[1])
    check(case, our_rnn(implementation, remat)(case), jax.jit)


def test_auto_with_all_optimisations(all_optimisations):
    """As users run it: the other tests compile without XLA's optimisations."""
    case = load(golden.NAMES[0])
    check(case, our_rnn("auto")(case), all_optimisations)


@pytest.mark.parametrize("name", golden.NAMES)
def test_default_initial_memory(name):
    case = load(name)
    memory = jax.jit(case.cell.initialize_carry, static_argnums=1)(
        jax.random.key(0), case.inputs.shape[1:]
    )
    assert memory.dtype == jnp.float32
    np.testing.assert_array_equal(memory, case.arrays["default_initial_memory"])


@pytest.mark.parametrize("name", golden.NAMES)
def test_reference_step(name):
    """The NumPy step that other tests lean on, in float64."""
    case = load(name)
    params = {key: value.astype(np.float64) for key, value in to_sonnet(case.params).items()}
    memory = np.asarray(case.initial_memory, np.float64)
    config = case.config
    for t, x in enumerate(np.asarray(case.inputs, np.float64)):
        result = reference.step(
            params,
            x,
            memory,
            heads=config["num_heads"],
            forget_bias=config["forget_bias"],
            input_bias=config["input_bias"],
        )
        memory = result.memory
        close = partial(np.testing.assert_allclose, rtol=0, atol=OUTPUT_ATOL)
        close(memory, case.arrays["memories"][t])
        close(result.output, case.arrays["outputs"][t])
        for gate, value in result.gates.items():
            close(value, case.arrays[f"{gate}_gates"][t])
    np.testing.assert_array_equal(
        reference.initial_memory(*memory.shape), case.arrays["default_initial_memory"]
    )
