r"""The recurrence of a core with one slot and large kernels on a GPU, in few operations per step.

At the size of the paper's language model a step is bound by reading the kernels and by the number
of its operations: the rest of a step is small. For an H100 XLA compiles this form of a step to 16
operations and its backward pass to 18 (``python -m tests.core.cuda.h100 language``), about a third
of what the general form takes. It has

- no padding within the loop: each head is padded with zeros from D to E features before it, so that
  the width P = H E is a multiple of a tensor core's tile, and norms count the real features only;
- biases and ReLUs that XLA computes within the products;
- attention over two keys, memory and input: a sigmoid of the difference of their logits,
  :math:`w = \sigma(q \cdot (k - k') / \sqrt D)`, and :math:`v' + w (v - v')`;
- one array for all values that a step saves, the results of its products.

With the memory m and the product x = m W + b:

.. math::

    (q, k, v) &= \mathrm{norm}_1(x) \\
    p &= m + v' + w (v - v'), \quad a = \mathrm{norm}_2(p) \\
    z &= a + \mathrm{mlp}(a), \quad c = \tanh(\mathrm{norm}_3(z)) \\
    m' &= i c + f m

`Core` has the static sizes. Arrays are ``[..., N, P]``, with all batch axes in one, N. Gates are
per unit, and there is one block, one input row, a norm of queries, keys and values, and no flags,
dropout or capture; the general form runs all else.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.scan.relational.input_terms import InputTerms
from rrnn_jax.scan.relational.linear import linear
from rrnn_jax.scan.relational.one_slot.backward import cotangents
from rrnn_jax.scan.relational.one_slot.step import Core, Inputs, Weights, forward
from rrnn_jax.scan.relational.weights import CoreWeights
from rrnn_jax.typing import Array, Dtype


def core_of(cell: Any, low: Dtype, tile: int, unroll: int) -> Core:
    """The settings for a cell: products in `low`, widths that are multiples of `tile`."""
    size = cell.head_size
    while size * cell.num_heads % tile:
        size += 1
    return Core(
        *(cell.num_heads, cell.head_size, size, cell.attention_mlp_layers),
        *(float(cell.input_bias), float(cell.forget_bias)),
        *(jnp.dtype(low), cell.precision, unroll),
    )


def recurrence(core: Core, weights: CoreWeights, first: Array, terms: InputTerms) -> Array:
    """The memories after each step, ``[T, *B, 1, F]``.

    Args:
      core: sizes.
      weights: the core's weights, of `weights.core_weights`.
      first: the memory before the first step, ``[*B, 1, F]``.
      terms: the terms of all inputs, time first, of one input row each.
    """
    assert terms.gates is not None
    features = core.heads * core.size

    def rows(x: Array, leading: int) -> Array:
        return _spread(core, x.reshape(*x.shape[:leading], -1, x.shape[-1]))

    kv = terms.qkv[0][..., -2 * features :]
    inputs = Inputs(rows(kv, 1), rows(terms.gates, 1))
    memories = _run(core, _padded(core, weights), rows(first, 0), inputs)
    return _real(core, memories).reshape(-1, *first.shape)


def _padded(core: Core, weights: CoreWeights) -> Weights:
    def padded(name: str) -> Array:
        return _spread(core, _spread(core, weights.kernels[name]), axis=-2)

    def vector(name: str) -> Array:
        return _spread(core, weights.vectors[name])

    layers = [f"mlp/layer_{j}" for j in range(core.layers)]
    return Weights(
        qkv=padded("block_0/qkv"),
        qkv_bias=vector("block_0/qkv/bias"),
        qkv_scale=vector("block_0/qkv_norm/scale"),
        qkv_shift=vector("block_0/qkv_norm/bias"),
        attention_scale=vector("block_0/attention_norm/scale"),
        attention_shift=vector("block_0/attention_norm/bias"),
        mlp=tuple(map(padded, layers)),
        mlp_bias=tuple(vector(f"{layer}/bias") for layer in layers),
        mlp_scale=vector("block_0/mlp_norm/scale"),
        mlp_shift=vector("block_0/mlp_norm/bias"),
        gates=padded("gates"),
    )


def _spread(core: Core, x: Array, axis: int = -1) -> Array:
    """Pads the heads in an axis of one or more times H D features."""
    if core.padded == core.size:
        return x
    axis += x.ndim
    heads = x.reshape(*x.shape[:axis], -1, core.size, *x.shape[axis + 1 :])
    padding = [(0, 0)] * heads.ndim
    padding[axis + 1] = 0, core.padded - core.size
    return jnp.pad(heads, padding).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def _real(core: Core, x: Array) -> Array:
    heads = x.reshape(*x.shape[:-1], -1, core.padded)[..., : core.size]
    return heads.reshape(*x.shape[:-1], -1)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(core: Core, weights: Weights, first: Array, inputs: Inputs) -> Array:
    return forward(core, weights, first, inputs, save=False)[0]


@_run.defjvp
def _run_jvp(core: Core, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    memories, saved = forward(core, *primals, save=True)
    known, tree = jax.tree.flatten(primals)
    tangent, cotangent = _rules(core, tree)
    xs = tuple(jax.tree.leaves(tangents))
    return memories, linear(tangent, cotangent, (*known, memories, saved), xs, (memories,))[0]


@cache
def _rules(core: Core, tree: Any) -> tuple:
    """Tangent and cotangent of flat arrays; cached, so that JAX's caches hit."""

    def plain(*primals: Any) -> Array:
        return forward(core, *primals, save=False)[0]

    def tangent(*args: Array) -> tuple[Array]:
        count = tree.num_leaves
        primals = jax.tree.unflatten(tree, args[:count])
        tangents = jax.tree.unflatten(tree, args[count + 2 :])
        return (jax.jvp(plain, primals, tangents)[1],)

    def cotangent(*args: Array) -> list[Array]:
        *known, memories, saved, g = args
        weights, first, inputs = jax.tree.unflatten(tree, known)
        return jax.tree.leaves(cotangents(core, weights, first, inputs, memories, saved, g))

    return tangent, cotangent
