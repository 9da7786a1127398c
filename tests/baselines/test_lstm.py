"""The stacked LSTM against a composition of Flax's own cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN
from rrnn_jax.baselines import StackedLSTMCell
from tests.core.random_variables import normal, random_variables

X = normal(np.random.default_rng(0), (2, 5, 3))


def flax_lstm(params, layer, features, x):
    """Flax's own LSTM with the weights of one layer, which has its gates in another order."""
    from_input, hidden = params[f"layer_{layer}_input"], params[f"layer_{layer}_hidden"]
    gates = {}
    for k, gate in enumerate("igfo"):
        columns = slice(k * features, (k + 1) * features)
        gates[f"i{gate}"] = {"kernel": from_input["kernel"][:, columns]}
        gates[f"h{gate}"] = {
            "kernel": hidden["kernel"][:, columns],
            "bias": from_input["bias"][columns],
        }
    return apply(nn.RNN(nn.OptimizedLSTMCell(features)), {"params": {"cell": gates}}, x)


def apply(rnn, variables, x, **options):
    return jax.jit(rnn.apply)(variables, x, **options)


@pytest.mark.parametrize("skip", [True, False])
def test_two_layers_by_hand(skip):
    rnn = nn.RNN(StackedLSTMCell(features=(4, 6), skip_connections=skip, forget_bias=0.0))
    variables = random_variables(rnn, X)
    params = variables["params"]["cell"]
    first = flax_lstm(params, 0, 4, X)
    second = flax_lstm(params, 1, 6, jnp.concatenate([X, first], -1) if skip else first)
    expected = jnp.concatenate([first, second], -1) if skip else second
    np.testing.assert_allclose(apply(rnn, variables, X), expected, atol=1e-6)


def test_forget_bias_is_added_to_the_forget_gate():
    rnn = RNN(StackedLSTMCell(4, forget_bias=0.7))
    variables = random_variables(rnn, X)
    params = dict(variables["params"]["cell"])
    bias = params["layer_0_input"]["bias"]
    shifted = dict(params["layer_0_input"], bias=bias.at[8:12].add(0.7))
    expected = flax_lstm(dict(params, layer_0_input=shifted), 0, 4, X)
    np.testing.assert_allclose(apply(rnn, variables, X), expected, atol=1e-6)
    assert StackedLSTMCell(4).forget_bias == 1.0


def test_initial_weights_have_flax_distributions():
    init = jax.jit(RNN(StackedLSTMCell(64)).init)
    params = init(jax.random.key(3), jnp.ones((1, 1, 100)))["params"]["cell"]
    gates = jnp.split(params["layer_0_hidden"]["kernel"], 4, axis=-1)
    for gate in gates:
        np.testing.assert_allclose(gate @ gate.T, np.eye(64), atol=1e-5)
    assert float(jnp.abs(gates[0] - gates[1]).max()) > 0.1
    deviation = float(jnp.std(params["layer_0_input"]["kernel"]))
    assert abs(deviation - 0.1) < 0.005
    assert float(jnp.abs(params["layer_0_input"]["bias"]).max()) == 0.0


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_inputs_are_not_rounded_between_layers():
    rnn = RNN(StackedLSTMCell(4, 2))
    variables = random_variables(rnn, X)
    x = X.astype(jnp.bfloat16)
    y = apply(rnn, variables, x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, apply(rnn, variables, x.astype(jnp.float32)), atol=1e-6)


def test_bfloat16_parameters_leave_the_carry_float32():
    cell = StackedLSTMCell(4, 2, param_dtype=jnp.bfloat16)
    carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.float32)}
    made = cell.init(jax.random.key(1), carry, jnp.ones((2, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}
    gate = made["params"]["layer_1_hidden"]["kernel"][:, :4].astype(jnp.float32)
    np.testing.assert_allclose(gate @ gate.T, np.eye(4), atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 2.5}, "features must be an integer, got 2.5"),
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"features": 4, "num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"features": (4, 5), "num_layers": 3}, "num_layers=3 layers, got \\(4, 5\\)"),
        ({"features": ()}, "num_layers must be at least 1, got 0"),
        ({"features": 4, "forget_bias": "1"}, "forget_bias must be a number, got '1'"),
        ({"features": 4, "dtype": "int8"}, "dtype must be a floating-point dtype, got 'int8'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        StackedLSTMCell(**arguments)
