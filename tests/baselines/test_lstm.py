"""The stacked LSTM against flax's own cells, put together by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN
from rrnn_jax.baselines import StackedLSTMCell

X = jax.random.normal(jax.random.key(0), (2, 5, 3))


def test_two_layers_with_skip_connections_by_hand():
    rnn = nn.RNN(StackedLSTMCell(features=(4, 6)))
    variables = rnn.init(jax.random.key(1), X)
    params = variables["params"]["cell"]
    first = nn.RNN(nn.OptimizedLSTMCell(4)).apply({"params": {"cell": params["layer_0"]}}, X)
    second = nn.RNN(nn.OptimizedLSTMCell(6)).apply(
        {"params": {"cell": params["layer_1"]}}, jnp.concatenate([X, first], -1)
    )
    expected = jnp.concatenate([first, second], -1)
    np.testing.assert_allclose(rnn.apply(variables, X), expected, atol=1e-6)


def test_two_layers_without_skip_connections_by_hand():
    rnn = nn.RNN(StackedLSTMCell(features=4, num_layers=2, skip_connections=False))
    variables = rnn.init(jax.random.key(1), X)
    y = X
    for layer in range(2):
        params = {"cell": variables["params"]["cell"][f"layer_{layer}"]}
        y = nn.RNN(nn.OptimizedLSTMCell(4)).apply({"params": params}, y)
    np.testing.assert_allclose(rnn.apply(variables, X), y, atol=1e-6)


def test_one_layer_is_flax_lstm():
    rnn = RNN(StackedLSTMCell(4))
    variables = rnn.init(jax.random.key(1), X)
    inner = {"params": {"cell": variables["params"]["cell"]["layer_0"]}}
    expected = nn.RNN(nn.OptimizedLSTMCell(4)).apply(inner, X)
    np.testing.assert_array_equal(rnn.apply(variables, X), expected)


def test_resets_and_mask_in_rnn():
    rnn = RNN(StackedLSTMCell(4, 2), return_carry=True)
    variables = rnn.init(jax.random.key(1), X)
    resets = jnp.zeros((2, 5), bool).at[:, 2].set(True)
    _, packed = rnn.apply(variables, X, resets=resets)
    _, apart = rnn.apply(variables, X[:, 2:])
    np.testing.assert_allclose(packed[:, 2:], apart, atol=1e-6)
    mask = jnp.ones((2, 5), bool).at[:, 0].set(False).at[:, 4].set(False)
    carry, masked = rnn.apply(variables, X, mask=mask)
    short_carry, short = rnn.apply(variables, X[:, 1:4])
    np.testing.assert_allclose(masked[:, 1:4], short, atol=1e-6)
    np.testing.assert_array_equal(masked[:, 0], jnp.zeros((2, 8)))
    np.testing.assert_array_equal(masked[:, 4], masked[:, 3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry, short_carry)


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_keeps_the_carry_float32():
    rnn = RNN(StackedLSTMCell(4, 2, dtype=jnp.bfloat16), return_carry=True)
    exact = RNN(StackedLSTMCell(4, 2))
    variables = rnn.init(jax.random.key(1), X)
    carry, y = rnn.apply(variables, X)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(carry)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(y.astype(jnp.float32), exact.apply(variables, X), atol=2e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features must be at least 1, got 0"),
        ({"features": 4, "num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"features": (4, 5), "num_layers": 3}, "num_layers=3 layers, got \\(4, 5\\)"),
        ({"features": ()}, "num_layers must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        StackedLSTMCell(**arguments)


def test_bad_carry():
    cell = StackedLSTMCell(4, 2)
    carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    with pytest.raises(ValueError, match="each of 2 layers, got 1"):
        cell.init(jax.random.key(0), carry[:1], X[:, 0])
