"""Penalties on the activations of a recurrent network."""

import jax.numpy as jnp

from rrnn_jax.checks import check_shape
from rrnn_jax.typing import Array


def activation_regularisation(dropped: Array, outputs: Array, alpha: float, beta: float) -> Array:
    r"""Penalties for large activations, and for activations that change fast (Merity et al. 2017).

    .. math::

        \alpha \, \mathrm{mean}(\tilde h_{b,t,f}^2)
        + \beta \, \mathrm{mean}((h_{b,t+1,f} - h_{b,t,f})^2)

    with the second mean over the T - 1 pairs of neighbours (none for T = 1). Merity, McCann &
    Socher, "Revisiting activation regularization for language RNNs", equations 1 and 2, as in
    AWD-LSTM: means of squares, the first of the outputs after dropout.

    >>> import jax.numpy as jnp
    >>> h = jnp.array([[[1.0], [3.0]]])  # [B, T, F]
    >>> float(activation_regularisation(h, h, alpha=2.0, beta=1.0))  # 2 * (1 + 9) / 2 + (3 - 1)^2
    14.0

    Args:
      dropped: ``[*B, T, F]``, outputs after dropout.
      outputs: ``[*B, T, F]``, outputs before dropout.
      alpha: weight of the first penalty.
      beta: weight of the second.

    Returns:
      A float32 scalar to add to the loss.

    Raises:
      ValueError: shapes that differ.
    """
    check_shape("outputs", outputs, dropped.shape, "[*B, T, F]")
    penalty = alpha * jnp.mean(jnp.square(dropped.astype(jnp.float32)))
    if outputs.shape[-2] < 2:
        return penalty
    steps = jnp.diff(outputs.astype(jnp.float32), axis=-2)
    return penalty + beta * jnp.mean(jnp.square(steps))
