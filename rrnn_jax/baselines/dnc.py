"""The paper's DNC baseline: the Differentiable Neural Computer of Graves et al. 2016."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.baselines.dnc_memory import (
    DNCState,
    access_memory,
    interface_size,
    unpack_interface,
)
from rrnn_jax.baselines.vector_cell import VectorCell, compute_dtype, dense, lstm_update
from rrnn_jax.checks import check_choice, check_fields, check_number, check_positive
from rrnn_jax.initializers import fan_in_truncated_normal
from rrnn_jax.typing import Array, Dtype, Initializer, accumulation_dtype

Controller: TypeAlias = Literal["lstm", "feedforward"]


class DNCCell(VectorCell):
    r"""The Differentiable Neural Computer (Graves et al. 2016, "Hybrid computing using ...").

    A controller reads from and writes to a memory of S rows of width W. With the input x and the
    words r read at the previous step,

    .. math::

        h_t &= \mathrm{controller}([x_t; r_{t-1}]) \\
        M_t, r_t &= \mathrm{access}(M_{t-1}, W_\xi h_t + b_\xi) \\
        y_t &= W_y [h_t; r_t] + b_y

    where `access` addresses the memory by content, by usage (to find free rows) and by the
    order in which rows were written: see `rrnn_jax.baselines.dnc_addressing`.

    Controllers of L layers of width C:

    - ``"lstm"``: the input of layer l is :math:`[x_t; r_{t-1}; h^{l-1}_t; h^l_{t-1}]` and
      :math:`h_t = [h^1_t; \dots; h^L_t]` (Graves et al., Methods, "Controller network").
    - ``"feedforward"``: dense layers with ReLU, and :math:`h_t` is the output of the last one. The
      memory is then the only state. (The paper states only "feed-forward"; this form is ours.)

    Everything follows the authors' released code, including a constant of 1 on the LSTM's forget
    gate and clipping: h (and, in an LSTM, c) and y are clipped to ±`clip_value`.

    The output is not a function of the carry alone. With a mask, `rrnn_jax.RNN` therefore returns
    zeros before the first valid step.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN
    >>> sizes = {"memory_size": 16, "word_size": 8, "num_reads": 2, "num_writes": 1}
    >>> cell = DNCCell(**sizes, controller_size=32, output_size=6)
    >>> rnn = RNN(cell)
    >>> x = jnp.ones((4, 10, 5))  # [B, T, I]
    >>> variables = jax.jit(rnn.init)(jax.random.key(0), x)
    >>> jax.jit(rnn.apply)(variables, x).shape
    (4, 10, 6)

    Attributes:
      memory_size: S, rows of the memory.
      word_size: W, width of a row.
      num_reads: R, read heads.
      num_writes: P, write heads.
      controller_size: C, width of every controller layer.
      output_size: width of the output.
      clip_value: see above; 0 or ``None`` disables clipping (default: 20).
      controller: 'lstm' (default) or 'feedforward'.
      controller_layers: L (default: 1).
      forget_bias: constant added to the LSTM's forget gate (default: 1).
      dtype: dtype of the controller's and the output's products; ``None`` (default) follows inputs
        and parameters. Addressing and memory stay in float32 or wider.
      param_dtype: dtype of the parameters (default: float32).
      kernel_init: initialiser of all weights (default: truncated normal, 1/sqrt(fan-in)).
      bias_init: initialiser of all biases (default: zeros).

    Raises:
      ValueError: a size below 1, a negative `clip_value`, an unknown `controller`, or inputs and
        carries of the wrong shape.
      TypeError: an attribute, inputs or a carry of the wrong type.
    """

    memory_size: int
    word_size: int
    num_reads: int
    num_writes: int
    controller_size: int
    output_size: int
    clip_value: float | None = 20.0
    controller: Controller = "lstm"
    controller_layers: int = 1
    forget_bias: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()

    def __post_init__(self) -> None:
        check_positive(
            memory_size=self.memory_size,
            word_size=self.word_size,
            num_reads=self.num_reads,
            num_writes=self.num_writes,
            controller_size=self.controller_size,
            output_size=self.output_size,
            controller_layers=self.controller_layers,
        )
        check_choice("controller", self.controller, get_args(Controller))
        check_number(forget_bias=self.forget_bias)
        if self.clip_value is not None:
            check_number(clip_value=self.clip_value)
            if not self.clip_value >= 0:  # NaN, too.
                raise ValueError(f"clip_value must be at least 0, got {self.clip_value}")
        check_fields(self, DNCCell)
        super().__post_init__()

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> DNCState:
        """The initial carry, zeros.

        Args:
          rng: ignored.
          input_shape: ``[*B, I]``.

        Returns:
          `DNCState` in float32 (wider if the parameters are).
        """
        del rng
        batch, dtype = self._batch(input_shape), accumulation_dtype(self.param_dtype)

        def zeros(*shape: int) -> Array:
            return jnp.zeros((*batch, *shape), dtype)

        rows, words = self.memory_size, self.word_size
        reads, writes = self.num_reads, self.num_writes
        hidden = zeros(self.controller_size)
        layers = self.controller_layers if self.controller == "lstm" else 0
        return DNCState(
            controller=((hidden, hidden),) * layers,
            read_words=zeros(reads, words),
            memory=zeros(rows, words),
            read_weights=zeros(reads, rows),
            write_weights=zeros(writes, rows),
            link=zeros(writes, rows, rows),
            precedence_weights=zeros(writes, rows),
            usage=zeros(rows),
        )

    @nn.compact
    def __call__(self, carry: DNCState, inputs: Array) -> tuple[DNCState, Array]:
        """One step.

        Args:
          carry: the carry, see `initialize_carry`.
          inputs: ``[*B, I]``.

        Returns:
          The next carry, in the dtypes of `carry`, and the output ``[*B, output_size]``, in the
          dtype of the products.
        """
        carry = self._checked(carry, inputs)
        dtype = compute_dtype(self.dtype, inputs.dtype, self.param_dtype)
        stream = accumulation_dtype(dtype, carry.memory.dtype)
        state = jax.tree.map(lambda leaf: leaf.astype(stream), carry)
        words = (*inputs.shape[:-1], self.num_reads * self.word_size)

        read_words = state.read_words.reshape(words)
        seen = jnp.concatenate([inputs.astype(dtype), read_words.astype(dtype)], axis=-1)
        layers, hidden = self._control(state.controller, seen, stream)

        heads = (self.word_size, self.num_reads, self.num_writes)
        packed = dense(self, interface_size(*heads), "interface", dtype)(hidden).astype(stream)
        state = access_memory(unpack_interface(packed, *heads), state)
        state = state._replace(controller=layers)

        read_words = state.read_words.reshape(words).astype(dtype)
        outputs = dense(self, self.output_size, "output", dtype)(
            jnp.concatenate([hidden, read_words], axis=-1)
        )
        new_carry = jax.tree.map(lambda new, old: new.astype(old.dtype), state, carry)
        return new_carry, self._clip(outputs)

    def _control(
        self, layers: tuple[tuple[Array, Array], ...], seen: Array, stream: Dtype
    ) -> tuple[tuple[tuple[Array, Array], ...], Array]:
        """The controller's next state and its output in the dtype of `seen`."""
        dtype = seen.dtype
        if self.controller == "feedforward":
            hidden = seen
            for layer in range(self.controller_layers):
                layer_of = dense(self, self.controller_size, f"controller_{layer}", dtype)
                hidden = jax.nn.relu(layer_of(hidden))
            return (), self._clip(hidden)
        new_layers, below = [], []
        for layer, (c, h) in enumerate(layers):
            layer_of = dense(self, 4 * self.controller_size, f"controller_{layer}", dtype)
            packed = layer_of(jnp.concatenate([seen, *below[-1:], h.astype(dtype)], axis=-1))
            c, h = map(self._clip, lstm_update(packed.astype(stream), c, self.forget_bias))
            new_layers.append((c, h))
            below.append(h.astype(dtype))
        return tuple(new_layers), jnp.concatenate(below, axis=-1)

    def _clip(self, x: Array) -> Array:
        return jnp.clip(x, -self.clip_value, self.clip_value) if self.clip_value else x
