"""The Relational Memory Core as a Flax RNN cell."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax import checks
from rrnn_jax.attention import dense, linear_options, norm_options
from rrnn_jax.gating import STYLES, GateStyle, MemoryGates, next_carry
from rrnn_jax.initializers import fan_in_truncated_normal, identity_rows
from rrnn_jax.memory import RelationalMemory
from rrnn_jax.scan.mesh import beside
from rrnn_jax.typing import (
    Array,
    Carry,
    DotGeneral,
    Dtype,
    Initializer,
    Memory,
    accumulation_dtype,
)


class RelationalMemoryCell(nn.RNNCellBase):
    r"""The Relational Memory Core (RMC) of "Relational recurrent neural networks" (2018).

    A recurrent cell whose state is a matrix of S memory slots. At each step the slots attend to
    each other and to the input, a row-wise MLP is applied, and gates blend the result into the
    memory:

    .. math::

        x' &= W_x x + b_x \\
        X &= [M_{t-1}; x'] \\
        X &\leftarrow \mathrm{LN}(X + \mathrm{attention}(X)), \quad
        X \leftarrow \mathrm{LN}(X + \mathrm{MLP}(X)) \qquad (\text{num\_blocks times}) \\
        [i, f] &= x' W_g + b_g + \tanh(M_{t-1}) U_g + c_g \\
        M_t &= \sigma(i + b_i) \circ \tanh(X_{1..S}) + \sigma(f + b_f) \circ M_{t-1} \\
        y_t &= \mathrm{flatten}(M_t)

    This is the formulation of the authors' released module (Sonnet v1 `RelationalMemory`), which
    the paper's footnote 2 names as the exact one. ``gate_style=None`` gives
    :math:`M_t = X_{1..S}`.

    With ``output_gate=True`` the cell follows the paper's equations 3-9 instead: the state is
    :math:`(m, h)`, the gates depend on :math:`h_{t-1}`, and

    .. math::

        m_t &= \sigma(f + b_f) \circ m_{t-1} + \sigma(i + b_i) \circ X_{1..S} \\
        h_t &= \sigma(o) \circ \tanh(m_t), \qquad y_t = \mathrm{flatten}(h_t)

    with :math:`h_0 = \tanh(m_0)`, as with an open output gate.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> cell = RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2)
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> rnn = nn.RNN(cell)
    >>> y, variables = jax.jit(rnn.init_with_output)(jax.random.key(0), x)
    >>> y.shape  # [B, T, S*F]
    (8, 10, 128)

    Step by step:

    >>> carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
    >>> variables = {"params": variables["params"]["cell"]}
    >>> carry, y = jax.jit(cell.apply)(variables, carry, x[:, 0])
    >>> carry.shape, y.shape
    ((8, 4, 32), (8, 128))

    ``mutable=["intermediates"]`` captures ``attention_weights`` ``[*B, num_blocks, H, S, S+R]``,
    ``input_gate`` and ``forget_gate`` (and ``output_gate``) ``[*B, S, F]`` or ``[*B, S, 1]``.
    Otherwise they are not stored.

    Attributes:
      mem_slots: S, the number of memory slots (default: 8).
      head_size: D (default: 32).
      num_heads: H; the width of the memory is F = H*D (default: 8).
      num_blocks: attention blocks per step (default: 1).
      key_size: K, size of queries and keys; ``None`` (default) means D.
      attention_mlp_layers: layers of the row-wise MLP, shared by the blocks (default: 2).
      gate_style: 'unit' (default; a gate for each memory unit), 'memory' (one for each slot) or
        ``None`` (no gates).
      forget_bias: constant added to the forget gate (default: 1.0); not among the parameters.
      input_bias: constant added to the input gate (default: 0.0).
      output_gate: the paper's equations 3-9, see above (default: False, as in the authors' code).
      matrix_inputs: inputs are ``[*B, R, I]``, and the slots attend to each of the R rows (default:
        False: inputs are ``[*B, I]``, R = 1).
      qkv_norm: LayerNorm over the packed queries, keys and values (default: True, as in the
        authors' code; the paper does not have it).
      input_queries: whether input rows attend too, between blocks (default: True, as in the
        authors' code). False is the paper's eq. 2: queries come from the memory alone, and the
        input rows are the same in every block. With one block both are equal.
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters. With
        bfloat16, norms, softmax, gates and the carried memory stay float32; outputs are bfloat16.
      param_dtype: dtype of the parameters (default: float32).
      kernel_init: initialiser of all weights (default: truncated normal, 1/sqrt(fan-in)).
      bias_init: initialiser of all biases (default: zeros).
      carry_init: initialiser of the memory (default: identity rows).
      learned_carry: the initial memory is a parameter ``initial_memory`` ``[S, F]``, initialised by
        `carry_init` and shared by all sequences (default: False). Sequences start from it under
        `RNN` and `flax.linen.RNN`, and so do episodes after a reset under `RNN`.
      norm_scale_init, norm_bias_init: initialisers of the LayerNorms (default: ones, zeros).
      precision: precision of all products, as in `jax.lax.dot_general` (default: JAX's).
      dot_general: the product with weights, for example a quantised one (default:
        `jax.lax.dot_general`). With another one `RNN` runs the plain scan.
      dropout_rate: share of the units of the gated candidate that is dropped; the others are scaled
        by ``1 / (1 - rate)`` (default: 0). With gates the memory itself is never dropped: recurrent
        dropout without memory loss (Semeniuta et al. 2016). It needs an rng ``dropout``. Under
        `RNN` and `flax.linen.RNN`, ``split_rngs={"params": False, "dropout": True}`` draws at each
        step, and ``"dropout": False`` once per sequence.
      deterministic: disables dropout, for evaluation (default: False).

    Raises:
      ValueError: a size below 1, an unknown `gate_style`, an output gate without a gate style, or
        inputs and carries of the wrong shape.
      TypeError: an attribute, inputs or a carry of the wrong type.
    """

    mem_slots: int = 8
    head_size: int = 32
    num_heads: int = 8
    num_blocks: int = 1
    key_size: int | None = None
    attention_mlp_layers: int = 2
    gate_style: GateStyle | None = "unit"
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
    learned_carry: bool = False
    norm_scale_init: Initializer = nn.initializers.ones_init()
    norm_bias_init: Initializer = nn.initializers.zeros_init()
    precision: jax.lax.PrecisionLike = None
    dot_general: DotGeneral | None = None
    dropout_rate: float = 0.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        checks.check_positive(
            mem_slots=self.mem_slots,
            head_size=self.head_size,
            num_heads=self.num_heads,
            num_blocks=self.num_blocks,
            attention_mlp_layers=self.attention_mlp_layers,
        )
        if self.key_size is not None:
            checks.check_positive(key_size=self.key_size)
        checks.check_choice("gate_style", self.gate_style, (*STYLES, None))
        checks.check_rate(dropout_rate=self.dropout_rate)
        checks.check_number(forget_bias=self.forget_bias, input_bias=self.input_bias)
        checks.check_fields(self, RelationalMemoryCell)
        if self.output_gate and self.gate_style is None:
            styles = " or ".join(map(repr, STYLES))
            raise ValueError(f"output_gate=True needs gate_style {styles}, got None")
        super().__post_init__()

    @classmethod
    def from_features(
        cls, features: int, *, mem_slots: int = 8, num_heads: int = 8, **options: Any
    ) -> "RelationalMemoryCell":
        """A cell with a given output width, for code that creates cells by name.

        >>> RelationalMemoryCell.from_features(256, mem_slots=4, num_heads=4).head_size
        16

        Args:
          features: S*F, the width of the output; a multiple of ``mem_slots * num_heads``.
          mem_slots: S.
          num_heads: H.
          **options: other attributes.

        Returns:
          The cell.

        Raises:
          ValueError: `features` is not such a multiple.
          TypeError: a size that is not an integer.
        """
        checks.check_positive(features=features, mem_slots=mem_slots, num_heads=num_heads)
        head_size, rest = divmod(features, mem_slots * num_heads)
        if rest:
            raise ValueError(
                f"features must be a multiple of mem_slots * num_heads = {mem_slots * num_heads}, "
                f"got {features}"
            )
        return cls(mem_slots=mem_slots, head_size=head_size, num_heads=num_heads, **options)

    def setup(self) -> None:
        """Creates the parameter of a learned initial memory."""
        if self.learned_carry:
            shape = (self.mem_slots, self.mem_size)
            self.initial_memory = self.param(
                "initial_memory", self.carry_init, shape, self.param_dtype
            )

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

        A learned one is a variable of the cell. An unbound cell returns its initial value;
        ``cell.apply(variables, rng, input_shape, method="initialize_carry")`` the learned one.

        Args:
          rng: PRNG key for `carry_init`; identity rows ignore it.
          input_shape: shape of one step's input, ``[*B, I]`` or ``[*B, R, I]``.

        Returns:
          ``[*B, S, F]`` in float32 (wider if the parameters are); with an output gate the pair
          (m, h) of such arrays.
        """
        checks.check_tuple("(8, 5)", input_shape=input_shape)
        self._check_input_shape(tuple(input_shape))
        batch = tuple(input_shape)[: -self.num_feature_axes]
        shape = (*batch, self.mem_slots, self.mem_size)
        dtype = accumulation_dtype(self.param_dtype)
        if self.learned_carry and self.scope is not None:
            memory = self.initial_memory.astype(dtype).reshape((1,) * len(batch) + shape[-2:])
        else:
            wanted = shape[-2:] if self.learned_carry else shape
            memory = jnp.asarray(nn.meta.unbox(self.carry_init(rng, wanted, dtype)), dtype)
            checks.check_shape("carry_init's result", memory, wanted, "[*B, S, F]")
        memory = jnp.broadcast_to(memory, shape)
        return (memory, jnp.tanh(memory)) if self.output_gate else memory

    @nn.nowrap
    def output_from_carry(self, carry: Carry) -> Array:
        """The output that belongs to a carry: its memory (h with an output gate), flattened.

        Args:
          carry: a carry returned by a step, or an initial carry.

        Returns:
          ``[*B, S*F]``, in `dtype` if given, else in the carry's dtype.
        """
        state = carry[1] if self.output_gate else carry
        output = state.reshape(*state.shape[:-2], self.output_size)
        return output if self.dtype is None else output.astype(self.dtype)

    @nn.compact
    def __call__(
        self, carry: Carry, inputs: Array, row_mask: Array | None = None
    ) -> tuple[Carry, Array]:
        """One step.

        Args:
          carry: memory ``[*B, S, F]``, or (m, h) with an output gate.
          inputs: ``[*B, I]``, or ``[*B, R, I]`` with matrix inputs.
          row_mask: ``[*B, R]`` bool, with matrix inputs: valid rows (default: all). The attention
            weights of the others are 0, and the gates get x' = 0 for them.

        Returns:
          The next carry, in the dtype of `carry`, and the output ``[*B, S*F]``.
        """
        checks.check_inputs(inputs, self)
        self.check_step(carry, inputs.shape)
        carry = jax.tree.map(jnp.asarray, carry)
        memory, hidden = carry if self.output_gate else (carry, None)
        if row_mask is not None:
            inputs = self._without_rows(inputs, row_mask)
        options = linear_options(self)
        rows = inputs if self.matrix_inputs else inputs[..., None, :]
        rows = dense(self.mem_size, self, "input_projection")(rows)

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
            **norm_options(self),
            name="memory",
        )(memory.astype(stream), rows.astype(stream), row_mask)
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "attention_weights", jnp.stack(weights, axis=-4))

        if row_mask is not None:
            rows = jnp.where(row_mask[..., None], rows, jnp.zeros_like(rows))
        new_carry = self._gate(memory, hidden, candidate, rows, options)
        return new_carry, self.output_from_carry(new_carry)

    def _gate(
        self, memory: Memory, hidden: Array | None, candidate: Memory, rows: Array, options: dict
    ) -> Carry:
        """Blends the candidate into the memory."""
        kept = self.kept(candidate.shape)
        if self.gate_style is None:
            return self.dropout(candidate, kept).astype(memory.dtype)
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
        gates = gates._replace(input=self.dropout(gates.input, kept))
        if gates.output is not None:
            self.sow("intermediates", "output_gate", gates.output)
        return next_carry(gates, candidate, memory, hidden)

    def kept(self, shape: tuple[int, ...]) -> Array | None:
        """The units ``[*B, S, F]`` bool that dropout keeps at a step; None without dropout."""
        if self.dropout_rate == 0.0 or self.deterministic or self.is_initializing():
            return None
        return jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.dropout_rate, shape)

    @nn.nowrap
    def dropout(self, x: Array, kept: Array | None) -> Array:
        """``[*B, S, F]`` or ``[*B, S, 1]``, scaled where `kept` and 0 elsewhere."""
        if kept is None:
            return x
        kept = beside(kept, x, range(x.ndim - 1))
        scaled = jnp.broadcast_to(x / jnp.asarray(1.0 - self.dropout_rate, x.dtype), kept.shape)
        return jnp.where(kept, scaled, jnp.zeros_like(scaled))

    @nn.nowrap
    def _without_rows(self, inputs: Array, row_mask: Array) -> Array:
        """Inputs whose masked rows cannot reach a gradient, not even as NaN."""
        if not self.matrix_inputs:
            raise ValueError("row_mask needs matrix_inputs=True: a vector is a single row")
        checks.check_bool("row_mask", row_mask, "[*B, R]")
        checks.check_shape("row_mask", row_mask, inputs.shape[:-1], "[*B, R]")
        return jnp.where(row_mask[..., None], inputs, jnp.zeros((), inputs.dtype))

    @nn.nowrap
    def check_step(self, carry: Carry, input_shape: tuple[int, ...], name: str = "carry") -> None:
        """Raises unless carry and input fit the cell.

        Args:
          carry: as for a step.
          input_shape: shape of one step's input.
          name: the caller's name of the carry.
        """
        self._check_input_shape(input_shape)
        batch = input_shape[: -self.num_feature_axes]
        shape = (*batch, self.mem_slots, self.mem_size)
        parts = {name: carry}
        if self.output_gate:
            if not isinstance(carry, tuple) or len(carry) != 2:
                raise TypeError(
                    f"{name} must be the pair (m, h) because output_gate=True, got "
                    f"{jax.tree.structure(carry)}"
                )
            parts = {f"{name}[0] (m)": carry[0], f"{name}[1] (h)": carry[1]}
        reason = "" if self.output_gate else " because output_gate=False"
        for part, array in parts.items():
            if not hasattr(array, "shape"):
                raise TypeError(
                    f"{part} must be one array [*B, S, F]{reason}, got {jax.tree.structure(array)}"
                )
            checks.check_shape(part, array, shape, "[*B, S, F]")
            checks.check_floating(part, array)

    @nn.nowrap
    def _check_input_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) < self.num_feature_axes:
            layout = "[*B, R, I] (matrix_inputs=True)" if self.matrix_inputs else "[*B, I]"
            raise ValueError(f"inputs must have shape {layout}, got {tuple(shape)}")
        if 0 in shape[-self.num_feature_axes :]:
            raise ValueError(f"inputs must have at least one feature, got shape {tuple(shape)}")
