"""The Relational Memory Core as a Flax RNN cell."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.checks import check_choice, check_positive, check_shape
from rrnn_jax.gating import GATE_STYLES, MemoryGates, gate_memory
from rrnn_jax.initializers import fan_in_truncated_normal, identity_rows
from rrnn_jax.memory import RelationalMemory
from rrnn_jax.typing import (
    Array,
    Carry,
    Dtype,
    GateStyle,
    Initializer,
    Memory,
    accumulation_dtype,
)


class RelationalMemoryCell(nn.RNNCellBase):
    r"""The Relational Memory Core (RMC) of Santoro et al. 2018, "Relational recurrent networks".

    A recurrent cell whose state is a matrix of S memory slots. At each step the slots attend to
    each other and to the input, pass a row-wise MLP, and are blended into the memory by gates:

    .. math::

        x' &= W_x x + b_x \\
        X &= [M_{t-1}; x'] \\
        X &\leftarrow \mathrm{LN}(X + \mathrm{attention}(X)), \quad
        X \leftarrow \mathrm{LN}(X + \mathrm{MLP}(X)) \qquad (\text{num\_blocks times}) \\
        [i, f] &= x' W_g + b_g + \tanh(M_{t-1}) U_g + c_g \\
        M_t &= \sigma(i + b_i) \circ \tanh(X_{1..S}) + \sigma(f + b_f) \circ M_{t-1} \\
        y_t &= \mathrm{flatten}(M_t)

    This is the formulation of the authors' released module (Sonnet v1 `RelationalMemory`), which
    the paper's footnote 2 makes the exact one. ``gate_style=None`` gives :math:`M_t = X_{1..S}`.

    With ``output_gate=True`` the cell follows the paper's equations 3-9 instead: the state is
    :math:`(m, h)`, the gates see :math:`h_{t-1}`, and

    .. math::

        m_t &= \sigma(f + b_f) \circ m_{t-1} + \sigma(i + b_i) \circ X_{1..S} \\
        h_t &= \sigma(o) \circ \tanh(m_t), \qquad y_t = \mathrm{flatten}(h_t)

    with :math:`h_0 = \tanh(m_0)`, as if the output gate had been open.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> cell = RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2)
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> rnn = nn.RNN(cell)
    >>> variables = rnn.init(jax.random.key(0), x)
    >>> rnn.apply(variables, x).shape  # [B, T, S*F]
    (8, 10, 128)

    Step by step:

    >>> carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
    >>> variables = cell.init(jax.random.key(0), carry, x[:, 0])
    >>> carry, y = cell.apply(variables, carry, x[:, 0])
    >>> carry.shape, y.shape
    ((8, 4, 32), (8, 128))

    ``mutable=["intermediates"]`` captures ``attention_weights`` ``[*B, num_blocks, H, S, S+R]``,
    ``input_gate`` and ``forget_gate`` (and ``output_gate``) ``[*B, S, F]`` or ``[*B, S, 1]``;
    nothing of it is computed or stored otherwise.

    Attributes:
      mem_slots: S, the number of memory slots (default: 8).
      head_size: D (default: 32).
      num_heads: H; the memory is F = H*D wide (default: 8).
      num_blocks: attention blocks per step (default: 1).
      key_size: K, size of queries and keys; ``None`` (default) means D.
      attention_mlp_layers: layers of the row-wise MLP, shared by the blocks (default: 2).
      gate_style: 'unit' (default; a gate for each memory unit), 'memory' (one for each slot) or
        ``None`` (no gates).
      forget_bias: constant added to the forget gate (default: 1.0).
      input_bias: constant added to the input gate (default: 0.0).
      output_gate: the paper's equations 3-9, see above (default: False, as in the authors' code).
      matrix_inputs: inputs are ``[*B, R, I]`` and each of the R rows becomes a memory row of its
        own (default: False: inputs are ``[*B, I]``, R = 1).
      qkv_norm: LayerNorm over the packed queries, keys and values (default: True, as in the
        authors' code; the paper does not have it).
      input_queries: whether input rows attend too, between blocks (default: True, as in the
        authors' code). False is the paper's eq. 2: queries come from the memory alone, and the
        input rows are the same in every block. With one block there is no difference.
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters. With
        bfloat16, norms, softmax, gates and the carried memory stay float32; outputs are bfloat16.
      param_dtype: dtype of the parameters (default: float32).
      kernel_init: initialiser of all weights (default: truncated normal, 1/sqrt(fan-in)).
      bias_init: initialiser of all biases (default: zeros).
      carry_init: initialiser of the memory (default: identity rows).

    Raises:
      ValueError: a size below 1, an unknown `gate_style`, an output gate without a gate style, or
        inputs and carries of the wrong shape.
      TypeError: a size that is not an integer.
    """

    mem_slots: int = 8
    head_size: int = 32
    num_heads: int = 8
    num_blocks: int = 1
    key_size: int | None = None
    attention_mlp_layers: int = 2
    gate_style: GateStyle = "unit"
    forget_bias: float = 1.0
    input_bias: float = 0.0
    output_gate: bool = False
    matrix_inputs: bool = False
    qkv_norm: bool = True
    input_queries: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = identity_rows

    def __post_init__(self) -> None:
        check_positive(
            mem_slots=self.mem_slots,
            head_size=self.head_size,
            num_heads=self.num_heads,
            num_blocks=self.num_blocks,
            attention_mlp_layers=self.attention_mlp_layers,
        )
        if self.key_size is not None:
            check_positive(key_size=self.key_size)
        check_choice("gate_style", self.gate_style, GATE_STYLES)
        if self.output_gate and self.gate_style is None:
            raise ValueError(
                "output_gate=True needs gate_style 'unit' or 'memory', got gate_style=None"
            )
        super().__post_init__()

    @property
    def mem_size(self) -> int:
        """F, the width of a memory slot."""
        return self.num_heads * self.head_size

    @property
    def output_size(self) -> int:
        """S*F, the width of the output."""
        return self.mem_slots * self.mem_size

    @property
    def num_feature_axes(self) -> int:
        """Feature axes of the input: 1, or 2 for matrix inputs."""
        return 2 if self.matrix_inputs else 1

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """The initial memory.

        Args:
          rng: PRNG key for `carry_init`; identity rows ignore it.
          input_shape: shape of one step's input, ``[*B, I]`` or ``[*B, R, I]``.

        Returns:
          ``[*B, S, F]`` in float32 (wider if the parameters are); the pair (m, h) of such arrays
          with an output gate.
        """
        self._check_input_shape(tuple(input_shape))
        batch = tuple(input_shape)[: -self.num_feature_axes]
        shape = (*batch, self.mem_slots, self.mem_size)
        memory = self.carry_init(rng, shape, accumulation_dtype(self.param_dtype))
        return (memory, jnp.tanh(memory)) if self.output_gate else memory

    @nn.nowrap
    def output_from_carry(self, carry: Carry) -> Array:
        """The output that goes with a carry: its memory (h with an output gate), flattened.

        Args:
          carry: what a step returned, or an initial carry.

        Returns:
          ``[*B, S*F]``, in `dtype` if that is given, else in the carry's.
        """
        state = carry[1] if self.output_gate else carry
        output = state.reshape(*state.shape[:-2], self.output_size)
        return output if self.dtype is None else output.astype(self.dtype)

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Array]:
        """One step.

        Args:
          carry: memory ``[*B, S, F]``, or (m, h) with an output gate.
          inputs: ``[*B, I]``, or ``[*B, R, I]`` with matrix inputs.

        Returns:
          The next carry, of the dtype that came in, and the output ``[*B, S*F]``.
        """
        self.check_step(carry, inputs.shape)
        memory, hidden = carry if self.output_gate else (carry, None)
        options = {
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "kernel_init": self.kernel_init,
            "bias_init": self.bias_init,
        }
        rows = inputs if self.matrix_inputs else inputs[..., None, :]
        rows = nn.Dense(self.mem_size, **options, name="input_projection")(rows)

        stream = accumulation_dtype(rows.dtype, memory.dtype)
        candidate, weights = RelationalMemory(
            self.num_heads,
            self.head_size,
            self.key_size,
            num_blocks=self.num_blocks,
            attention_mlp_layers=self.attention_mlp_layers,
            qkv_norm=self.qkv_norm,
            input_queries=self.input_queries,
            **options,
            name="memory",
        )(memory.astype(stream), rows.astype(stream))
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention_weights", jnp.stack(weights, axis=-4))

        new_carry = self._gate(memory, hidden, candidate, rows, options)
        return new_carry, self.output_from_carry(new_carry)

    def _gate(
        self, memory: Memory, hidden: Array | None, candidate: Memory, rows: Array, options: dict
    ) -> Carry:
        """Blends the candidate into the memory."""
        if self.gate_style is None:
            return candidate.astype(memory.dtype)
        gates = MemoryGates(
            self.gate_style,
            self.forget_bias,
            self.input_bias,
            self.output_gate,
            **options,
            name="gates",
        )(rows, jnp.tanh(memory) if hidden is None else hidden)
        self.sow("intermediates", "input_gate", gates.input)
        self.sow("intermediates", "forget_gate", gates.forget)
        if gates.output is None:
            return gate_memory(gates, jnp.tanh(candidate), memory)
        self.sow("intermediates", "output_gate", gates.output)
        new_memory = gate_memory(gates, candidate, memory)
        new_hidden = gates.output * jnp.tanh(new_memory.astype(gates.output.dtype))
        return new_memory, new_hidden.astype(memory.dtype)

    @nn.nowrap
    def check_step(self, carry: Carry, input_shape: tuple[int, ...]) -> None:
        """Raises unless carry and input fit the cell.

        Args:
          carry: as for a step.
          input_shape: shape of one step's input.
        """
        self._check_input_shape(input_shape)
        self._check_carry(carry, input_shape)

    @nn.nowrap
    def _check_input_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < self.num_feature_axes:
            layout = "[*B, R, I] (matrix_inputs=True)" if self.matrix_inputs else "[*B, I]"
            raise ValueError(f"inputs must have shape {layout}, got {tuple(shape)}")
        if math.prod(shape[-self.num_feature_axes :]) == 0:
            raise ValueError(f"inputs must have at least one feature, got shape {tuple(shape)}")

    @nn.nowrap
    def _check_carry(self, carry: Carry, input_shape: tuple[int, ...]) -> None:
        batch = input_shape[: -self.num_feature_axes]
        shape = (*batch, self.mem_slots, self.mem_size)
        if self.output_gate:
            if not isinstance(carry, tuple) or len(carry) != 2:
                raise TypeError(
                    "carry must be the pair (m, h) because output_gate=True, got "
                    f"{jax.tree.structure(carry)}"
                )
            check_shape("carry[0] (m)", carry[0], shape, "[*B, S, F]")
            check_shape("carry[1] (h)", carry[1], shape, "[*B, S, F]")
        elif not hasattr(carry, "shape"):
            raise TypeError(
                f"carry must be one array [*B, S, F] because output_gate=False, got "
                f"{jax.tree.structure(carry)}"
            )
        else:
            check_shape("carry", carry, shape, "[*B, S, F]")
