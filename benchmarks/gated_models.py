"""The gated cells to compare with: Flax's LSTM and GRU, and cuDNN's LSTM.

Each has two sizes: the width of the relational memory's output (S*F units), or its number of
weights.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.flops import gated_work
from benchmarks.jax_programs import Model
from benchmarks.problem import Problem
from benchmarks.program import UnavailableError
from benchmarks.settings import Setting

Match = Literal["width", "params"]
"""The matched quantity: output width or number of weights."""

_CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}
GATES = {"lstm": 4, "gru": 3, "cudnn_lstm": 4}
"""Products of inputs and state, each of the cell's width."""

BIASES = {"lstm": 4, "gru": 4, "cudnn_lstm": 8}
"""Bias vectors, each of the cell's width."""


def gated(problem: Problem, kind: Literal["lstm", "gru"], match: Match) -> Model:
    """`flax.linen.RNN` of an `OptimizedLSTMCell` or a `GRUCell`."""
    width = _width(problem, kind, match)
    cell = _CELLS[kind](width, dtype=problem.setting.array_dtype)
    rnn = nn.RNN(cell)
    init = jax.jit(lambda x: rnn.init(jax.random.key(0), x)["params"])

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return rnn.apply({"params": params}, inputs)  # type: ignore[return-value]

    def step(params: Any, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        return cell.apply({"params": params["cell"]}, carry, x)  # type: ignore[return-value]

    carry = cell.initialize_carry(jax.random.key(0), problem.inputs[:, 0].shape)
    work = functools.partial(gated_work, problem.setting, width, GATES[kind])
    return Model(init(problem.inputs[:, :1]), apply, step, carry, width, False, work)


def cudnn_lstm(problem: Problem, match: Match) -> Model:
    """The LSTM of cuDNN, whole sequences only.

    Raises:
      UnavailableError: there is no GPU, or products are bfloat16.
    """
    if jax.default_backend() != "gpu":
        raise UnavailableError("cuDNN needs a GPU")
    if problem.setting.dtype == "bfloat16":
        raise UnavailableError("cuDNN's LSTM is float32 in JAX")
    from jax.experimental import rnn

    setting = problem.setting
    width = _width(problem, "cudnn_lstm", match)
    sizes = {"input_size": setting.features, "hidden_size": width, "num_layers": 1}
    params = rnn.init_lstm_weight(jax.random.key(0), **sizes, bidirectional=False)
    lengths = jnp.full((setting.batch,), setting.steps, jnp.int32)
    zeros = jnp.zeros((1, setting.batch, width), jnp.float32)

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        options = {"dropout": 0.0, "bidirectional": False}
        found: Any = rnn.lstm(inputs, zeros, zeros, params, lengths, **sizes, **options)
        return found[0]

    work = functools.partial(gated_work, setting, width, 4)
    return Model(params, apply, None, None, width, False, work)


def _width(problem: Problem, kind: str, match: Match) -> int:
    if match == "width":
        return problem.cell.output_size
    count = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    return width_of_size(problem.setting, count, GATES[kind], BIASES[kind])


def width_of_size(setting: Setting, parameters: int, gates: int, biases: int) -> int:
    """The width at which a gated cell has closest to `parameters` weights.

    At width n it has ``gates * n * (I + n) + biases * n`` weights.

    >>> from benchmarks.settings import SETTINGS
    >>> width_of_size(SETTINGS["toy"], parameters=4 * 10 * (5 + 10) + 4 * 10, gates=4, biases=4)
    10
    """

    def size(n: int) -> int:
        return gates * n * (setting.features + n) + biases * n

    linear = setting.features + biases / gates
    root = (math.sqrt(linear**2 + 4 * parameters / gates) - linear) / 2
    return min((max(1, math.floor(root)), math.ceil(root)), key=lambda n: abs(size(n) - parameters))
