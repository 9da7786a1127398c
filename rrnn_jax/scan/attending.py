"""The attention of a step, and its backward pass from the softmax weights.

The products are small, one for each sequence and head. `for_cpu` lays them out as XLA's CPU backend
is quick with: a right side whose last axis is contracted is turned over first. With 4 and 8 numbers
a head a forward pass is 1.06 and 1.03 times as fast so, with 32 it makes no difference (by hand,
interleaved, on one core of an AMD EPYC with AVX2).
"""

from functools import partial

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array, Dtype, accumulation_dtype


def attend(query: Array, key: Array, value: Array, for_cpu: bool) -> tuple[Array, Array]:
    """Attention ``[B, H, Q, D]`` of queries ``[B, H, Q, K]`` to all M rows, and its weights."""
    dtype = accumulation_dtype(query.dtype)
    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    logits = _inner_products(query, key, dtype, for_cpu)
    weights = jax.nn.softmax(logits, axis=-1)
    attended = jnp.einsum(
        "bhqm,bhmd->bhqd", weights.astype(value.dtype), value, preferred_element_type=dtype
    )
    return attended.astype(value.dtype), weights


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def known_attention(query: Array, key: Array, value: Array, weights: Array, for_cpu: bool) -> Array:
    """An array of the shape of `attend`'s, with no meaning, and its backward pass."""
    del key, weights, for_cpu
    return jnp.zeros((*query.shape[:-1], value.shape[-1]), value.dtype)


def _known_attention_fwd(
    query: Array, key: Array, value: Array, weights: Array, for_cpu: bool
) -> tuple:
    result = known_attention(query, key, value, weights, for_cpu)
    return result, (query, key, value, weights)


def _known_attention_bwd(for_cpu: bool, residuals: tuple, g: Array) -> tuple:
    query, key, value, weights = residuals
    dtype = weights.dtype
    d_weights = _inner_products(g, value, dtype, for_cpu)
    d_logits = weights * (d_weights - jnp.sum(weights * d_weights, axis=-1, keepdims=True))
    d_logits = (d_logits * jnp.asarray(query.shape[-1] ** -0.5, dtype)).astype(query.dtype)
    d_query = jnp.einsum("bhqm,bhmk->bhqk", d_logits, key, preferred_element_type=dtype)
    d_key = _turned_product(d_logits, query, dtype, for_cpu)
    d_value = _turned_product(weights.astype(g.dtype), g, dtype, for_cpu)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


known_attention.defvjp(_known_attention_fwd, _known_attention_bwd)


def _inner_products(rows: Array, others: Array, dtype: Dtype, for_cpu: bool) -> Array:
    """Products ``[B, H, Q, M]`` of all rows ``[B, H, Q, D]`` with all others ``[B, H, M, D]``."""
    if for_cpu:
        turned = jax.lax.optimization_barrier(jnp.swapaxes(others, -1, -2))
        return jnp.einsum("bhqd,bhdm->bhqm", rows, turned, preferred_element_type=dtype)
    return jnp.einsum("bhqd,bhmd->bhqm", rows, others, preferred_element_type=dtype)


def _turned_product(x: Array, rows: Array, dtype: Dtype, for_cpu: bool) -> Array:
    """The products ``[B, H, M, D]`` of ``[B, H, Q, M]``, turned over, and rows ``[B, H, Q, D]``.

    For a CPU, one product for the memory's rows and one for the others, which go different ways:
    XLA is slow to take a part of the rows while it swaps heads and rows there.
    """
    # Turned over first: a small batched product that contracts the rows of both sides is slow.
    turned = jax.lax.optimization_barrier(jnp.swapaxes(x, -1, -2))
    parts = jnp.split(turned, (rows.shape[2],), axis=2) if for_cpu else [turned]
    products = [
        jnp.einsum("bhmq,bhqd->bhmd", part, rows, preferred_element_type=dtype)
        for part in parts
        if part.size > 0
    ]
    return jnp.concatenate(products, axis=2)
