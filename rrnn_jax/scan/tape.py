"""The operations of a step, done for the first time or gone through again for the gradient.

`Record` computes, and remembers what the backward pass will want of each operation. `Replay` is
given that, and computes no value that it does not need: the result of a product or of an attention
is looked at by a norm, a ReLU or a gate only, and what those made of it is known. Its operations
have the known values in their backward passes, so that `jax.vjp` of a replayed step is the backward
pass one would write by hand.

Both offer the same operations (`Operations`), and a step is written once in terms of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rrnn_jax.attention import LAYER_NORM_EPSILON
from rrnn_jax.scan.attending import attend, known_attention
from rrnn_jax.scan.reductions import sum_rows, weighted_mean
from rrnn_jax.typing import Array

if TYPE_CHECKING:
    from rrnn_jax.scan.plan import Plan


class Operations(Protocol):
    """What a step is made of; see `Record` for the meaning of each."""

    def product(self, name: str, rows: Array, keep: bool = False) -> Array: ...  # noqa: D102
    def bias(self, name: str, rows: Array) -> Array: ...  # noqa: D102
    def norm(self, name: str, rows: Array) -> Array: ...  # noqa: D102
    def relu(self, rows: Array) -> Array: ...  # noqa: D102
    def sigmoid(self, x: Array) -> Array: ...  # noqa: D102
    def attend(self, query: Array, key: Array, value: Array) -> Array: ...  # noqa: D102


class Weights(NamedTuple):
    """What the operations of a step use.

    Attributes:
      kernels: in the dtype of the products, ``[F, N]`` each, by name.
      vectors: biases and scales, by name.
    """

    kernels: Mapping[str, Array]
    vectors: Mapping[str, Array]


class Record:
    """Computes; `saved` is what a `Replay` needs, `names` and `shapes` tell of the products.

    With ``plan.turned`` the kernels are turned over, ``[N, F]``.
    """

    def __init__(self, weights: Weights, plan: Plan) -> None:
        self.weights, self.plan, self.dtype = weights, plan, plan.dtype
        self.names: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.saved: list[Any] = []

    def product(self, name: str, rows: Array, keep: bool = False) -> Array:
        """Rows ``[B, N, F]`` times the kernel of that name; `keep` if the values are looked at."""
        rows = rows.astype(self.dtype)
        result = _multiply(rows, self.weights.kernels[name], self.plan.turned)
        self.names.append(name)
        self.shapes.append(result.shape)
        self.saved.append(result if keep else None)
        return result

    def bias(self, name: str, rows: Array) -> Array:
        """Rows with the bias of that name added."""
        return rows + as_rows(self.weights.vectors[f"{name}/bias"], rows)

    def norm(self, name: str, rows: Array) -> Array:
        """LayerNorm over the last axis with the scale and bias of that name."""
        normal, rstd = normalise(rows)
        self.saved.append((normal.astype(self.dtype), rstd))
        return _affine(normal, self.weights.vectors, name)

    def relu(self, rows: Array) -> Array:
        """ReLU, in the dtype of the products, which is what comes next."""
        result = jax.nn.relu(rows).astype(self.dtype)
        self.saved.append(result)
        return result

    def sigmoid(self, x: Array) -> Array:
        """The logistic function."""
        result = jax.nn.sigmoid(x)
        self.saved.append(result)
        return result

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """Attention ``[B, H, Q, D]`` of queries ``[B, H, Q, K]`` to all M rows."""
        attended, weights = attend(query, key, value, self.plan.for_cpu)
        self.saved.append(weights)
        return attended


class Replay:
    """Goes through a step again; `operands` are the rows of each product, in order.

    The cotangents of `slots`, one for each product, are those of the products' results: with the
    operands they make the kernels' gradients (`weight_gradient`). What is returned by a product
    that was not kept, or by an attention, has the right shape and no meaning.
    """

    def __init__(self, weights: Weights, plan: Plan, saved: list[Any], slots: list[Array]) -> None:
        self.weights, self.dtype, self.for_cpu = weights, plan.dtype, plan.for_cpu
        self._saved, self._slots = iter(saved), iter(slots)
        self.operands: list[Array] = []

    def product(self, name: str, rows: Array, keep: bool = False) -> Array:
        """See `Record`."""
        known = next(self._saved)
        slot = next(self._slots)
        rows = rows.astype(self.dtype)
        self.operands.append(rows)
        value = known if keep else slot
        return _known_product(rows, self.weights.kernels[name], slot, value)

    def bias(self, name: str, rows: Array) -> Array:
        """See `Record`."""
        return add_bias(rows, self.weights.vectors[f"{name}/bias"], self.for_cpu)

    def norm(self, name: str, rows: Array) -> Array:
        """See `Record`."""
        normal, rstd = next(self._saved)
        vectors = self.weights.vectors
        scale, bias = vectors[f"{name}/scale"], vectors[f"{name}/bias"]
        return _known_norm(rows, scale, bias, normal.astype(rows.dtype), rstd, self.for_cpu)

    def relu(self, rows: Array) -> Array:
        """See `Record`."""
        return _known_relu(rows, next(self._saved))

    def sigmoid(self, x: Array) -> Array:
        """See `Record`."""
        return _known_sigmoid(x, next(self._saved))

    def attend(self, query: Array, key: Array, value: Array) -> Array:
        """See `Record`."""
        return known_attention(query, key, value, next(self._saved), self.for_cpu)


def normalise(x: Array) -> tuple[Array, Array]:
    """Rows of zero mean and unit variance, and what they were multiplied by, ``[..., 1]``."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    rstd = jax.lax.rsqrt(variance + jnp.asarray(LAYER_NORM_EPSILON, x.dtype))
    return centred * rstd, rstd


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def add_bias(rows: Array, bias: Array, by_products: bool) -> Array:
    """Rows ``[..., N]`` with a bias ``[N]`` added; `by_products`: see `reductions`."""
    del by_products
    return rows + as_rows(bias, rows)


