"""The operations of a step, with derivatives and backward passes that are fast in XLA.

Every rule is a `jax.custom_jvp`, so forward mode, reverse mode and any mixture of them work. `keep`
marks the values that the backward pass needs: `recurrence.py` stores only these (`jax.checkpoint`)
and recomputes all others.

By default JAX transposes the derivative to get the backward pass. On a CPU (``cpu=True``) some of
these are slow in XLA. Backward passes are then given (`linear`), for three reasons, measured on two
cores of an AMD EPYC:

- a product is fast if its left operand has contiguous rows and its right one is not transposed:
  it is cheaper to transpose an array first, behind a barrier so that XLA does not merge the two;
- a sum fused with the product in it is not vectorised: a product with a vector replaces it
  (a training step is 1.04 to 1.09 times as fast at slots of width 256);
- an array that is summed in two ways would be computed twice.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.lax import PrecisionLike

from rrnn_jax.attention import LAYER_NORM_EPSILON, masked_logits
from rrnn_jax.scan.mesh import has_explicit_axes, varying_axes
from rrnn_jax.scan.relational.linear import linear
from rrnn_jax.typing import Array, Dtype, accumulation_dtype

KEPT = "rrnn_jax_kept"
_EXACT = jax.lax.Precision.HIGHEST  # Like a sum, it must not round its terms.


def keep(x: Array) -> Array:
    """Marks a value that the backward pass needs."""
    return checkpoint_name(x, KEPT)


def as_rows(vector: Array, like: Array) -> Array:
    """A vector that broadcasts against the last axis of `like`, in its dtype."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


@partial(jax.custom_jvp, nondiff_argnums=(0, 5))
def multiply(
    cpu: bool,
    rows: Array,
    kernel: Array,
    used: Array,
    used_t: Array | None,
    precision: PrecisionLike = None,
) -> Array:
    """Rows ``[..., F]`` times a kernel.

    Args:
      cpu: see above.
      rows: ``[..., F]``, in the dtype of the product.
      kernel: the differentiated ``[F, N]``, in a wide dtype. Its values are not read.
      used: the same kernel in the dtype of the product; it may be padded with zeros.
      used_t: the same ``[N, F]``, read instead of `used`; or None.
      precision: precision of all products, including the backward pass; as in
        `jax.lax.dot_general`.

    Returns:
      ``[..., N]``.
    """
    del cpu
    return _product(precision, rows, used, used_t, kernel.shape[-1])


@partial(multiply.defjvp, symbolic_zeros=True)
def _multiply_jvp(
    cpu: bool, precision: PrecisionLike, primals: tuple, tangents: tuple
) -> tuple[Array, Any]:
    rows, kernel, used, used_t = primals
    d_rows, d_kernel, *_ = tangents  # `used` is the same kernel, so its tangent is ignored.
    product = _product(precision, rows, used, used_t, kernel.shape[-1])
    terms = []
    if not isinstance(d_rows, SymbolicZero):
        terms.append(_product(precision, d_rows, used, None, kernel.shape[-1]))
    if not isinstance(d_kernel, SymbolicZero):
        terms.append(kernel_term(cpu, rows, d_kernel, product, precision))
    return product, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(product)


def kernel_term(
    cpu: bool, rows: Array, d_kernel: Array, like: Array, precision: PrecisionLike = None
) -> Array:
    """Rows times the tangent of a kernel, `like` ``[..., N]``; its transpose is the gradient.

    The gradient is a product in a wide dtype: devices that divide a batch sum what it returns.
    """
    d_kernel = d_kernel.astype(accumulation_dtype(rows.dtype))  # The dtype of the gradient.
    forward = _in(precision, _by_kernel)
    if not cpu and (rows.dtype == d_kernel.dtype or has_explicit_axes(rows) or varying_axes(rows)):
        return forward(rows, d_kernel)[0]  # JAX's transpose knows the axes of a mesh.
    backward = _in(precision, _gradient_on_cpu if cpu else _gradient)
    return linear(forward, backward, (rows,), (d_kernel,), (like,))[0]


