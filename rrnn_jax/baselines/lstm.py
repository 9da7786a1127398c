"""The paper's LSTM baseline: one or more layers with skip connections."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.baselines.vector_cell import VectorCell, compute_dtype, dense, lstm_update
from rrnn_jax.checks import check_fields, check_number, check_positive
from rrnn_jax.initializers import lecun_normal
from rrnn_jax.typing import Array, Dtype, Initializer, accumulation_dtype

LSTMCarry = tuple[tuple[Array, Array], ...]
"""For each layer (c, h), ``[*B, features]`` each."""


def orthogonal_gates(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
    """Four concatenated orthogonal matrices, one for each gate, as in Flax's LSTM.

    >>> kernel = orthogonal_gates(jax.random.key(0), (2, 8))
    >>> bool(jnp.allclose(kernel[:, :2] @ kernel[:, :2].T, jnp.eye(2), atol=1e-6))
    True

    Args:
      key: a PRNG key.
      shape: ``(F, 4*F)``.
      dtype: dtype of the result.

    Returns:
      ``[F, 4*F]``.
    """
    init = nn.initializers.orthogonal()
    gate, wide = (shape[0], shape[1] // 4), accumulation_dtype(dtype)  # QR has no other dtypes.
    gates = [init(k, gate, wide) for k in jax.random.split(key, 4)]
    return jnp.concatenate(gates, axis=-1).astype(dtype)


class StackedLSTMCell(VectorCell):
    r"""A stack of LSTM cells with skip connections, as one cell.

    With :math:`h^0_t` empty, L layers, and the forget gate's constant :math:`b_f`,

    .. math::

        i, g, f, o &= W_k [x_t; h^{k-1}_t] + U_k h^k_{t-1} + b_k \\
        c^k_t &= \sigma(f + b_f) \circ c^k_{t-1} + \sigma(i) \circ \tanh(g) \\
        h^k_t &= \sigma(o) \circ \tanh(c^k_t) \\
        y_t &= [h^1_t; \dots; h^L_t]

    Every layer gets the input, and the outputs of all layers are concatenated: paper appendix A.2
    ("skip connections"). Without them a layer gets only the output of the one below, and the last
    layer's output is the output. With ``forget_bias=0`` a layer is Flax's `OptimizedLSTMCell`, with
    the same initial distributions.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN
    >>> rnn = RNN(StackedLSTMCell(features=16, num_layers=2))
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> y, variables = jax.jit(rnn.init_with_output)(jax.random.key(0), x)
    >>> y.shape
    (8, 10, 32)

    Attributes:
      features: width of every layer, or one width for each layer.
      num_layers: L (default: 1, or the number of `features`).
      skip_connections: see above (default: True).
      forget_bias: constant added to the forget gate (default: 1, as in the other models).
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters. Gates and
        states stay in float32 or wider.
      param_dtype: dtype of the parameters (default: float32).
      kernel_init: initialiser of W (default: LeCun normal).
      recurrent_kernel_init: initialiser of U (default: `orthogonal_gates`).
      bias_init: initialiser of b (default: zeros).

    Raises:
      ValueError: a size below 1, numbers of widths and layers that differ, or inputs and carries of
        the wrong shape.
      TypeError: an attribute, inputs or a carry of the wrong type.
    """

    features: int | Sequence[int]
    num_layers: int | None = None
    skip_connections: bool = True
    forget_bias: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = lecun_normal
    recurrent_kernel_init: Initializer = orthogonal_gates
    bias_init: Initializer = nn.initializers.zeros_init()

    def __post_init__(self) -> None:
        if isinstance(self.features, Sequence):
            check_positive(num_layers=len(self.features))
            if self.num_layers not in (None, len(self.features)):
                raise ValueError(
                    f"features must hold one width for each of num_layers={self.num_layers} "
                    f"layers, got {tuple(self.features)}"
                )
            for width in self.features:
                check_positive(features=width)
        else:
            check_positive(features=self.features)
            if self.num_layers is not None:
                check_positive(num_layers=self.num_layers)
        check_number(forget_bias=self.forget_bias)
        check_fields(self, StackedLSTMCell)
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each layer."""
        if isinstance(self.features, Sequence):
            return tuple(self.features)
        return (self.features,) * (self.num_layers or 1)

    @property
    def output_size(self) -> int:
        """The width of the output."""
        return sum(self.widths) if self.skip_connections else self.widths[-1]

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> LSTMCarry:
        """The initial carry, zeros.

        Args:
          rng: ignored.
          input_shape: ``[*B, I]``.

        Returns:
          For each layer (c, h), ``[*B, features]``, in float32 (wider if the parameters are).
        """
        del rng
        batch, dtype = self._batch(input_shape), accumulation_dtype(self.param_dtype)

        def zeros(width: int) -> Array:
            return jnp.zeros((*batch, width), dtype)

        return tuple((zeros(width), zeros(width)) for width in self.widths)

    @nn.nowrap
    def output_from_carry(self, carry: LSTMCarry) -> Array:
        """The output that belongs to a carry, ``[*B, output_size]``."""
        hidden = [h for _, h in carry]
        outputs = jnp.concatenate(hidden, axis=-1) if self.skip_connections else hidden[-1]
        return outputs if self.dtype is None else outputs.astype(self.dtype)

    @nn.compact
    def __call__(self, carry: LSTMCarry, inputs: Array) -> tuple[LSTMCarry, Array]:
        """One step.

        Args:
          carry: the carry, see `initialize_carry`.
          inputs: ``[*B, I]``.

        Returns:
          The next carry, in the dtypes of `carry`, and the output ``[*B, output_size]``, in
          `dtype` if given, else in the carry's.
        """
        carry = self._checked(carry, inputs)
        dtype = compute_dtype(self.dtype, inputs.dtype, self.param_dtype)
        shown = inputs.astype(dtype)
        new_carry, below = [], shown
        for layer, (width, (c, h)) in enumerate(zip(self.widths, carry, strict=True)):
            name = f"layer_{layer}"
            from_input = dense(self, 4 * width, f"{name}_input", dtype)(below)
            recurrent = {"kernel_init": self.recurrent_kernel_init, "use_bias": False}
            from_hidden = dense(self, 4 * width, f"{name}_hidden", dtype, **recurrent)(
                h.astype(dtype)
            )
            stream = accumulation_dtype(dtype, c.dtype)
            packed = from_input.astype(stream) + from_hidden.astype(stream)
            new_c, new_h = lstm_update(packed, c, self.forget_bias)
            new_carry.append((new_c.astype(c.dtype), new_h.astype(h.dtype)))
            below = new_h.astype(dtype)
            if self.skip_connections:
                below = jnp.concatenate([shown, below], axis=-1)
        return tuple(new_carry), self.output_from_carry(tuple(new_carry))
