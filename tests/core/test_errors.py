"""Errors of the cell and its layers: each names the argument, what was expected and what came."""

import jax
import jax.numpy as jnp
import pytest

from rrnn_jax import RNN, Bidirectional, RelationalMemoryCell, RNNStack, reset_carry
from tests.core.random_variables import random_variables

SIZES = {"mem_slots": 2, "head_size": 8, "num_heads": 2}
CELL = RelationalMemoryCell(**SIZES)
X, FLAGS = jnp.ones((4, 6, 3)), jnp.zeros((4,), bool)
CARRY = jnp.zeros((4, 2, 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": int}, "dtype must be a floating-point dtype, got <class 'int'>"),
        ({"param_dtype": "float33"}, "param_dtype must be a floating-point dtype, got 'float33'"),
        ({"forget_bias": "1"}, "forget_bias must be a number, got '1'"),
        ({"dropout_rate": "a"}, "dropout_rate must be a number, got 'a'"),
        ({"carry_init": 3}, "carry_init must be an initializer, got 3"),
    ],
)
def test_attributes_of_a_cell(options, message):
    with pytest.raises(TypeError, match=message):
        RelationalMemoryCell(**SIZES | options)


@pytest.mark.parametrize("cell", [None, RelationalMemoryCell])
def test_a_layer_of_no_cell(cell):
    with pytest.raises(TypeError, match=r"cell must be a flax\.linen\.RNNCellBase, got"):
        RNN(cell)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": X.astype(complex)}, "inputs must be real, got complex64"),
        ({"resets": "yes"}, "resets must be bool or numbers"),
        ({"row_mask": X > 0}, r"got RelationalMemoryCell with matrix_inputs=False"),
        (
            {"resets": X[..., 0] > 0, "reset_carry": jnp.zeros((3, 16))},
            r"reset_carry must have shape without \*B = \(2, 16\), got \(3, 16\)",
        ),
        ({"return_carry": True, "method": "run"}, "run takes no argument 'return_carry'"),
        ({"carry": 1, "method": "explain"}, "explain takes no argument 'carry'"),
    ],
)
def test_arguments_of_a_call(arguments, message):
    rnn = RNN(CELL)
    variables, arguments = random_variables(rnn, X), {"inputs": X} | arguments
    with pytest.raises((TypeError, ValueError), match=message):
        rnn.apply(variables, arguments.pop("inputs"), **arguments)


@pytest.mark.parametrize(
    ("layer", "arguments", "message"),
    [
        (Bidirectional, {"return_all_carries": True}, "return_all_carries is an argument of RNN"),
        (Bidirectional, {"initial_carry": CARRY}, r"initial_carry must be a pair of carries"),
        (RNNStack, {"initial_carry": CARRY}, r"a carry for each of 2 layers, got PyTreeDef\(\*\)"),
    ],
)
def test_layers_of_several(layer, arguments, message):
    rnns = (RNN(CELL), RNN(CELL.copy()))
    made = layer(rnns) if layer is RNNStack else layer(*rnns)
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(lambda: made.init(jax.random.key(0), X, **arguments))


def test_an_empty_stack():
    with pytest.raises(ValueError, match="rnns must hold at least one RNN"):
        RNNStack([]).init(jax.random.key(0), X)


def test_carries_of_ones_own_loop():
    with pytest.raises(TypeError, match=r"cell must be a flax\.linen\.RNNCellBase, got RNN"):
        reset_carry(RNN(CELL), CARRY, FLAGS)
    with pytest.raises(TypeError, match=r"batch_shape must be a tuple such as \(8,\), got 4"):
        RNN(CELL).initialize_carry(4)
