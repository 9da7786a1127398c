"""Errors of the cell and its layers: each names the argument, what was expected and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from rrnn_jax import RNN, Bidirectional, RelationalMemoryCell, RNNStack, reset_carry
from rrnn_jax.attention import MultiHeadAttention
from rrnn_jax.gating import MemoryGates
from rrnn_jax.memory import RelationalMemory
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
        ({"kernel_init": "zeros"}, "kernel_init must be an initializer, got 'zeros'"),
        ({"dot_general": 3}, "dot_general must be a function or None, got 3"),
        ({"qkv_norm": "no"}, "qkv_norm must be True or False, got 'no'"),
        ({"learned_carry": 1}, "learned_carry must be True or False, got 1"),
        ({"mem_slots": 4.0}, r"mem_slots must be an integer, got 4\.0 of type float"),
        ({"mem_slots": jnp.int32(4)}, r"mem_slots must be an integer, got Array\(4"),
        ({"num_heads": "4"}, "num_heads must be an integer, got '4' of type str"),
        ({"num_blocks": True}, "num_blocks must be an integer, got True"),
        ({"head_size": None}, "head_size must be an integer, got None"),
    ],
)
def test_types_of_attributes_of_a_cell(options, message):
    with pytest.raises(TypeError, match=message):
        RelationalMemoryCell(**SIZES | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({name: 0}, f"{name} must be at least 1, got 0")
            for name in ("mem_slots", "num_heads", "num_blocks", "key_size", "attention_mlp_layers")
        ),
        ({"head_size": -2}, "head_size must be at least 1, got -2"),
        (
            {"gate_style": "units"},
            "gate_style must be one of 'unit', 'memory', None; got 'units'",
        ),
        ({"gate_style": np.array([1, 2])}, "gate_style must be one of .*; got array"),
        (
            {"gate_style": None, "output_gate": True},
            "output_gate=True needs gate_style 'unit' or 'memory', got None",
        ),
    ],
)
def test_values_of_attributes_of_a_cell(options, message):
    with pytest.raises(ValueError, match=message):
        RelationalMemoryCell(**SIZES | options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MemoryGates("foo"), "gate_style must be one of 'unit', 'memory'; got 'foo'"),
        (lambda: MemoryGates(forget_bias=None), "forget_bias must be a number, got None"),
        (lambda: MultiHeadAttention(2, 4, qkv_norm="no"), "qkv_norm must be True or False"),
        (lambda: MultiHeadAttention(2, 4, dtype="int32"), "dtype must be a floating-point dtype"),
        (lambda: MultiHeadAttention(0, 2), "num_heads must be at least 1, got 0"),
        (lambda: MultiHeadAttention(2, -1), "head_size must be at least 1, got -1"),
        (lambda: MultiHeadAttention(2, 2, key_size=0), "key_size must be at least 1, got 0"),
        (lambda: RelationalMemory(0, 4), "num_heads must be at least 1, got 0"),
        (lambda: RelationalMemory(2, 4, key_size=0), "key_size must be at least 1, got 0"),
        (lambda: RelationalMemory(2, 4, num_blocks=0), "num_blocks must be at least 1, got 0"),
        (
            lambda: RelationalMemory(2, 4, attention_mlp_layers=0),
            "attention_mlp_layers must be at least 1, got 0",
        ),
    ],
)
def test_attributes_of_the_parts_of_a_cell(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    ("cell", "name"),
    [(None, "NoneType"), (RelationalMemoryCell, "<class"), (nn.Dense(3), "Dense"), (4, "int")],
)
def test_a_layer_of_no_cell(cell, name):
    with pytest.raises(
        TypeError, match=rf"cell must be an instance of flax\.linen\.RNNCellBase, got {name}"
    ):
        RNN(cell)


def test_a_rate_that_is_traced():
    def drop(rate):
        return RelationalMemoryCell(**SIZES, dropout_rate=rate).dropout_rate

    with pytest.raises(TypeError, match="dropout_rate must be a number known when tracing, got"):
        jax.eval_shape(drop, 0.5)


def test_attributes_of_a_layer():
    with pytest.raises(TypeError, match="reverse must be True or False, got 'no'"):
        RNN(CELL, reverse="no")
    for name in ("variable_axes", "split_rngs"):
        with pytest.raises(TypeError, match=f"{name} must be a dict, got None"):
            RNN(CELL, **{name: None})


@pytest.mark.parametrize("layer", [RNN(CELL), RNN(CELL, implementation="scan"), nn.RNN(CELL)])
def test_inputs_of_another_width_than_at_first(layer):
    variables = random_variables(RNN(CELL), X)
    with pytest.raises(ValueError, match=r"inputs must have 3 features, as the parameters do, got"):
        layer.apply(variables, jnp.ones((4, 6, 5)))


@pytest.mark.parametrize("implementation", ["scan", "hoisted"])
def test_parameters_of_the_wrong_shape_with_the_path_of_their_layer(implementation):
    class Model(nn.Module):
        def setup(self):
            self.encoder, self.decoder = (
                RNN(RelationalMemoryCell(**SIZES), implementation=implementation) for _ in range(2)
            )

        def __call__(self, x):
            return self.encoder(x) + self.decoder(x)

    model = Model()
    params = random_variables(model, X)["params"]
    layer = params["decoder"]["cell"]["memory"]["mlp"]["layer_0"]
    for wrong in ({"bias": layer["bias"]}, layer | {"kernel": jnp.ones((9, 9))}):
        params["decoder"]["cell"]["memory"]["mlp"]["layer_0"] = wrong
        with pytest.raises(errors.FlaxError, match=r'"kernel" in .*"/decoder/.*/mlp/layer_0"'):
            jax.eval_shape(model.apply, {"params": params}, X)


@pytest.mark.parametrize(
    ("carry", "inputs", "message"),
    [
        (CARRY, [1.0], "inputs must be one array, got list"),
        (CARRY, None, "inputs must be one array, got NoneType"),
        (X[:, 0], CARRY, r"inputs must have 3 features, .* got shape \(4, 2, 16\)"),
        (
            CARRY[:3],
            X[:, 0],
            r"carry must have shape \[\*B, S, F\] = \(4, 2, 16\), got \(3, 2, 16\)",
        ),
    ],
)
def test_arguments_of_a_step(carry, inputs, message):
    params = random_variables(RNN(CELL), X)["params"]["cell"]
    with pytest.raises((TypeError, ValueError), match=message):
        CELL.apply({"params": params}, carry, inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": X.astype(complex)}, "inputs must be real, got complex64"),
        ({"inputs": np.full((4, 6, 3), "a")}, "inputs must be real, got <U1"),
        ({"init_key": 3}, r"init_key must be a key such as jax.random.key\(0\), got 3"),
        ({"resets": "yes"}, "resets must be bool or numbers"),
        (
            {"mask": [[1] * 6] * 4},
            r"mask must be .*, got list; convert numbers by jnp\.asarray\(mask\) != 0",
        ),
        ({"row_mask": X > 0}, r"got RelationalMemoryCell with matrix_inputs=False"),
        (
            {"resets": X[..., 0] > 0, "reset_carry": jnp.zeros((3, 16))},
            r"reset_carry must have shape without \*B = \(2, 16\), got \(3, 16\)",
        ),
        ({"return_carry": True, "method": "run"}, "run takes no argument 'return_carry'"),
        ({"return_carry": "no"}, "return_carry must be True or False, got 'no'"),
        ({"reverse": 1, "method": "run"}, "reverse must be True or False, got 1"),
        ({"return_all_carries": 1, "method": "run"}, "return_all_carries must be True or False"),
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
        (Bidirectional, {"return_all_carries": True}, "RNN, not of Bidirectional"),
        (RNNStack, {"return_all_carries": True}, "RNN, not of RNNStack"),
        (Bidirectional, {"initial_carry": CARRY}, r"a carry for each of 2 directions, got"),
        (Bidirectional, {"reset_carry": [None]}, r"reset_carry must hold a carry for each of 2"),
        (RNNStack, {"initial_carry": CARRY}, r"a carry for each of 2 layers, got PyTreeDef\(\*\)"),
    ],
)
def test_layers_of_several(layer, arguments, message):
    rnns = (RNN(CELL), RNN(CELL.copy()))
    made = layer(rnns) if layer is RNNStack else layer(*rnns)
    with pytest.raises((TypeError, ValueError), match=message):
        jax.eval_shape(lambda: made.init(jax.random.key(0), X, **arguments))


def test_an_empty_stack():
    for rnns, got in (([], r"\(\)"), (RNN(CELL), "RNN")):
        with pytest.raises(ValueError, match=f"rnns must be a list of at least one RNN, got {got}"):
            RNNStack(rnns).init(jax.random.key(0), X)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (RNNStack([CELL]), r"rnns\[0\] must be an RNN, got RelationalMemoryCell"),
        (Bidirectional(CELL, CELL), "forward_rnn must be an RNN, got RelationalMemoryCell"),
        (RNNStack([RNN(CELL), nn.Dense(3)]), r"rnns\[1\] must be an RNN, got Dense"),
    ],
)
def test_layers_of_no_layers(layer, name):
    with pytest.raises(TypeError, match=name):
        layer.init(jax.random.key(0), X)


def test_carries_of_ones_own_loop():
    with pytest.raises(
        TypeError, match=r"cell must be an instance of flax\.linen\.RNNCellBase, got RNN"
    ):
        reset_carry(RNN(CELL), CARRY, FLAGS)
    with pytest.raises(TypeError, match="carry must hold arrays, got None"):
        reset_carry(CELL, None, FLAGS)
    with pytest.raises(TypeError, match=r"batch_shape must be a tuple such as \(8,\), got 4"):
        RNN(CELL).initialize_carry(4)
    with pytest.raises(TypeError, match=r"feature_shape must be a tuple such as \(8,\), got 3"):
        RNN(CELL).initialize_carry((4,), feature_shape=3)
    with pytest.raises(TypeError, match=r"input_shape must be a tuple such as \(8, 5\), got Array"):
        CELL.initialize_carry(jax.random.key(0), X[:, 0])
    flat = CELL.clone(carry_init=lambda key, shape, dtype: jnp.zeros(shape[-1:], dtype))
    with pytest.raises(ValueError, match=r"carry_init's result must have shape .*, got \(16,\)"):
        RNN(flat).initialize_carry((4,))