def _by_kernel(precision: PrecisionLike, rows: Array, d_kernel: Array) -> tuple[Array]:
    return (_product(precision, rows, d_kernel.astype(rows.dtype), None, d_kernel.shape[-1]),)


def _gradient(precision: PrecisionLike, rows: Array, g: Array) -> tuple[Array]:
    lead = tuple(range(g.ndim - 1))
    return _wide_product(precision, rows, g, (lead, lead))


def _gradient_on_cpu(precision: PrecisionLike, rows: Array, g: Array) -> tuple[Array]:
    rows = jax.lax.optimization_barrier(jnp.moveaxis(rows, -1, 0))
    lead = tuple(range(g.ndim - 1))
    return _wide_product(precision, rows, g, (tuple(axis + 1 for axis in lead), lead))


def _wide_product(precision: PrecisionLike, rows: Array, g: Array, axes: Any) -> tuple[Array]:
    dtype = accumulation_dtype(rows.dtype)
    dims = axes, ((), ())
    return (jax.lax.dot_general(rows, g, dims, precision, preferred_element_type=dtype),)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def multiply_apart(
    precision: PrecisionLike, rows: Array, used: Array, used_t: Array | None, slot: Array
) -> Array:
    """`multiply` with a kernel that is differentiated elsewhere: `slot` stands for its term.

    Args:
      precision: as in `multiply`.
      rows: as in `multiply`.
      used: as in `multiply`.
      used_t: as in `multiply`.
      slot: shaped like the result. Its values are not read; its tangent is added to the result's.
    """
    return _product(precision, rows, used, used_t, slot.shape[-1])