def _add_bias_fwd(rows: Array, bias: Array, by_products: bool) -> tuple[Array, Array]:
    return add_bias(rows, bias, by_products), bias


def _add_bias_bwd(by_products: bool, bias: Array, g: Array) -> tuple[Array, Array]:
    return g, sum_rows(g, by_products).astype(bias.dtype)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, by_products: bool) -> Array:
    """LayerNorm over the last axis in the dtype of `x`, with a backward pass of two row sums.

    `by_products`: see `reductions`.
    """
    return _layer_norm_fwd(x, scale, bias, by_products)[0]


def _layer_norm_fwd(x: Array, scale: Array, bias: Array, by_products: bool) -> tuple[Array, tuple]:
    del by_products
    # One array for what comes next and for the backward pass: else XLA makes it twice, and keeps
    # `x` as well until then.
    normal, rstd = jax.lax.optimization_barrier(normalise(x))
    return normal * as_rows(scale, x) + as_rows(bias, x), (normal, rstd, scale, bias)


def _layer_norm_bwd(by_products: bool, residuals: tuple, g: Array) -> tuple[Array, Array, Array]:
    normal, rstd, scale, bias = residuals
    projected = g * normal
    if by_products:
        projected = jax.lax.optimization_barrier(projected)
    d_scale = sum_rows(projected, by_products=False).astype(scale.dtype)
    d_bias = sum_rows(g, by_products=False).astype(bias.dtype)
    wide = scale.astype(g.dtype)
    mean = weighted_mean(g, wide, by_products)
    projection = weighted_mean(projected, wide, by_products)
    return rstd * (g * as_rows(wide, g) - mean - normal * projection), d_scale, d_bias


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def as_rows(vector: Array, like: Array) -> Array:
    """A vector that broadcasts against the last axis of `like`, in its dtype."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _affine(normal: Array, vectors: Mapping[str, Array], name: str) -> Array:
    scale, bias = vectors[f"{name}/scale"], vectors[f"{name}/bias"]
    return normal * as_rows(scale, normal) + as_rows(bias, normal)


def _multiply(rows: Array, kernel: Array, turned: bool) -> Array:
    contracting = (rows.ndim - 1,), (1 if turned else 0,)
    return jax.lax.dot_general(rows, kernel, (contracting, ((), ())))


@jax.custom_vjp
def _known_product(rows: Array, kernel: Array, slot: Array, value: Array) -> Array:
    del rows, kernel, slot
    return value


def _known_product_fwd(rows: Array, kernel: Array, slot: Array, value: Array) -> tuple:
    del rows, slot
    return value, kernel


def _known_product_bwd(kernel: Array, g: Array) -> tuple:
    d_rows = jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))
    return d_rows, None, g, None


_known_product.defvjp(_known_product_fwd, _known_product_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _known_norm(
    x: Array, scale: Array, bias: Array, normal: Array, rstd: Array, by_products: bool
) -> Array:
    return _known_norm_fwd(x, scale, bias, normal, rstd, by_products)[0]


def _known_norm_fwd(
    x: Array, scale: Array, bias: Array, normal: Array, rstd: Array, by_products: bool
) -> tuple:
    del x, by_products
    result = normal * as_rows(scale, normal) + as_rows(bias, normal)
    return result, (normal, rstd, scale, bias)


def _known_norm_bwd(by_products: bool, residuals: tuple, g: Array) -> tuple:
    return *_layer_norm_bwd(by_products, residuals, g), None, None


_known_norm.defvjp(_known_norm_fwd, _known_norm_bwd)


@jax.custom_vjp
def _known_relu(x: Array, result: Array) -> Array:
    del x
    return result


def _known_relu_fwd(x: Array, result: Array) -> tuple:
    return result, (result, jnp.zeros((0,), x.dtype))


def _known_relu_bwd(residuals: tuple, g: Array) -> tuple:
    result, like = residuals
    return jnp.where(result > 0, g, jnp.zeros_like(g)).astype(like.dtype), None


_known_relu.defvjp(_known_relu_fwd, _known_relu_bwd)


@jax.custom_vjp
def _known_sigmoid(x: Array, result: Array) -> Array:
    del x
    return result


def _known_sigmoid_fwd(x: Array, result: Array) -> tuple:
    del x
    return result, result


def _known_sigmoid_bwd(result: Array, g: Array) -> tuple:
    return g * result * (1 - result), None


_known_sigmoid.defvjp(_known_sigmoid_fwd, _known_sigmoid_bwd)
