"""Initialisers: the authors' weights and the initial memory."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array, Dtype

# `variance_scaling` scales a truncated normal so that its deviation after truncation is the
# requested one; Sonnet v1 does not. 0.8796 is the deviation of a unit normal truncated at two.
_TRUNCATION = 0.87962566103423978
_variance_scaling = jax.nn.initializers.variance_scaling(
    _TRUNCATION**2, "fan_in", "truncated_normal"
)
# Initialisers made by JAX's factories cannot be pickled; the functions below can.
_lecun_normal = jax.nn.initializers.lecun_normal()
_normal_rows = jax.nn.initializers.variance_scaling(
    1.0, "fan_in", "normal", in_axis=-1, out_axis=-2
)


def fan_in_truncated_normal(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32):
    r"""Normal with deviation :math:`1/\sqrt{\text{fan-in}}`, cut at two deviations (Sonnet v1).

    >>> import jax
    >>> fan_in_truncated_normal(jax.random.key(0), (256, 64)).shape
    (256, 64)

    Args:
      key: a PRNG key.
      shape: ``[fan_in, fan_out]``.
      dtype: dtype of the result.

    Returns:
      An array of the given shape; no entry exceeds ``2 / sqrt(fan_in)`` in magnitude.
    """
    return _variance_scaling(key, shape, dtype)


def lecun_normal(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
    """`jax.nn.initializers.lecun_normal`, as a named function.

    >>> lecun_normal(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """
    return _lecun_normal(key, shape, dtype)


def normal_rows(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
    r"""Normal with deviation :math:`1/\sqrt F`, for keys ``[S, F]``.

    >>> normal_rows(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """
    return _normal_rows(key, shape, dtype)


def identity_rows(key: Array | None, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    r"""The initial memory of the authors' module: row i is the i-th unit vector.

    Slots must start different: rows share all weights, so equal rows stay equal. With more slots
    than columns (S > F) rows F and up are zero.

    >>> identity_rows(None, (1, 2, 3))
    Array([[[1., 0., 0.],
            [0., 1., 0.]]], dtype=float32)

    Args:
      key: ignored; part of the initialiser signature.
      shape: ``[*B, S, F]``.
      dtype: dtype of the result.

    Returns:
      The S x S identity, zero-padded or truncated to F columns, for each batch element.

    Raises:
      ValueError: fewer than two axes.
    """
    del key
    if len(shape) < 2:
        raise ValueError(f"shape must be [*B, S, F], got {shape}")
    return jnp.broadcast_to(jnp.eye(*shape[-2:], dtype=dtype), shape)
