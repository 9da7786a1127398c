r"""The backward pass of the recurrence with one slot, in few operations per step.

It is linear in the cotangents, and its coefficients depend on the forward pass only. So they are
computed for all steps at once, before the loop, and the gradients of all weights and inputs after
it. The loop has the chain of cotangents alone. With d for the cotangent of m', norms
:math:`n = (x - \bar x) / \sigma` and the scales s of norm 1, 2 and 3:

.. math::

    dz &= \tfrac{1}{\sigma_3} (u_3 - \overline{u_3} - n_3 \overline{u_3 n_3}),
    & u_3 &= d \; i (1 - c^2) s_3 \\
    dp &= \tfrac{1}{\sigma_2} (u_2 - \overline{u_2} - n_2 \overline{u_2 n_2}),
    & u_2 &= (dz + \mathrm{mlp}^\top dz) \; s_2 \\
    dx &= \tfrac{1}{\sigma_1} (u_1 - \overline{u_1} - n_1 \overline{u_1 n_1}),
    & u_1 &= (e (k - k'), e q, w \, dp) \; s_1

where :math:`e = \tfrac{w (1 - w)}{\sqrt D} \, dp \cdot (v - v')` for each head. Both means over
:math:`u_1` are sums over dp with coefficients of their own, so one operation computes them and e.

Sums are behind barriers: XLA would otherwise fuse them with what follows into operations that
cannot read a step of the coefficients in place.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.scan.relational.one_slot.step import (
    Core,
    Inputs,
    Weights,
    attend,
    gate_values,
    heads,
    input_kv,
    joined,
    memory_weight,
    normal,
    normed_qkv,
    parts,
    real,
    scaled,
    total,
    unpack,
    update,
)
from rrnn_jax.scan.relational.operations import as_rows
from rrnn_jax.typing import Array, Dtype

_barrier = jax.lax.optimization_barrier


class Coefficients(NamedTuple):
    """The coefficients of a step; ``[..., N, P]`` in the low dtype unless noted."""

    stds: tuple[Array, Array, Array]  # Reciprocal, of norms 1 to 3, [..., N, 1], wide.
    candidate: Array  # u_3 / d.
    candidate_normal: Array  # u_3 n_3 / d.
    gates: tuple[Array, Array]  # Cotangents of the gates' packed terms / d.
    forget: Array
    slope: Array  # Of the tanh that the gates see, of the next memory.
    normals: tuple[Array, ...]  # Norm 1 (q, k, v), 2, 3.
    logit: Array  # v - v'.
    query: Array  # u_1 / (dp (v - v')) of the queries.
    key: Array  # The same of the keys.
    value: Array  # u_1 / dp of the values.
    mean: Array  # The sum of u_1, as coefficients of dp.
    projection: Array  # The sum of u_1 n_1.


def cotangents(
    core: Core,
    weights: Weights,
    first: Array,
    inputs: Inputs,
    memories: Array,
    saved: Array,
    g: Array,
) -> tuple[Weights, Array, Inputs]:
    """The cotangents of weights, first memory and inputs.

    Args:
      core: sizes.
      weights: the weights.
      first: the memory before the first step.
      inputs: the inputs of all steps.
      memories: the memories after each step.
      saved: the results of products that `forward` packed.
      g: the cotangents of `memories`.
    """
    before = jnp.concatenate([first[None], memories[:-1]])
    known = coefficients(core, weights, before, memories, saved, inputs)
    d_first, found = _loop(core, weights, known, unpack(core, saved).hidden, before[0], g)
    d_weights, d_inputs = _gradients(core, weights, before, saved, inputs, found)
    return d_weights, d_first, d_inputs


def coefficients(
    core: Core, weights: Weights, before: Array, after: Array, saved: Array, inputs: Inputs
) -> Coefficients:
    """Those of all steps, given the memories before and after them."""
    wide = before.dtype
    results = unpack(core, saved)
    normals, rstd = normal(core, results.qkv.astype(wide))
    query, key, value = normed_qkv(core, weights, normals)
    input_key, input_value = input_kv(core, inputs, wide)
    weight = memory_weight(core, query, key, input_key)
    logit = value - input_value
    added, rstd_2 = normal(core, before + joined(input_value + weight * logit))
    result, rstd_3 = normal(core, results.hidden[0].astype(wide) + results.mlp.astype(wide))
    candidate = jnp.tanh(scaled(result, weights.mlp_scale, weights.mlp_shift))
    entry, forget = gate_values(core, results.gates, inputs, wide)

    to_result = entry * (1 - jnp.square(candidate)) * as_rows(weights.mlp_scale, result)
    slope = weight * (1 - weight) * core.size**-0.5
    scales = [heads(core, x) for x in parts(core, as_rows(weights.qkv_scale, normals))]
    n = [heads(core, x) for x in parts(core, normals)]
    to_query, to_key = slope * (key - input_key) * scales[0], slope * query * scales[1]
    to_value = weight * scales[2]
    mean = to_value + logit * total(to_query + to_key)
    projection = to_value * n[2] + logit * total(to_query * n[0] + to_key * n[1])
    found = Coefficients(
        (rstd, rstd_2, rstd_3),
        to_result,
        to_result * result,
        (candidate * entry * (1 - entry), before * forget * (1 - forget)),
        forget,
        1 - jnp.square(jnp.tanh(after)),
        (*map(joined, n), added, result),
        *map(joined, (logit, to_query, to_key, to_value, mean, projection)),
    )
    low = jax.tree.map(lambda x: x.astype(core.low), found)
    return low._replace(stds=found.stds)


def _loop(
    core: Core, weights: Weights, known: Coefficients, hidden: list[Array], like: Array, g: Array
) -> tuple[Array, Array]:
    """The cotangent of the first memory, and ``[T, 5+L+2, N, P]``.

    These are the cotangents of q, k, v, both gates, the MLP's products, m' and a.
    """
    kernels = [kernel.astype(core.low) for kernel in weights.mlp]
    # One product with all kernels of the memory, for a batch of five.
    packed = jnp.stack([*parts(core, weights.qkv), *parts(core, weights.gates)]).astype(core.low)
    packed = _barrier(packed)

    def body(state: tuple, x: tuple) -> tuple[tuple, Array]:
        known, hidden, g = x
        stds = known.stds
        known = jax.tree.map(lambda c: c.astype(like.dtype), known)
        d = _of_memory(state, known.slope, g)
        sums = _barrier((total(d * known.candidate), total(d * known.candidate_normal)))
        dz = _normed(core, stds[2], d * known.candidate, known.normals[4], sums)
        rows = [dz.astype(core.low)]
        for kernel, result in zip(kernels[:0:-1], hidden[:0:-1], strict=True):
            found = _transposed(core, rows[0], kernel)
            rows = [jnp.where(result > 0, found, jnp.zeros_like(found)), *rows]
        da = dz + _transposed(core, rows[0], kernels[0], like.dtype)

        du = da * as_rows(weights.attention_scale, da)
        sums = _barrier((total(du), total(du * known.normals[3])))
        dp = _normed(core, stds[1], du, known.normals[3], sums)
        dx = _of_qkv(core, stds[0], known, dp)
        found = jnp.stack([*dx, *(d * gate for gate in known.gates)]).astype(core.low)
        dims = ((2,), (2,)), ((0,), (0,))
        products = jax.lax.dot_general(found, packed, dims, core.precision)
        others = jnp.stack([*rows, d.astype(core.low), da.astype(core.low)])
        return (d * known.forget, dp, products), jnp.concatenate([found, others])

    zeros = jnp.zeros_like(like)
    state = zeros, zeros, jnp.zeros((5, *like.shape), core.low)
    state, found = jax.lax.scan(body, state, (known, hidden, g), reverse=True, unroll=core.unroll)
    return _of_memory(state, 1 - jnp.square(jnp.tanh(like)), zeros), found


def _of_memory(state: tuple, slope: Array, g: Array) -> Array:
    """The cotangent of a memory, from all that reads it."""
    kept, added, products = state
    query, key, value, *gates = products.astype(g.dtype)
    return kept + added + query + key + value + sum(gates) * slope + g


def _of_qkv(core: Core, rstd: Array, known: Coefficients, dp: Array) -> list[Array]:
    """The cotangents of queries, keys and values before their norm."""
    logit, *sums = _barrier(
        tuple(
            total(heads(core, dp * factor))
            for factor in (known.logit, known.mean, known.projection)
        )
    )
    # Added one by one, heads need no operation of their own.
    both = [sum(x[..., j, :] for j in range(core.heads)) for x in sums]

    def per_head(factor: Array) -> Array:
        return joined(logit * heads(core, factor))

    each = [per_head(known.query), per_head(known.key), dp * known.value]
    count = 3 * core.heads * core.size
    return [
        rstd * (x - both[0] / count - n * (both[1] / count))
        for x, n in zip(each, known.normals[:3], strict=True)
    ]


def _normed(core: Core, rstd: Array, du: Array, normals: Array, sums: tuple[Array, Array]) -> Array:
    """The backward pass of a norm, given the sums of `du` and of its product with normals."""
    mean, projection = (x / real(core, du) for x in sums)
    return rstd * (du - mean - normals * projection)


def _transposed(core: Core, rows: Array, kernel: Array, dtype: Dtype | None = None) -> Array:
    dims = ((1,), (1,)), ((), ())
    return jax.lax.dot_general(rows, kernel, dims, core.precision, preferred_element_type=dtype)


def _gradients(
    core: Core, weights: Weights, before: Array, saved: Array, inputs: Inputs, found: Array
) -> tuple[Weights, Inputs]:
    """The gradients of weights and inputs: one product for each kernel."""
    results, wide = unpack(core, saved), before.dtype
    *layers, d, da = (found[:, j] for j in range(5, core.layers + 7))

    def kernel(rows: Array, cotangents: Array) -> Array:
        dims = ((0, 1), (0, 1)), ((), ())
        return jax.lax.dot_general(
            rows, cotangents, dims, core.precision, preferred_element_type=wide
        )

    def packed(of: slice) -> Array:
        """``[T, N, 3P]`` or ``[T, N, 2P]``."""
        each = jnp.moveaxis(found[:, of], 1, 2)
        return each.reshape(*each.shape[:2], -1)

    def bias(cotangents: Array) -> Array:
        return jnp.sum(cotangents, axis=(0, 1), dtype=wide)

    def attended(weights: Weights, inputs: Inputs) -> Array:
        return attend(core, weights, results.qkv, before, inputs).astype(wide)

    def updated(weights: Weights, inputs: Inputs) -> Array:
        rows = results.hidden[0], results.mlp, results.gates
        return update(core, weights, *rows, before, inputs)

    of_attention = jax.vjp(attended, weights, inputs)[1](da.astype(wide))
    of_update = jax.vjp(updated, weights, inputs)[1](d.astype(wide))
    norms, d_inputs = jax.tree.map(jnp.add, of_attention, of_update)
    qkv, gates = packed(slice(3)), packed(slice(3, 5))
    shown = jnp.tanh(before).astype(core.low)
    return norms._replace(
        qkv=kernel(before.astype(core.low), qkv),
        qkv_bias=bias(qkv),
        mlp=tuple(map(kernel, results.hidden, layers)),
        mlp_bias=tuple(map(bias, layers)),
        gates=kernel(shown, gates),
    ), d_inputs
