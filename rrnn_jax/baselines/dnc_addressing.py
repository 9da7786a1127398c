r"""Memory addressing of the Differentiable Neural Computer (Graves et al. 2016, Methods).

Pure functions of arrays. In addition to the package's axis letters, with S the rows of the memory:

======  ====================================
letter  meaning
======  ====================================
``W``   word size, the width of a memory row
``R``   read heads
``P``   write heads
======  ====================================

Weightings are over the rows of the memory: each entry is in [0, 1] and they sum to at most 1. The
formulation is that of the authors' released code, where strengths are ``softplus(.)`` instead of
the article's ``1 + softplus(.)``.
"""

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array

EPSILON = 1e-6
"""For roots, denominators, and the least usage in allocation (authors' code)."""


def content_weights(keys: Array, strengths: Array, memory: Array) -> Array:
    r"""Weights of rows by their similarity to a key.

    .. math:: \mathrm{softmax}_s\left(\mathrm{softplus}(\beta) \,
        \frac{k \cdot m_s}{|k| |m_s| + \epsilon}\right),
        \qquad |x| = \sqrt{\textstyle\sum x^2 + \epsilon}

    >>> memory = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    >>> jax.jit(content_weights)(memory[:1], jnp.asarray([100.0]), memory).round(3)
    Array([[1., 0.]], dtype=float32)

    Args:
      keys: ``[*B, heads, W]``.
      strengths: before softplus, ``[*B, heads]``.
      memory: ``[*B, S, W]``.

    Returns:
      ``[*B, heads, S]``, summing to 1.
    """
    dots = jnp.einsum("...hw,...sw->...hs", keys, memory)
    norms = _norm(keys)[..., :, None] * _norm(memory)[..., None, :]
    sharpness = jax.nn.softplus(strengths)[..., None]
    return jax.nn.softmax(sharpness * (dots / (norms + EPSILON)), axis=-1)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) + EPSILON)


def update_usage(usage: Array, write_weights: Array, read_weights: Array, free: Array) -> Array:
    r"""Usage after the writes of the previous step and the freeing of rows that were read.

    .. math:: u_t = \left(u_{t-1} + (1 - u_{t-1})
        (1 - \textstyle\prod_p (1 - w^{w,p}_{t-1}))\right)
        \prod_r (1 - f_r \, w^{r}_{t-1})

    No gradient flows to the write weights, as in the authors' code.

    >>> one = jnp.ones((1, 1))
    >>> jax.jit(update_usage)(jnp.zeros(1), 0.5 * one, 0.0 * one, jnp.ones(1))
    Array([0.5], dtype=float32)

    Args:
      usage: ``[*B, S]``.
      write_weights: those of the previous step, ``[*B, P, S]``.
      read_weights: those of the previous step, ``[*B, R, S]``.
      free: the free gates, ``[*B, R]``.

    Returns:
      ``[*B, S]``.
    """
    write_weights = jax.lax.stop_gradient(write_weights)
    usage = usage + (1.0 - usage) * (1.0 - _product_over_heads(1.0 - write_weights))
    return usage * _product_over_heads(1.0 - free[..., None] * read_weights)


def _product_over_heads(x: Array) -> Array:
    """The product over axis -2, for few heads; the gradient of `jnp.prod` is slow."""
    product = x[..., 0, :]
    for head in range(1, x.shape[-2]):
        product = product * x[..., head, :]
    return product