@multiply_apart.defjvp
def _multiply_apart_jvp(
    precision: PrecisionLike, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    rows, used, used_t, slot = primals
    columns = slot.shape[-1]
    tangent = _product(precision, tangents[0], used, None, columns) + tangents[3]
    return _product(precision, rows, used, used_t, columns), tangent


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def add_bias(cpu: bool, rows: Array, bias: Array) -> Array:
    """Rows ``[..., N]`` with a bias ``[N]`` added."""
    del cpu
    return rows + as_rows(bias, rows)


@add_bias.defjvp
def _add_bias_jvp(cpu: bool, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    rows, bias = primals
    d_rows, d_bias = tangents
    shifted = rows + as_rows(bias, rows)
    d_bias = d_bias.astype(rows.dtype)
    found = _linear(cpu, _plus_bias, _plus_bias_backward, (), (d_rows, d_bias), (shifted,))
    return shifted, found[0]


def _plus_bias(d_rows: Array, d_bias: Array) -> tuple[Array]:
    return (d_rows + as_rows(d_bias, d_rows),)


def _plus_bias_backward(g: Array) -> tuple[Array, Array]:
    lead = g.shape[:-1]
    return g, jnp.tensordot(jnp.ones(lead, g.dtype), g, axes=len(lead), precision=_EXACT)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def layer_norm(cpu: bool, x: Array, scale: Array, bias: Array) -> Array:
    """LayerNorm over the last axis, in the dtype of `x`."""
    del cpu
    normal, _ = _normalise(x)
    return normal * as_rows(scale, x) + as_rows(bias, x)


@layer_norm.defjvp
def _layer_norm_jvp(cpu: bool, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, scale, bias = primals
    normal, rstd = _normalise(x)
    if cpu:
        # One array for the next operation and the backward pass: XLA would compute it twice.
        normal, rstd = jax.lax.optimization_barrier((normal, rstd))
    known = keep(normal), keep(rstd), scale.astype(x.dtype)
    d_x, d_scale, d_bias = (t.astype(x.dtype) for t in tangents)
    y = known[0] * as_rows(scale, x) + as_rows(bias, x)
    return y, _linear(cpu, _norm, _norm_backward, known, (d_x, d_scale, d_bias), (y,))[0]


def _norm(
    normal: Array, rstd: Array, scale: Array, d_x: Array, d_scale: Array, d_bias: Array
) -> tuple[Array]:
    centred = d_x - jnp.mean(d_x, axis=-1, keepdims=True)
    d_normal = rstd * (centred - normal * jnp.mean(normal * d_x, axis=-1, keepdims=True))
    return (d_normal * as_rows(scale, d_x) + normal * as_rows(d_scale, d_x) + as_rows(d_bias, d_x),)


def _norm_backward(normal: Array, rstd: Array, scale: Array, g: Array) -> tuple:
    projected = jax.lax.optimization_barrier(g * normal)
    lead, weights = tuple(range(g.ndim - 1)), scale / g.shape[-1]
    mean, projection = (jnp.dot(x, weights, precision=_EXACT)[..., None] for x in (g, projected))
    d_x = rstd * (g * as_rows(scale, g) - mean - normal * projection)
    return d_x, jnp.sum(projected, axis=lead), jnp.sum(g, axis=lead)


@jax.custom_jvp
def relu(x: Array) -> Array:
    """ReLU, whose derivative is read from its result."""
    return jnp.maximum(x, jnp.zeros_like(x))


@relu.defjvp
def _relu_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y = keep(jnp.maximum(primals[0], jnp.zeros_like(primals[0])))
    return y, jnp.where(y > 0, tangents[0], jnp.zeros_like(y))


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    """The logistic function, whose derivative is read from its result."""
    return jax.nn.sigmoid(x)


@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    y = keep(jax.nn.sigmoid(primals[0]))
    return y, tangents[0] * (y * (1 - y))


@partial(jax.custom_jvp, nondiff_argnums=(0, 5))
def attend(
    cpu: bool,
    query: Array,
    key: Array,
    value: Array,
    present: Array | None,
    precision: PrecisionLike = None,
) -> tuple[Array, Array]:
    """Attention of queries ``[*B, H, Q, K]`` to all M present rows.

    Args:
      cpu: see above.
      query: ``[*B, H, Q, K]``.
      key: ``[*B, H, M, K]``.
      value: ``[*B, H, M, D]``.
      present: ``[*B, M]`` bool, or None for all.
      precision: as in `multiply`.

    Returns:
      ``[*B, H, Q, D]`` in the dtype of `value`, and the weights ``[*B, H, Q, M]`` in float32 or
      wider.
    """
    dtype = accumulation_dtype(query.dtype)
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    logits = _inner_products(precision, cpu, scaled, key, dtype)
    if present is not None:
        logits = masked_logits(logits, present[..., None, None, :])
    weights = jax.nn.softmax(logits, axis=-1)
    attended = _batched_product(precision, weights.astype(value.dtype), value, (-1, -2), dtype)
    return attended.astype(value.dtype), weights


@attend.defjvp
def _attend_jvp(
    cpu: bool, precision: PrecisionLike, primals: tuple, tangents: tuple
) -> tuple[tuple, tuple]:
    query, key, value, present = primals
    attended, weights = attend.fun(cpu, query, key, value, present, precision)
    weights = keep(weights)
    known, results = (query, key, value, weights), (attended, weights)
    # Rows that are not present have weight 0, so the derivative needs no mask.
    forward, backward = _in(precision, _attention), _in(precision, _attention_backward)
    found = _linear(cpu, forward, backward, known, tangents[:3], results)
    return results, tuple(found)


def _attention(
    precision: PrecisionLike,
    query: Array,
    key: Array,
    value: Array,
    weights: Array,
    d_query: Array,
    d_key: Array,
    d_value: Array,
) -> tuple[Array, Array]:
    product = partial(_batched_product, precision)
    scale = jnp.asarray(query.shape[-1] ** -0.5, weights.dtype)
    d_logits = product(d_query, key, (-1, -1)) + product(query, d_key, (-1, -1))
    d_logits = d_logits.astype(weights.dtype) * scale
    d_weights = weights * (d_logits - jnp.sum(weights * d_logits, axis=-1, keepdims=True))
    low = weights.astype(value.dtype)
    d_attended = product(d_weights.astype(value.dtype), value, (-1, -2))
    return d_attended + product(low, d_value, (-1, -2)), d_weights


def _attention_backward(
    precision: PrecisionLike,
    query: Array,
    key: Array,
    value: Array,
    weights: Array,
    g: Array,
    g_weights: Array,
) -> tuple[Array, Array, Array]:
    dtype = weights.dtype
    d_weights = _inner_products(precision, True, g, value, dtype) + g_weights
    d_logits = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
    d_logits = (d_logits * jnp.asarray(query.shape[-1] ** -0.5, dtype)).astype(query.dtype)
    d_query = _batched_product(precision, d_logits, key, (-1, -2), dtype)
    d_key = _transposed_product(precision, d_logits, query, dtype)
    d_value = _transposed_product(precision, weights.astype(g.dtype), g, dtype)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


def _inner_products(
    precision: PrecisionLike, cpu: bool, rows: Array, others: Array, dtype: Dtype
) -> Array:
    """Products ``[*B, H, Q, M]`` of all rows ``[*B, H, Q, D]`` with all others ``[*B, H, M, D]``.

    With a transposition first, a forward pass on a CPU is 1.06 and 1.03 times as fast for head
    sizes 4 and 8; for 32 there is no difference.
    """
    if not cpu:
        return _batched_product(precision, rows, others, (-1, -1), dtype)
    others = jax.lax.optimization_barrier(jnp.swapaxes(others, -1, -2))
    return _batched_product(precision, rows, others, (-1, -2), dtype)


def _transposed_product(precision: PrecisionLike, x: Array, rows: Array, dtype: Dtype) -> Array:
    """The products ``[*B, H, M, D]`` of transposed ``[*B, H, Q, M]`` and rows ``[*B, H, Q, D]``.

    The memory's rows and the others have separate products, because XLA is slow at slicing rows
    while it swaps heads and rows.
    """
    x = jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))
    parts = jnp.split(x, (rows.shape[-2],), axis=-2)
    parts = [part for part in parts if part.shape[-2] > 0]
    products = [_batched_product(precision, part, rows, (-1, -2), dtype) for part in parts]
    return jnp.concatenate(products, axis=-2)


def _normalise(x: Array) -> tuple[Array, Array]:
    """Rows normalised to zero mean and unit variance, and the factor ``[..., 1]``."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    rstd = jax.lax.rsqrt(variance + jnp.asarray(LAYER_NORM_EPSILON, x.dtype))
    return centred * rstd, rstd


def _product(
    precision: PrecisionLike, rows: Array, used: Array, used_t: Array | None, columns: int
) -> Array:
    """Rows times a kernel: the first `columns` of the product. Rows are padded as the kernel is."""
    kernel, axis = (used, 0) if used_t is None else (used_t, 1)
    missing = kernel.shape[axis] - rows.shape[-1]
    if missing:
        rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)])
    dims = ((rows.ndim - 1,), (axis,)), ((), ())
    return jax.lax.dot_general(rows, kernel, dims, precision)[..., :columns]


def _batched_product(
    precision: PrecisionLike, a: Array, b: Array, axes: tuple[int, int], dtype: Any = None
) -> Array:
    """A product for each leading index, contracting one of the last two axes of each side."""
    lead = tuple(range(a.ndim - 2))
    dims = ((a.ndim + axes[0],), (b.ndim + axes[1],)), (lead, lead)
    return jax.lax.dot_general(a, b, dims, precision, preferred_element_type=dtype)


@cache
def _in(precision: PrecisionLike, function: Callable) -> Callable:
    """A function with the precision of its products bound; cached, so that JAX's caches hit."""
    return partial(function, precision)


def _linear(cpu: bool, function: Any, transpose: Any, known: tuple, xs: tuple, like: tuple) -> Any:
    return linear(function, transpose, known, xs, like) if cpu else function(*known, *xs)
