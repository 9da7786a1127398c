"""Multi-head dot-product attention (paper eq. 1-2), as a function and as a Linen module."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.checks import (
    check_bool,
    check_fields,
    check_floating,
    check_positive,
    check_shape,
)
from rrnn_jax.initializers import fan_in_truncated_normal
from rrnn_jax.typing import Array, DotGeneral, Dtype, Initializer, accumulation_dtype, widest

LAYER_NORM_EPSILON = 1e-5  # Sonnet v1 `LayerNorm`


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Array, Array]:
    r"""Scaled dot-product attention of every head, with its weights (paper eq. 1-2).

    .. math:: A = \mathrm{softmax}(Q K^\top / \sqrt{d_k}), \qquad \tilde M = A V

    The softmax is taken in float32 or wider, whatever the dtype of the arguments; products
    accumulate in the same dtype.

    >>> import jax, jax.numpy as jnp
    >>> q = jnp.ones((2, 3, 4, 5))  # [B, queries, H, K]
    >>> kv = jnp.ones((2, 6, 4, 5))  # [B, rows, H, K]
    >>> attended, weights = dot_product_attention(q, kv, kv)
    >>> attended.shape, weights.shape
    ((2, 3, 4, 5), (2, 4, 3, 6))

    Args:
      query: ``[*B, Q, H, K]``.
      key: ``[*B, M, H, K]``.
      value: ``[*B, M, H, D]``.
      mask: ``[*B, M]`` bool: rows that may be attended to, at least one (default: all). The others
        must be finite; their weights are 0.
      precision: precision of the products, as in `jax.lax.dot_general`.

    Returns:
      ``attended [*B, Q, H, D]`` in the dtype of `value`, and the attention weights
      ``[*B, H, Q, M]`` in float32 or wider; each row of weights sums to one.

    Raises:
      ValueError: incompatible shapes.
      TypeError: a mask that is not bool, or another argument that is not floating-point.
    """
    query, key, value = map(jnp.asarray, (query, key, value))
    for name, array in (("query", query), ("key", key), ("value", value)):
        check_floating(name, array)
    if query.ndim < 3:
        raise ValueError(f"query must have shape [*B, Q, H, K], got {query.shape}")
    *batch, _, heads, key_size = query.shape
    rows = key.shape[-3] if key.ndim >= 3 else 0
    check_shape("key", key, (*batch, rows, heads, key_size), "[*B, M, H, K]")
    check_shape("value", value, (*batch, rows, heads, value.shape[-1]), "[*B, M, H, D]")
    dtype = accumulation_dtype(query.dtype, key.dtype, value.dtype)
    scale = jnp.asarray(key_size**-0.5, query.dtype)
    product = partial(jnp.einsum, precision=precision, preferred_element_type=dtype)
    logits = product("...qhk,...mhk->...hqm", query * scale, key)
    if mask is not None:
        check_bool("mask", mask, "[*B, M]")
        check_shape("mask", mask, (*batch, rows), "[*B, M]")
        logits = masked_logits(logits, mask[..., None, None, :])
    weights = jax.nn.softmax(logits, axis=-1)
    attended = product("...hqm,...mhd->...qhd", weights.astype(value.dtype), value)
    return attended.astype(value.dtype), weights


def masked_logits(logits: Array, mask: Array) -> Array:
    """Finite logits whose softmax is 0 where `mask`, which broadcasts, is False."""
    least = jnp.asarray(jnp.finfo(logits.dtype).min, logits.dtype)
    return jnp.where(jnp.broadcast_to(mask, logits.shape), logits, least)


class MultiHeadAttention(nn.Module):
    r"""Multi-head attention among memory rows, as in the authors' module.

    One projection computes the queries, keys and values of all heads, and one LayerNorm normalises
    them jointly (row by row):

    .. math::

        [q \, k \, v]_{1..H} &= \mathrm{LN}(X W + b) \\
        \mathrm{out} &= \mathrm{concat}_h \; \mathrm{softmax}(q_h k_h^\top / \sqrt K) \, v_h

    There is no output projection. The packed axis contains query (K), key (K) and value (D) of each
    head in turn. Source: paper eq. 1-2; the joint LayerNorm and the biases are those of Sonnet v1's
    `RelationalMemory`.

    >>> import jax, jax.numpy as jnp
    >>> attention = MultiHeadAttention(num_heads=4, head_size=8)
    >>> rows = jnp.ones((2, 5, 32))  # [B, S + R, F]
    >>> variables = jax.jit(attention.init)(jax.random.key(0), rows)
    >>> apply = jax.jit(attention.apply, static_argnames="num_queries")
    >>> out, weights = apply(variables, rows, num_queries=4)
    >>> out.shape, weights.shape
    ((2, 4, 32), (2, 4, 4, 5))

    Attributes:
      num_heads: H.
      head_size: D.
      key_size: K; ``None`` (default) means D.
      qkv_norm: whether to apply the LayerNorm (default: True).
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters. LayerNorm
        and softmax always compute in float32 or wider.
      param_dtype: dtype of the parameters (default: float32).
      kernel_init: initialiser of the projection (default: truncated normal, 1/sqrt(fan-in)).
      bias_init: initialiser of the biases (default: zeros).
      precision, dot_general: as in `flax.linen.Dense`.
      norm_scale_init, norm_bias_init: initialisers of the LayerNorm (default: ones, zeros).

    Raises:
      ValueError: a size below 1, rows of rank below 2, or more queries than rows.
      TypeError: an attribute of the wrong type.
    """

    num_heads: int
    head_size: int
    key_size: int | None = None
    qkv_norm: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    precision: jax.lax.PrecisionLike = None
    dot_general: DotGeneral | None = None
    norm_scale_init: Initializer = nn.initializers.ones_init()
    norm_bias_init: Initializer = nn.initializers.zeros_init()

    def __post_init__(self) -> None:
        check_positive(num_heads=self.num_heads, head_size=self.head_size)
        if self.key_size is not None:
            check_positive(key_size=self.key_size)
        check_fields(self, MultiHeadAttention)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, rows: Array, num_queries: int | None = None, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Attends from each row to all rows.

        Args:
          rows: ``[*B, M, X]``.
          num_queries: only the first `num_queries` rows attend (default: all).
          mask: ``[*B, M]`` bool: rows that may be attended to (default: all).

        Returns:
          ``[*B, Q, H*D]`` and the weights ``[*B, H, Q, M]``.
        """
        if rows.ndim < 2:
            raise ValueError(f"rows must have shape [*B, M, X], got {rows.shape}")
        if num_queries is not None:
            check_positive(num_queries=num_queries)
            if num_queries > rows.shape[-2]:
                raise ValueError(
                    f"num_queries must be at most the number of rows, {rows.shape[-2]}, got "
                    f"{num_queries}"
                )
        key_size = self.head_size if self.key_size is None else self.key_size
        packed = 2 * key_size + self.head_size
        qkv = dense(self.num_heads * packed, self, "qkv")(rows)
        if self.qkv_norm:
            compute_dtype = qkv.dtype
            qkv = qkv.astype(accumulation_dtype(compute_dtype))
            qkv = layer_norm("qkv_norm", self)(qkv).astype(compute_dtype)
        qkv = qkv.reshape(*qkv.shape[:-1], self.num_heads, packed)
        query, key, value = jnp.split(qkv, (key_size, 2 * key_size), axis=-1)
        if num_queries is not None:
            query = query[..., :num_queries, :, :]
        attended, weights = dot_product_attention(query, key, value, mask, self.precision)
        return attended.reshape(*attended.shape[:-2], self.num_heads * self.head_size), weights


