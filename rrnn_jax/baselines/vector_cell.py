"""What the baselines share: their base class, linear layers, and the LSTM's state update."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.checks import check_inputs, check_like
from rrnn_jax.typing import Array, Carry, Dtype, accumulation_dtype, widest


class VectorCell(nn.RNNCellBase):
    """The base of cells whose input is a vector, ``[*B, I]``."""

    @property
    def num_feature_axes(self) -> int:
        """Feature axes of the input."""
        return 1

    @nn.nowrap
    def _batch(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The batch axes of inputs ``[*B, I]``."""
        if not input_shape or input_shape[-1] == 0:
            raise ValueError(
                f"inputs must have shape [*B, I] with I >= 1, got {tuple(input_shape)}"
            )
        return tuple(input_shape)[:-1]

    @nn.nowrap
    def _checked(self, carry: Carry, inputs: Any) -> Any:
        """The carry as JAX arrays; raises unless carry and inputs fit the cell."""
        check_inputs(inputs, self)
        like = jax.eval_shape(lambda: self.initialize_carry(jax.random.key(0), inputs.shape))
        check_like("carry", self, carry, like)
        return jax.tree.map(jnp.asarray, carry)


def dense(cell: Any, features: int, name: str, dtype: Dtype, **options: Any) -> nn.Dense:
    """A `flax.linen.Dense` with the initialisers of a cell, unless `options` has others."""
    inits = {"kernel_init": cell.kernel_init, "bias_init": cell.bias_init}
    options = inits | {"param_dtype": cell.param_dtype} | options
    return nn.Dense(features, dtype=dtype, name=name, **options)


def lstm_update(packed: Array, cell: Array, forget_bias: float) -> tuple[Array, Array]:
    r"""The next state of an LSTM from its pre-activations.

    .. math::

        c_t &= \sigma(f + b_f) \circ c_{t-1} + \sigma(i) \circ \tanh(g) \\
        h_t &= \sigma(o) \circ \tanh(c_t)

    >>> packed = jnp.zeros((1, 8))  # Every gate half open, no candidate.
    >>> lstm_update(packed, jnp.ones((1, 2)), forget_bias=0.0)[0]
    Array([[0.5, 0.5]], dtype=float32)

    Args:
      packed: concatenated input gate, candidate, forget gate and output gate, ``[..., 4*F]``
        (Sonnet v1's order).
      cell: c, ``[..., F]``.
      forget_bias: constant added to the forget gate.

    Returns:
      (c, h), ``[..., F]`` each, in float32 or wider.
    """
    dtype = accumulation_dtype(packed.dtype, cell.dtype)
    write, candidate, forget, output = jnp.split(packed.astype(dtype), 4, axis=-1)
    kept = jax.nn.sigmoid(forget + jnp.asarray(forget_bias, dtype)) * cell.astype(dtype)
    new_cell = kept + jax.nn.sigmoid(write) * jnp.tanh(candidate)
    return new_cell, jax.nn.sigmoid(output) * jnp.tanh(new_cell)


def compute_dtype(dtype: Dtype | None, input_dtype: Dtype, param_dtype: Dtype) -> Dtype:
    """The dtype of the products: the requested one, or the widest of inputs and parameters."""
    return widest(input_dtype, param_dtype) if dtype is None else jnp.dtype(dtype)
