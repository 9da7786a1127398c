"""The paper's "bank of LSTMs resembling" a Recurrent Entity Network."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.baselines.vector_cell import VectorCell, compute_dtype, dense, lstm_update
from rrnn_jax.checks import check_fields, check_number, check_positive
from rrnn_jax.initializers import fan_in_truncated_normal, normal_rows
from rrnn_jax.typing import Array, Dtype, Initializer, accumulation_dtype

BankCarry = tuple[Array, Array]
"""(c, h), ``[*B, S, F]`` each."""


class LSTMBankCell(VectorCell):
    r"""S LSTM cells with shared weights, distinguished by learned keys, each with its own gate.

    With the key :math:`w_j` of cell j,

    .. math::

        s_t &= W_s x_t + b_s \\
        g_j &= \sigma(s_t \cdot h_{j,t-1} + s_t \cdot w_j) \\
        \tilde c_j, \tilde h_j &=
            \mathrm{LSTM}(W x_t + V w_j + U h_{j,t-1} + b; \; c_{j,t-1}) \\
        c_{j,t} &= c_{j,t-1} + g_j (\tilde c_j - c_{j,t-1}), \quad
        h_{j,t} = h_{j,t-1} + g_j (\tilde h_j - h_{j,t-1}) \\
        y_t &= \textstyle\sum_j h_{j,t}

    From the paper (appendix A.2): a bank of LSTMs that resembles an EntNet, with 2, 4, 6 or 8
    cells and 1024 or 2048 units in total, whose states are summed for the output. Our
    interpretation: "resembles" means the EntNet's shared weights, keys and gates (Henaff et al.
    2017, eq. 2-4, see `EntNetCell`) around an LSTM's update; a gate scales the whole update;
    no normalisation is needed because h is bounded; and h is the state that is summed.

    Without gates (``gated=False``) :math:`g_j = 1`, and cells differ only in their keys.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN
    >>> rnn = RNN(LSTMBankCell(features=16, num_cells=4))  # 64 units in total.
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> y, variables = jax.jit(rnn.init_with_output)(jax.random.key(0), x)
    >>> y.shape
    (8, 10, 16)

    Attributes:
      features: F, width of one cell; the bank has ``S*F`` units in total.
      num_cells: S.
      gated: see above (default: True).
      forget_bias: constant added to the LSTMs' forget gate (default: 1).
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters. Gates and
        states stay in float32 or wider.
      param_dtype: dtype of the parameters (default: float32).
      kernel_init: initialiser of all weights (default: truncated normal, 1/sqrt(fan-in)).
      bias_init: initialiser of all biases (default: zeros).
      key_init: initialiser of the keys ``[S, F]`` (default: normal with deviation 1/sqrt(F)).

    Raises:
      ValueError: a size below 1, or inputs and carries of the wrong shape.
      TypeError: an attribute, inputs or a carry of the wrong type.
    """

    features: int
    num_cells: int
    gated: bool = True
    forget_bias: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    key_init: Initializer = normal_rows

    def __post_init__(self) -> None:
        check_positive(features=self.features, num_cells=self.num_cells)
        check_number(forget_bias=self.forget_bias)
        check_fields(self, LSTMBankCell)
        super().__post_init__()

    @property
    def output_size(self) -> int:
        """The width of the output."""
        return self.features

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> BankCarry:
        """The initial carry, zeros.

        Args:
          rng: ignored.
          input_shape: ``[*B, I]``.

        Returns:
          (c, h), ``[*B, S, F]`` each, in float32 (wider if the parameters are).
        """
        del rng
        shape = (*self._batch(input_shape), self.num_cells, self.features)
        zeros = jnp.zeros(shape, accumulation_dtype(self.param_dtype))
        return zeros, zeros

    @nn.nowrap
    def output_from_carry(self, carry: BankCarry) -> Array:
        """The output that belongs to a carry, ``[*B, F]``."""
        outputs = jnp.sum(carry[1], axis=-2)
        return outputs if self.dtype is None else outputs.astype(self.dtype)

    @nn.compact
    def __call__(self, carry: BankCarry, inputs: Array) -> tuple[BankCarry, Array]:
        """One step.

        Args:
          carry: (c, h), ``[*B, S, F]`` each.
          inputs: ``[*B, I]``.

        Returns:
          The next carry, in the dtypes of `carry`, and the output ``[*B, F]``, in `dtype` if
          given, else in the carry's.
        """
        carry = self._checked(carry, inputs)
        batch = inputs.shape[:-1]
        dtype = compute_dtype(self.dtype, inputs.dtype, self.param_dtype)
        stream = accumulation_dtype(dtype, carry[0].dtype)
        c, h = (leaf.astype(stream) for leaf in carry)
        inputs, width = inputs.astype(dtype), 4 * self.features
        keys = self.param(
            "keys", self.key_init, (self.num_cells, self.features), self.param_dtype
        ).astype(dtype)

        from_input = dense(self, width, "input", dtype)(inputs)[..., None, :].astype(stream)
        from_keys = dense(self, width, "key", dtype, use_bias=False)(keys).astype(stream)
        from_keys = from_keys.reshape((1,) * len(batch) + from_keys.shape)
        hidden = dense(self, width, "hidden", dtype, use_bias=False)(h.astype(dtype))
        packed = hidden.astype(stream) + from_input + from_keys
        new_c, new_h = lstm_update(packed, c, self.forget_bias)
        if self.gated:
            shown = dense(self, self.features, "gate_input", dtype)(inputs).astype(stream)
            met = h + keys.astype(stream).reshape((1,) * len(batch) + keys.shape)
            gate = jax.nn.sigmoid(jnp.sum(shown[..., None, :] * met, axis=-1, keepdims=True))
            new_c, new_h = c + gate * (new_c - c), h + gate * (new_h - h)
        new_carry = new_c.astype(carry[0].dtype), new_h.astype(carry[1].dtype)
        return new_carry, self.output_from_carry(new_carry)