def linear_options(module: Any) -> dict[str, Any]:
    """The attributes that a module shares with `flax.linen.Dense`, as arguments."""
    names = ("dtype", "param_dtype", "kernel_init", "bias_init", "precision", "dot_general")
    return {name: getattr(module, name) for name in names}


def dense(features: int, module: Any, name: str) -> nn.Dense:
    """A `flax.linen.Dense` with a module's options that works under strict promotion."""
    return nn.Dense(features, **linear_options(module), promote_dtype=promote, name=name)


def promote(*arrays: Array | None, dtype: Dtype | None = None, inexact: bool = True) -> list:
    """As `flax.linen.dtypes.promote_dtype`, with `widest`."""
    del inexact
    dtype = widest(*(x.dtype for x in arrays if x is not None)) if dtype is None else dtype
    return [None if x is None else x.astype(dtype) for x in arrays]


def norm_options(module: Any) -> dict[str, Any]:
    """The initialisers of a module's norms, as arguments."""
    return {name: getattr(module, name) for name in ("norm_scale_init", "norm_bias_init")}


class LayerNorm(nn.Module):
    """`flax.linen.LayerNorm` over the last axis as in Sonnet, always in float32 or wider.

    The variance is computed from centred values: E[x^2] - E[x]^2 loses precision for narrow rows.

    Attributes:
      param_dtype: dtype of scale and bias.
      scale_init, bias_init: their initialisers.
    """

    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = nn.initializers.ones_init()
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, rows: Array) -> Array:
        """Normalises rows ``[..., N]``."""
        dtype = accumulation_dtype(self.param_dtype, rows.dtype)
        width, lead = rows.shape[-1], (1,) * (rows.ndim - 1)

        def vector(name: str, init: Initializer) -> Array:
            value = self.param(name, init, (width,), self.param_dtype)
            return value.astype(dtype).reshape(*lead, width)

        rows = rows.astype(dtype)
        centred = rows - jnp.mean(rows, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale = jax.lax.rsqrt(variance + jnp.asarray(LAYER_NORM_EPSILON, dtype))
        return centred * (scale * vector("scale", self.scale_init)) + vector("bias", self.bias_init)


def layer_norm(name: str, module: Any) -> LayerNorm:
    """Creates a LayerNorm within a module."""
    return LayerNorm(module.param_dtype, module.norm_scale_init, module.norm_bias_init, name=name)
