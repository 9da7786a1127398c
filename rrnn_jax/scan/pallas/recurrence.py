"""The recurrent part on a GPU: the products of a step, and Pallas kernels for everything else.

The forward pass saves the products of every step and the memories; the backward pass recomputes the
rest in registers. It saves the cotangents of all products, and every weight gradient is one
product over the rows of all steps. Buffers of all steps are written in place.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.gpu import Arguments, Kernels
from rrnn_jax.scan.pallas import kernels
from rrnn_jax.scan.pallas.layout import (
    Shape,
    Sizes,
    empty,
    flags_of,
    sizes_of,
    split_terms,
    vectors_of,
)
from rrnn_jax.scan.relational.input_terms import InputTerms
from rrnn_jax.scan.relational.weights import CoreWeights
from rrnn_jax.scan.sequence import select
from rrnn_jax.typing import Array, Dtype


class _Kept(NamedTuple):
    """The values of all steps saved by the forward pass, time first; rows are ``[S, H, D]``.

    Attributes:
      memories: before every step and after the last, ``[T+1, B, S, H, D]``.
      qkv: products ``[T, B, S, 3, H, D]``.
      rows: inputs of the MLP.
      last: the MLP's last products.
      gates: products ``[T, B, S, 2, H, D]`` or ``[T, B, S, 2]``.
      hidden: the values of each hidden layer of the MLP.
    """

    memories: Array
    qkv: Array
    rows: Array
    last: Array
    gates: Array
    hidden: tuple[Array, ...]


def kernels_of(cell: RelationalMemoryCell, dtype: Dtype, arguments: Arguments) -> Kernels:
    """The kernels for a cell, a dtype of products, and arguments of these shapes."""
    flags = arguments.resets, arguments.mask
    sizes = sizes_of(cell, dtype, arguments.terms, flags)

    def forward(arguments: Arguments, keep: bool) -> tuple[Any, Any]:
        final, memories, kept = _forward(sizes, arguments, keep)
        return (final, memories), kept

    def backward(arguments: Arguments, kept: _Kept, cotangents: Any) -> Arguments:
        return _backward(sizes, arguments, kept, *cotangents)

    return Kernels(forward, backward)


def _forward(sizes: Sizes, arguments: Arguments, save: bool) -> tuple[Array, Array, _Kept]:
    weights, carry, reset_carry, terms, resets, mask = arguments
    w, v = _cast(sizes, weights), vectors_of(sizes, weights)
    qkv_terms, gate_terms = split_terms(sizes, terms)
    flags, fresh = flags_of(sizes, reset_carry, resets, mask)
    layers = sizes.cell.attention_mlp_layers
    row, qkv_row, gate = sizes.row, sizes.qkv_row, sizes.gate
    memory = sizes.split(carry)
    shapes = [sizes.over_time(Shape(memory.shape, memory.dtype), 1)]
    if save:
        kept = [qkv_row, row, row, gate, *[row] * (layers - 1)]
        shapes += [sizes.over_time(x) for x in kept]
    memories, *buffers = empty(shapes)
    memories = memories.at[0].set(memory)

    def step(t: Array, state: tuple) -> tuple:
        low, squashed, memories, buffers = state
        at = t[None]
        qkv = _multiply(low, w["block_0/qkv"], qkv_row.shape)
        gates = _multiply(squashed, w["gates"], gate.shape)
        (rows,), buffers[:2] = sizes.call(
            partial(kernels.attend, sizes.spec),
            [at, flags, fresh, qkv, v.qkv, v.norm, memories, qkv_terms],
            [row],
            buffers[:2],
        )
        hidden, x = [], rows
        for j in range(layers - 1):
            x = _multiply(x, w[f"mlp/layer_{j}"], row.shape).astype(jnp.float32) + v.hidden[j]
            x = jax.nn.relu(x).astype(sizes.dtype)
            hidden.append(x)
        last = _multiply(x, w[f"mlp/layer_{layers - 1}"], row.shape)
        shown = hidden if save else []
        (low, squashed), (memories, *buffers[2:]) = sizes.call(
            partial(kernels.update, sizes.spec, len(shown)),
            [at, flags, fresh, last, rows, v.last, gates, gate_terms, *shown],
            [row, row],
            [memories, *buffers[2:]],
        )
        return low, squashed, memories, buffers

    memory = _started(memory[None], fresh, resets)[0]
    first = memory.astype(sizes.dtype), jnp.tanh(memory).astype(sizes.dtype)
    _, _, memories, buffers = jax.lax.fori_loop(0, sizes.steps, step, (*first, memories, buffers))
    outputs = memories[1:].reshape(*memories[1:].shape[:3], -1)
    saved = (*buffers[:4], tuple(buffers[4:])) if save else ((),) * 5
    return memories[-1].reshape(carry.shape), outputs, _Kept(memories, *saved)  # type: ignore[arg-type]


def _backward(
    sizes: Sizes, arguments: Arguments, kept: _Kept, d_final: Array, d_outputs: Array
) -> Arguments:
    weights, _, reset_carry, terms, resets, mask = arguments
    flags, fresh = flags_of(sizes, reset_carry, resets, mask)
    w, v = _cast(sizes, weights), vectors_of(sizes, weights)
    qkv_terms, gate_terms = split_terms(sizes, terms)
    layers = sizes.cell.attention_mlp_layers
    row, wide = sizes.row, sizes.wide(*sizes.rows)
    buffers = _backward_buffers(sizes, gate_terms, qkv_terms)

    def step(k: Array, state: tuple) -> tuple:
        d_fresh, d_memory, d_product, d_tanh, buffers = state
        at = k[None]
        (fresh_so_far, d_memory, d_last, d_gates), buffers[:4] = sizes.call(
            partial(kernels.update_backward, sizes.spec),
            [
                *(at, flags, fresh, d_fresh, d_memory, d_product, d_tanh, sizes.split(d_outputs)),
                *(kept.memories, kept.last, kept.rows, kept.gates, v.last, gate_terms),
            ],
            [Shape(fresh.shape, fresh.dtype), wide, row, sizes.gate],
            buffers[:4],
        )
        if sizes.resets:  # Without resets the copy would be useless.
            d_fresh = fresh_so_far
        d = d_last
        for j in range(layers - 2, -1, -1):
            d = _multiply_back(d, w[f"mlp/layer_{j + 1}"], row.shape)
            (d,), buffers[8 + j : 9 + j] = sizes.call(
                partial(kernels.relu_backward, sizes.spec),
                [at, d, kept.hidden[j]],
                [row],
                buffers[8 + j : 9 + j],
            )
        d = _multiply_back(d, w["mlp/layer_0"], row.shape)
        (d_memory, d_qkv), buffers[4:8] = sizes.call(
            partial(kernels.attend_backward, sizes.spec),
            [
                *(at, flags, fresh, d, d_last, kept.qkv, kept.memories),
                *(v.qkv, v.norm, d_memory, qkv_terms),
            ],
            [wide, sizes.qkv_row],
            buffers[4:8],
        )
        d_product = _multiply_back(d_qkv, w["block_0/qkv"], row.shape)
        d_tanh = _multiply_back(d_gates, w["gates"], row.shape)
        return d_fresh, d_memory, d_product, d_tanh, buffers

    nothing = jnp.zeros(row.shape, row.dtype)
    state = jnp.zeros_like(fresh), sizes.split(d_final), nothing, nothing, buffers
    d_fresh, d_memory, d_product, d_tanh, buffers = jax.lax.fori_loop(0, sizes.steps, step, state)
    found = _Found(*buffers[:8], hidden=buffers[8:])
    before = _started(kept.memories[:-1], fresh, resets)
    squashed = jnp.tanh(before[0])
    d_carry = d_memory + d_product.astype(jnp.float32)
    d_carry, d_reset = d_carry + d_tanh.astype(jnp.float32) * (1 - squashed * squashed), None
    if resets is not None:
        nothing = jnp.zeros_like(d_carry)
        d_reset = (d_fresh + select(resets[0], d_carry, nothing)).reshape(d_final.shape)
        d_carry = select(resets[0], nothing, d_carry)

    d_terms = InputTerms(
        (found.qkv_terms.reshape(terms.qkv[0].shape),),
        None,
        found.gate_terms.reshape(terms.gates.shape),  # type: ignore[union-attr]
    )
    d_weights = _weight_gradients(sizes, weights, kept, before, found)
    return Arguments(d_weights, d_carry.reshape(d_final.shape), d_reset, d_terms, None, None)


def _backward_buffers(sizes: Sizes, gate_terms: Array, qkv_terms: Array) -> list[Array]:
    """Buffers for the results of the backward loop, in the order of `_Found`."""
    hidden = [sizes.row] * (sizes.cell.attention_mlp_layers - 1)
    sums, qkv_sums = sizes.wide(2, *sizes.rows[1:]), sizes.wide(2, 3, *sizes.rows[1:])
    return empty(
        [
            *(sizes.over_time(x) for x in (sizes.row, sizes.gate)),
            Shape(gate_terms.shape, gate_terms.dtype),
            *(sizes.over_time(x) for x in (sums, sizes.qkv_row)),
            Shape(qkv_terms.shape, qkv_terms.dtype),
            *(sizes.over_time(x) for x in (qkv_sums, sums, *hidden)),
        ],
    )


class _Found(NamedTuple):
    """The buffers of all steps that the backward loop fills.

    Attributes:
      last, gates, qkv: cotangents of the products.
      gate_terms, qkv_terms: cotangents of the input terms.
      last_sums, qkv_sums, norm_sums: gradients, by sequence, of the scales and biases of the norms
        of the MLP, of queries, keys and values, and of the attention.
      hidden: cotangents of the products of the MLP's hidden layers.
    """

    last: Array
    gates: Array
    gate_terms: Array
    last_sums: Array
    qkv: Array
    qkv_terms: Array
    qkv_sums: Array
    norm_sums: Array
    hidden: list[Array]


def _weight_gradients(
    sizes: Sizes, weights: CoreWeights, kept: _Kept, before: Array, found: _Found
) -> CoreWeights:
    """Gradients of kernels and vectors over the rows of all steps; `before`: memories of steps."""
    operands, cotangents = [kept.rows, *kept.hidden], [*found.hidden, found.last]
    pairs = {f"mlp/layer_{j}": x for j, x in enumerate(zip(operands, cotangents, strict=True))}
    pairs["block_0/qkv"] = before.astype(sizes.dtype), found.qkv
    pairs["gates"] = jnp.tanh(before).astype(sizes.dtype), found.gates
    d_kernels, d_vectors = {}, {}
    for name, (rows, d) in pairs.items():
        rows, d = _flat(rows), _flat(d)
        gradient = _over_rows(rows, d)
        d_kernels[name] = gradient.astype(weights.kernels[name].dtype)
        if f"{name}/bias" in weights.vectors:
            d_vectors[f"{name}/bias"] = jnp.sum(d, axis=(0, 1, 2), dtype=jnp.float32)
    for name, sums in (
        ("block_0/mlp_norm", found.last_sums),
        ("block_0/qkv_norm", found.qkv_sums),
        ("block_0/attention_norm", found.norm_sums),
    ):
        scale, bias = jnp.sum(sums, axis=(0, 1)).reshape(2, -1)
        d_vectors |= {f"{name}/scale": scale, f"{name}/bias": bias}
    return CoreWeights(
        d_kernels, {name: d_vectors[name].astype(x.dtype) for name, x in weights.vectors.items()}
    )


def _started(memories: Array, fresh: Array, resets: Array | None) -> Array:
    """The memories ``[T, B, S, H, D]`` before each step, after resets."""
    if resets is None:
        return memories
    fresh = jnp.broadcast_to(fresh[None], memories.shape)
    return select(resets[: memories.shape[0]], fresh, memories)


def _cast(sizes: Sizes, weights: CoreWeights) -> dict[str, Array]:
    return {name: kernel.astype(sizes.dtype) for name, kernel in weights.kernels.items()}


def _over_rows(rows: Array, cotangents: Array) -> Array:
    """The gradient ``[F, N]`` of a kernel from all rows ``[T, B, S, F]`` and their cotangents."""
    dims = ((0, 1, 2), (0, 1, 2)), ((), ())
    return jax.lax.dot_general(rows, cotangents, dims, preferred_element_type=jnp.float32)


def _flat(x: Array) -> Array:
    """``[T, B, S, ...]`` as ``[T, B, S, N]``."""
    return x.reshape(*x.shape[:3], -1)


def _multiply(x: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    """Rows ``[B, S, H, D]`` times a kernel ``[F, N]``, in the given shape."""
    return (x.reshape(-1, kernel.shape[0]) @ kernel).reshape(shape)


def _multiply_back(d: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    """The cotangents of a product's rows, from those of the product."""
    flat = d.reshape(-1, kernel.shape[1])
    return jax.lax.dot_general(flat, kernel, (((1,), (1,)), ((), ()))).reshape(shape)
