"""The gates that blend the candidate memory with the previous one (paper eq. 4-8).

`STYLES` defines the gate styles. The plain scan and ``implementation="hoisted"`` run any of them.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.attention import dense
from rrnn_jax.checks import check_choice, check_fields, check_number
from rrnn_jax.initializers import fan_in_truncated_normal
from rrnn_jax.typing import (
    Array,
    Carry,
    DotGeneral,
    Dtype,
    Initializer,
    Memory,
    accumulation_dtype,
)

GateStyle: TypeAlias = Literal["unit", "memory"]


class Style(NamedTuple):
    """How a gate's values follow from g scalars per slot.

    Attributes:
      width: g, given the width F of the memory.
      spread: pre-activations of a gate from its scalars ``[*B, S, g]``: an array that broadcasts to
        ``[*B, S, F]`` (default: the scalars).
    """

    width: Callable[[int], int]
    spread: Callable[[Array], Array] = lambda scalars: scalars


STYLES: dict[GateStyle, Style] = {
    "unit": Style(width=lambda features: features),
    "memory": Style(width=lambda features: 1),
}


class Gates(NamedTuple):
    """Gate values in (0, 1), each ``[*B, S, F]`` ('unit') or ``[*B, S, 1]`` ('memory').

    >>> Gates(input=jnp.zeros((4, 1)), forget=jnp.ones((4, 1))).output is None
    True
    """

    input: Array
    forget: Array
    output: Array | None = None


def packed_width(gate_style: GateStyle | None, features: int, output_gate: bool) -> int:
    """n*g, the scalars per slot of all gates; 0 without gates.

    >>> packed_width("unit", 256, output_gate=False), packed_width("memory", 256, output_gate=True)
    (512, 3)
    """
    if gate_style is None:
        return 0
    return (3 if output_gate else 2) * STYLES[gate_style].width(features)


def gate_memory(gates: Gates, candidate: Memory, memory: Memory) -> Memory:
    r"""Blends the candidate memory with the previous one (paper eq. 7).

    .. math:: M_t = i \circ \tilde M + f \circ M_{t-1}

    >>> gates = Gates(input=jnp.full((1, 1), 0.5), forget=jnp.full((1, 1), 0.25))
    >>> gate_memory(gates, jnp.full((1, 2), 2.0), jnp.full((1, 2), 4.0))
    Array([[2., 2.]], dtype=float32)

    Args:
      gates: input and forget gates, ``[*B, S, F]`` or ``[*B, S, 1]``.
      candidate: ``[*B, S, F]``, after the tanh.
      memory: the previous memory, ``[*B, S, F]``.

    Returns:
      The next memory, ``[*B, S, F]``, in the dtype of `memory`.
    """
    dtype = gates.input.dtype
    mixed = gates.input * candidate.astype(dtype) + gates.forget * memory.astype(dtype)
    return mixed.astype(memory.dtype)


def gate_values(
    gate_style: GateStyle,
    packed: Array,
    input_bias: float,
    forget_bias: float,
    output_gate: bool,
    sigmoid: Callable[[Array], Array] = jax.nn.sigmoid,
) -> Gates:
    r"""The gates from their summed pre-activations (paper eq. 4-6).

    .. math:: i = \sigma(G_i + b_i), \quad f = \sigma(G_f + b_f), \quad o = \sigma(G_o)

    >>> gate_values("memory", jnp.zeros((4, 2)), 0.0, 0.0, output_gate=False).forget.shape
    (4, 1)

    Args:
      gate_style: see `STYLES`.
      packed: ``[*B, S, n*g]``: input gate, forget gate (Sonnet v1's order), output gate.
      input_bias: constant added to the input gate.
      forget_bias: constant added to the forget gate.
      output_gate: whether there are three gates.
      sigmoid: the logistic function.

    Returns:
      `Gates`, in the dtype of `packed`.
    """
    parts = jnp.split(packed, 3 if output_gate else 2, axis=-1)
    parts = [STYLES[gate_style].spread(part) for part in parts]
    return Gates(
        input=sigmoid(parts[0] + jnp.asarray(input_bias, packed.dtype)),
        forget=sigmoid(parts[1] + jnp.asarray(forget_bias, packed.dtype)),
        output=sigmoid(parts[2]) if output_gate else None,
    )


def next_carry(gates: Gates, candidate: Memory, memory: Memory, hidden: Array | None) -> Carry:
    r"""The memory after a step or, with an output gate, (m, h) (paper eq. 7-8).

    .. math::

        M_t &= i \circ \tanh(\tilde M) + f \circ M_{t-1} &&\text{without an output gate} \\
        m_t &= i \circ \tilde M + f \circ m_{t-1}, \quad h_t = o \circ \tanh(m_t)
        &&\text{with one}

    >>> gates = Gates(input=jnp.ones((1, 1)), forget=jnp.ones((1, 1)))
    >>> next_carry(gates, jnp.zeros((1, 2)), jnp.ones((1, 2)), None)
    Array([[1., 1.]], dtype=float32)

    Args:
      gates: the gates of this step.
      candidate: ``[*B, S, F]``, the result of attention and MLP.
      memory: the previous memory, ``[*B, S, F]``.
      hidden: the previous h with an output gate, else None.

    Returns:
      The next carry, in the dtypes of `memory` and `hidden`.
    """
    if hidden is None or gates.output is None:
        return gate_memory(gates, jnp.tanh(candidate), memory)
    new_memory = gate_memory(gates, candidate, memory)
    new_hidden = gates.output * jnp.tanh(new_memory.astype(gates.output.dtype))
    return new_memory, new_hidden.astype(hidden.dtype)


class MemoryGates(nn.Module):
    r"""Input, forget and (optionally) output gates, one set per slot.

    .. math::

        G &= x' W + b + \mathrm{hidden} \, U + c \\
        i &= \sigma(G_i + b_i), \quad f = \sigma(G_f + b_f), \quad o = \sigma(G_o)

    The input's term is the same for all slots. The packed axis contains the input gate, the forget
    gate (Sonnet v1's order) and the output gate. Sums and sigmoids are computed in float32 or
    wider. Source: paper eq. 4-6.

    >>> import jax, jax.numpy as jnp
    >>> gates = MemoryGates("memory")
    >>> rows, hidden = jnp.ones((2, 1, 16)), jnp.ones((2, 4, 16))
    >>> found, variables = jax.jit(gates.init_with_output)(jax.random.key(0), rows, hidden)
    >>> found.forget.shape
    (2, 4, 1)

    Attributes:
      gate_style: 'unit' (a gate per memory unit) or 'memory' (a gate per slot).
      forget_bias: constant added to the forget gate, on top of the learned biases (default: 1).
      input_bias: the same for the input gate (default: 0).
      output_gate: whether there is an output gate (default: False).
      dtype, param_dtype, kernel_init, bias_init, precision, dot_general: as in
        `flax.linen.Dense`.

    Raises:
      ValueError: `gate_style` is neither 'unit' nor 'memory'.
      TypeError: an attribute of the wrong type.
    """

    gate_style: GateStyle = "unit"
    forget_bias: float = 1.0
    input_bias: float = 0.0
    output_gate: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    precision: jax.lax.PrecisionLike = None
    dot_general: DotGeneral | None = None

    def __post_init__(self) -> None:
        check_choice("gate_style", self.gate_style, tuple(STYLES))
        check_number(forget_bias=self.forget_bias, input_bias=self.input_bias)
        check_fields(self, MemoryGates)
        super().__post_init__()

    @nn.compact
    def __call__(self, input_rows: Array, hidden: Array) -> Gates:
        """Computes the gates.

        Args:
          input_rows: projected input, ``[*B, R, F]``; its rows are flattened into one vector.
          hidden: ``[*B, S, F]``: tanh of the previous memory, or the previous h with an output
            gate.

        Returns:
          `Gates`, in float32 or wider.
        """
        width = packed_width(self.gate_style, hidden.shape[-1], self.output_gate)
        *batch, rows, features = input_rows.shape
        flat_input = input_rows.reshape(*batch, rows * features)
        from_input = dense(width, self, "input")(flat_input)[..., None, :]
        from_memory = dense(width, self, "memory")(hidden)
        dtype = accumulation_dtype(from_memory.dtype)
        packed = from_input.astype(dtype) + from_memory.astype(dtype)
        return gate_values(
            self.gate_style, packed, self.input_bias, self.forget_bias, self.output_gate
        )
