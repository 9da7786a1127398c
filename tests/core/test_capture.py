"""Attention and gates that are captured while a loss is differentiated, on every path."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.choices import chosen
from tests.core.test_transparent import CELL, X, assert_close, variables_of
from tests.grids import mostly_slow


@pytest.mark.parametrize(
    ("remat", "time_major"),
    mostly_slow(
        itertools.product(("none", "full", "chunked"), (False, True)),
        keep=[("chunked", True)],
    ),
)
def test_capture_of_the_fast_path_within_a_loss(remat, time_major):
    cell = CELL.clone(num_blocks=2, output_gate=True)
    x = jnp.swapaxes(X, 0, 1) if time_major else X
    variables = variables_of(cell)

    def value_and_gradient(implementation: Any, remat: Any) -> Any:
        rnn = RNN(cell, implementation=implementation, remat=remat, time_major=time_major)

        def loss(variables: Any) -> Any:
            y, state = rnn.apply(variables, x, mutable=["intermediates"])
            weights = state["intermediates"]["cell"]["attention_weights"][0]
            entropy = -jnp.sum(weights * jnp.log(weights + 1e-9))
            return jnp.mean(y**2) + entropy, state

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    assert chosen(RNN(cell), X, capture=True) == "hoisted"
    (_, state), _ = fast = value_and_gradient("auto", remat)
    assert set(state["intermediates"]["cell"]) == {
        "attention_weights",
        "input_gate",
        "forget_gate",
        "output_gate",
    }
    assert_close(fast, value_and_gradient("scan", "none"), 1e-4)


@pytest.mark.parametrize("axis", mostly_slow([0, -1], keep=[-1]))
def test_capture_along_another_axis(axis):
    variables = variables_of(CELL)

    def captured(implementation: Any, **options: Any) -> Any:
        rnn = RNN(CELL, implementation=implementation, **options)
        run = jax.jit(partial(rnn.apply, mutable=["intermediates"]))
        return run(variables, X)[1]["intermediates"]["cell"]

    expected = jax.tree.map(lambda a: jnp.moveaxis(a, 1, axis), captured("scan"))
    for implementation in ("scan", "hoisted"):
        found = captured(implementation, variable_axes={"intermediates": axis})
        assert_close(found, expected, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["scan", "hoisted"])
def test_capture_leaves_remat_in_force(implementation):
    x = jnp.ones((4, 256, 5))
    cell = RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2)
    variables = jax.eval_shape(RNN(cell).init, jax.random.key(0), x)

    def bytes_used(remat: Any, capture: bool) -> int:
        rnn = RNN(cell, remat=remat, implementation=implementation)

        def loss(variables: Any) -> Any:
            if not capture:
                return jnp.mean(rnn.apply(variables, x) ** 2)
            y, state = rnn.apply(variables, x, mutable=["intermediates"])
            return jnp.mean(y**2) + jnp.sum(state["intermediates"]["cell"]["attention_weights"][0])

        program = jax.jit(jax.grad(loss)).lower(variables).compile()
        return program.memory_analysis().temp_size_in_bytes

    captured = bytes_used("full", capture=True)
    assert captured < 0.7 * bytes_used("none", capture=True)
    assert captured < 1.1 * bytes_used("full", capture=False)