def allocation_weights(usage: Array) -> Array:
    r"""Weights of rows for writing, the least used first.

    .. math:: a_s = (1 - u_s) \prod_{s' \text{ before } s} u_{s'}

    where rows are ordered by usage, equal ones by index, and
    :math:`u \leftarrow \epsilon + (1 - \epsilon) u` beforehand.

    Rows are compared in pairs instead of sorted: the link matrix has the same cost, and a sort
    (with the gathers of its gradient) is slow on accelerators.

    >>> jax.jit(allocation_weights)(jnp.asarray([0.75, 0.5, 1.0])).round(3)
    Array([0.125, 0.5  , 0.   ], dtype=float32)

    Args:
      usage: ``[*B, S]``.

    Returns:
      ``[*B, S]``.
    """
    usage = EPSILON + (1.0 - EPSILON) * usage
    free = 1.0 - usage
    size = free.shape[-1]
    lead = (1,) * (free.ndim - 1)
    lower = jnp.tri(size, k=-1, dtype=bool).T.reshape(*lead, size, size)
    other = ~jnp.eye(size, dtype=bool).reshape(*lead, size, size)
    first, second = free[..., :, None], free[..., None, :]
    # No row is before itself, even if a compiler computes both sides separately and rounds them
    # differently.
    before = other & ((first > second) | ((first == second) & lower))
    # Rounding can make a usage negative, but by less than this. (The gradient of `jnp.maximum`
    # compares its result with its arguments, and is lost if the result is computed twice.)
    usage = jnp.where(usage > EPSILON / 2, usage, EPSILON / 2)
    logs = jnp.where(before, jnp.log(usage)[..., :, None], 0.0)
    return free * jnp.exp(jnp.sum(logs, axis=-2))


def write_allocations(usage: Array, allocation_gates: Array, write_gates: Array) -> Array:
    r"""The allocation weights of every write head.

    Each head uses the usage after the allocations of the previous heads:
    :math:`u \leftarrow u + (1 - u) \, g_a g_w a`.

    >>> gates = jnp.ones(2)
    >>> jax.jit(write_allocations)(jnp.asarray([0.0, 0.0]), gates, gates).round(3)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)

    Args:
      usage: ``[*B, S]``.
      allocation_gates: ``[*B, P]``.
      write_gates: ``[*B, P]``.

    Returns:
      ``[*B, P, S]``.
    """
    gates = allocation_gates * write_gates
    allocations = []
    for head in range(gates.shape[-1]):
        allocations.append(allocation_weights(usage))
        if head < gates.shape[-1] - 1:
            usage = usage + (1.0 - usage) * gates[..., head, None] * allocations[-1]
    return jnp.stack(allocations, axis=-2)


def update_link(link: Array, precedence: Array, write_weights: Array) -> Array:
    r"""The temporal links: the degree to which row i was written right after row j.

    .. math:: L_{ij} \leftarrow (1 - w_i - w_j) L_{ij} + w_i \, p_j, \qquad L_{ii} = 0

    >>> first, second = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 1.0]])
    >>> jax.jit(update_link)(jnp.zeros((1, 2, 2)), precedence=first, write_weights=second)
    Array([[[0., 0.],
            [1., 0.]]], dtype=float32)

    Args:
      link: ``[*B, P, S, S]``.
      precedence: those of the previous step, ``[*B, P, S]``.
      write_weights: those of this step, ``[*B, P, S]``.

    Returns:
      ``[*B, P, S, S]``, with a zero diagonal; rows and columns sum to at most 1.
    """
    kept = 1.0 - write_weights[..., :, None] - write_weights[..., None, :]
    # A product instead of broadcasting: its gradient is a product too, not a slow reduction.
    link = kept * link + jnp.einsum("...i,...j->...ij", write_weights, precedence)
    size = link.shape[-1]
    off_diagonal = 1.0 - jnp.eye(size, dtype=link.dtype)
    return link * off_diagonal.reshape((1,) * (link.ndim - 2) + (size, size))


def update_precedence(precedence: Array, write_weights: Array) -> Array:
    r"""The degree to which each row was written last.

    .. math:: p \leftarrow (1 - \textstyle\sum_s w_s) \, p + w

    >>> update_precedence(jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 0.5]]))
    Array([[0.5, 0.5]], dtype=float32)

    Args:
      precedence: ``[*B, P, S]``.
      write_weights: those of this step, ``[*B, P, S]``.

    Returns:
      ``[*B, P, S]``.
    """
    return (1.0 - jnp.sum(write_weights, axis=-1, keepdims=True)) * precedence + write_weights
