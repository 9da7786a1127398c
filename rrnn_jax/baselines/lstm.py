"""The paper's LSTM baseline: one or more layers with skip connections."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.checks import check_positive
from rrnn_jax.typing import Array, Dtype

LSTMCarry = tuple[tuple[Array, Array], ...]
"""For each layer (c, h), ``[*B, features]`` each."""


class StackedLSTMCell(nn.RNNCellBase):
    r"""A stack of LSTM cells with skip connections, as one cell.

    With :math:`h^0_t` empty and L layers,

    .. math::

        h^k_t &= \mathrm{LSTM}_k([x_t; h^{k-1}_t]) \\
        y_t &= [h^1_t; \dots; h^L_t]

    Every layer sees the input, and the outputs of all layers are concatenated: paper appendix A.2
    ("skip connections"). Without them a layer sees the one below alone, and the last layer's output
    is the output. The layers are flax's own `OptimizedLSTMCell`.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN
    >>> rnn = RNN(StackedLSTMCell(features=16, num_layers=2))
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (8, 10, 32)

    Attributes:
      features: width of every layer, or one width for each layer.
      num_layers: L (default: 1, or as many as `features` has).
      skip_connections: see above (default: True).
      dtype: dtype of the computation; ``None`` (default) follows inputs and parameters.
      param_dtype: dtype of the parameters (default: float32).

    Raises:
      ValueError: a size below 1, or another number of widths than layers.
    """

    features: int | Sequence[int]
    num_layers: int | None = None
    skip_connections: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

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

    @property
    def num_feature_axes(self) -> int:
        """Feature axes of the input."""
        return 1

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> LSTMCarry:
        """Zeros.

        Args:
          rng: ignored.
          input_shape: ``[*B, I]``.

        Returns:
          For each layer (c, h), ``[*B, features]``.
        """
        del rng
        batch = tuple(input_shape)[:-1]

        def zeros(width: int) -> Array:
            return jnp.zeros((*batch, width), self.param_dtype)

        return tuple((zeros(width), zeros(width)) for width in self.widths)

    @nn.nowrap
    def output_from_carry(self, carry: LSTMCarry) -> Array:
        """The output that goes with a carry, ``[*B, output_size]``."""
        hidden = [h for _, h in carry]
        return jnp.concatenate(hidden, axis=-1) if self.skip_connections else hidden[-1]

    @nn.compact
    def __call__(self, carry: LSTMCarry, inputs: Array) -> tuple[LSTMCarry, Array]:
        """One step.

        Args:
          carry: as `initialize_carry` makes it.
          inputs: ``[*B, I]``.

        Returns:
          The next carry, of the dtypes that came in, and the output ``[*B, output_size]``.
        """
        if len(carry) != len(self.widths):
            raise ValueError(
                f"carry must hold (c, h) for each of {len(self.widths)} layers, got {len(carry)}"
            )
        new_carry, below = [], inputs
        for layer, (width, state) in enumerate(zip(self.widths, carry, strict=True)):
            cell = nn.OptimizedLSTMCell(
                width, dtype=self.dtype, param_dtype=self.param_dtype, name=f"layer_{layer}"
            )
            (c, h), output = cell(state, below)
            new_carry.append((c.astype(state[0].dtype), h.astype(state[1].dtype)))
            below = output.astype(inputs.dtype)
            if self.skip_connections:
                below = jnp.concatenate([inputs, below], axis=-1)
        outputs = self.output_from_carry(tuple(new_carry))
        return tuple(new_carry), outputs if self.dtype is None else outputs.astype(self.dtype)
