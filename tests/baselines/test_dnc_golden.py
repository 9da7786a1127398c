"""Parity of the DNC with the authors' module: outputs, every state, and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN
from tests.baselines import golden
from tests.core.golden import assert_close
from tests.grids import mostly_slow

OUTPUT_ATOL = 2e-6
GRADIENT_ATOL, GRADIENT_RTOL = 5e-7, 1e-4


def test_cases_are_found():
    assert len(golden.NAMES) == 3
    kinds = [golden.load(name).config("initial_state_kind") for name in golden.NAMES]
    assert sorted(kinds) == ["random", "random", "zero"]


@pytest.mark.parametrize("name", mostly_slow(golden.NAMES, keep=golden.NAMES[2:]))
def test_outputs_states_and_gradients(name):
    case = golden.load(name)
    rnn = RNN(case.cell, time_major=True)
    weights = jnp.asarray(case.arrays["loss_weights"])

    def loss(params, inputs, state):
        states, outputs = rnn.apply(
            {"params": {"cell": params}}, inputs, initial_carry=state, return_all_carries=True
        )
        return jnp.mean(outputs * weights), (outputs, states)

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    inputs = jnp.asarray(case.arrays["inputs"])
    (value, results), gradients = value_and_grad(
        case.params(), inputs, case.state("initial_state/")
    )

    np.testing.assert_allclose(value, case.arrays["loss"], atol=1e-6)
    expected = (jnp.asarray(case.arrays["outputs"]), case.state("states/"))
    assert_close(results, expected, OUTPUT_ATOL, 0.0)
    expected = (
        case.params("grads/params/"),
        jnp.asarray(case.arrays["grads/inputs"]),
        case.state("grads/initial_state/"),
    )
    assert_close(gradients, expected, GRADIENT_ATOL, GRADIENT_RTOL)


def test_the_zero_state_is_the_initial_carry():
    case = golden.load("dnc_00_zero_state")
    carry = case.cell.initialize_carry(jax.random.key(0), case.arrays["inputs"].shape[1:])
    assert_close(carry, case.state("initial_state/"), 0.0, 0.0)
