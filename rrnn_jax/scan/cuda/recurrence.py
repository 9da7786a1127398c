"""The recurrent part of the scan as two kernels, with the products around them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.cuda.launch import launch
from rrnn_jax.scan.cuda.layout import Layout
from rrnn_jax.scan.gpu import Arguments
from rrnn_jax.scan.relational.input_terms import InputTerms
from rrnn_jax.scan.relational.weights import CoreWeights
from rrnn_jax.typing import Array

PARTS = 16  # Of the rows, in `_layer_gradients`.


class Run(NamedTuple):
    """Static settings of the kernels.

    Attributes:
      cell: the cell's configuration.
      layout: the layout that the kernels are compiled for.
    """

    cell: RelationalMemoryCell
    layout: Layout


class _Operands(NamedTuple):
    """The inputs of both kernels, in their order, without the weights."""

    sizes: Array
    vectors: Array
    kv: Array
    first: Array
    fresh: Array
    flags: Array


def forward_pass(
    run: Run, arguments: Arguments, save: bool
) -> tuple[tuple[Array, Array], list[Array]]:
    """Runs the forward kernel over all steps.

    Products are bfloat16 with float32 accumulation; norms, softmax, gates and the memory are
    float32.

    Args:
      run: settings, of a cell for which `support.unfit` returns None.
      arguments: the memories in float32, everything else in any dtype.
      save: whether `backward_pass` follows.

    Returns:
      The final memory ``[B, S, F]`` and all memories ``[T, B, S, F]`` in float32, and the values
      saved for `backward_pass`.
    """
    layout, o = run.layout, _operands(run, arguments)
    steps, batch = o.kv.shape[:2]
    fragments = pack_fragments(layout, "forward", _matrices(run, arguments.weights))
    operands = [o.sizes, fragments, o.vectors, o.kv, _gate_terms(run, arguments.terms.gates)]
    operands += [o.first, o.fresh, o.flags]
    results = layout.forward_results(batch, steps, save)
    kept = launch("forward", layout, save, layout.blocks(batch), operands, results)
    memories = kept[0]
    return (memories[-1], memories), kept


def backward_pass(
    run: Run, arguments: Arguments, kept: list[Array], cotangents: tuple[Array, Array]
) -> Arguments:
    """Runs the backward kernel, and a product over all steps for each weight gradient.

    Args:
      run: settings.
      arguments: those of `forward_pass`.
      kept: the values saved by `forward_pass`.
      cotangents: cotangents of the final memory and all memories.

    Returns:
      The cotangents of the arguments, and the flags.
    """
    d_final, d_memories = cotangents
    weights, _, _, terms, resets, mask = arguments
    layout, o = run.layout, _operands(run, arguments)
    steps, batch = o.kv.shape[:2]
    memories, before, squashed, inputs, records, statistics = kept
    fragments = pack_fragments(layout, "backward", jnp.swapaxes(_matrices(run, weights), 1, 2))
    operands = [o.sizes, fragments, o.vectors, o.kv, o.first, o.fresh, o.flags, memories]
    operands += [records, statistics, d_memories, d_final]
    results = layout.backward_results(batch, steps)
    found = launch("backward", layout, True, layout.blocks(batch), operands, results)
    d_first, d_fresh, d_qkv, d_layers, d_gates, d_gate_terms, d_kv, d_vectors = found

    d_kernels = {"block_0/qkv": _weight_gradient(before, d_qkv)}
    for j, d in enumerate(_layer_gradients(inputs, d_layers)):
        d_kernels[f"mlp/layer_{j}"] = d
    if layout.gates == "unit":
        d_kernels["gates"] = _weight_gradient(squashed, d_gates)
    by_name = _split_vectors(run, jnp.sum(d_vectors, axis=0))
    if layout.gates == "memory":
        d_kernels["gates"] = by_name.pop("gates").T
    d_weights = CoreWeights(
        {name: d_kernels[name].astype(x.dtype) for name, x in weights.kernels.items()},
        {name: by_name[name].astype(x.dtype) for name, x in weights.vectors.items()},
    )
    (kv,) = terms.qkv
    d_terms = InputTerms(
        (d_kv.reshape(kv.shape).astype(kv.dtype),),
        None,
        None if terms.gates is None else d_gate_terms.astype(terms.gates.dtype),
    )
    return Arguments(d_weights, d_first, None if resets is None else d_fresh, d_terms, resets, mask)


def _operands(run: Run, arguments: Arguments) -> _Operands:
    weights, carry, fresh, terms, resets, mask = arguments
    (kv,) = terms.qkv
    steps, batch = kv.shape[:2]
    flags = jnp.zeros((16,), jnp.uint8)
    if run.layout.flags:
        flags = jnp.zeros((steps, batch), jnp.uint8)
        if resets is not None:
            flags += resets.astype(jnp.uint8)
        if mask is not None:
            flags += jnp.uint8(2) * (~mask).astype(jnp.uint8)
    return _Operands(
        jnp.asarray(np.array([batch, steps], np.int32)),
        _vectors(run, weights),
        kv.astype(jnp.bfloat16),
        carry.astype(jnp.float32),
        (carry if fresh is None else fresh).astype(jnp.float32),
        flags,
    )


def _gate_terms(run: Run, gates: Array | None) -> Array:
    """The input's term of the gates with all biases."""
    if run.layout.gates is None:
        return jnp.zeros((4,), jnp.float32)
    assert gates is not None
    biases = np.array([run.cell.input_bias, run.cell.forget_bias], np.float32)
    biases = np.repeat(biases, run.layout.gate_width // 2)
    return gates.astype(jnp.float32) + biases.reshape((1,) * (gates.ndim - 1) + (-1,))


def _matrices(run: Run, weights: CoreWeights) -> Array:
    """All weight matrices ``[M, F, F]`` in the kernels' order, in bfloat16."""
    names = ["block_0/qkv", *(f"mlp/layer_{j}" for j in range(run.cell.attention_mlp_layers))]
    if run.layout.gates == "unit":
        names.append("gates")
    kernels = [weights.kernels[name].astype(jnp.bfloat16) for name in names]
    F = run.layout.width
    packed = jnp.concatenate(kernels, axis=1).reshape(F, run.layout.matrices, F)
    return jnp.swapaxes(packed, 0, 1)


def pack_fragments(layout: Layout, kernel: str, matrices: Array) -> Array:
    """Matrices ``[M, K, N]`` packed as fragments of the left operand ``W^T``, in the order of use.

    Returns:
      ``[warps, M * F/16 * F/16 / warps + fragments, 32, 8]``. Thread 4g + t of a fragment has, in
      words of two numbers, rows 8j + g of ``W^T`` (of a tile of 16) and columns 8i + 2t and
      8i + 2t + 1 in word 2i + j. The first fragments stand at the end again.
    """
    M, K, N = matrices.shape
    warps, tiles, slices = layout.warps, layout.warp_tiles, K // 16
    split = matrices.reshape(M, slices, 2, 4, 2, N // 16, 2, 8)
    packed = split.transpose(0, 5, 1, 7, 3, 2, 6, 4)
    packed = packed.reshape(M, warps, tiles, slices, 32, 8)
    gates = M if layout.gates != "unit" else M - 2

    def ordered(some: Array, order: tuple[int, ...]) -> Array:
        return some.transpose(*order, 4, 5).reshape(warps, -1, 32, 8)

    by_slices = (1, 3, 0, 2)
    if kernel == "forward":
        at_once = layout.qkv_at_once
        parts = [ordered(packed[i : i + at_once], by_slices) for i in range(0, 3, at_once)]
        parts += [ordered(packed[i : i + 1], by_slices) for i in range(3, gates)]
        if gates < M:  # Both gates of a tile at once.
            parts.append(ordered(packed[gates:], (1, 2, 3, 0)))
    else:
        order = [*range(gates, M), *range(gates - 1, 2, -1), 0, 1, 2]
        parts = [ordered(packed[i : i + 1], by_slices) for i in order]
    return jnp.concatenate([*parts, parts[0][:, : layout.fragments]], axis=1)


def _vector_names(run: Run) -> list[str]:
    layers = run.cell.attention_mlp_layers
    return [
        "block_0/qkv/bias",
        "block_0/qkv_norm/scale",
        "block_0/qkv_norm/bias",
        "block_0/attention_norm/scale",
        "block_0/attention_norm/bias",
        *(f"mlp/layer_{j}/bias" for j in range(layers)),
        "block_0/mlp_norm/scale",
        "block_0/mlp_norm/bias",
    ]


def _vectors(run: Run, weights: CoreWeights) -> Array:
    """All vectors in the kernels' order, including the two columns of gates per slot."""
    parts = [weights.vectors[name].astype(jnp.float32) for name in _vector_names(run)]
    if run.layout.gates == "memory":
        # Rounded like the operand of a product.
        low = weights.kernels["gates"].astype(jnp.bfloat16)
        parts.append(low.T.reshape(-1).astype(jnp.float32))
    return jnp.concatenate(parts)


def _split_vectors(run: Run, vectors: Array) -> dict[str, Array]:
    """The gradients of `_vectors`, by name; the gates' ``[2, F]``."""
    F = run.layout.width
    found, at = {}, 0
    for name in _vector_names(run):
        size = 3 * F if name.startswith("block_0/qkv") else F
        found[name] = vectors[at : at + size]
        at += size
    if run.layout.gates == "memory":
        found["gates"] = vectors[at:].reshape(2, F)
    return found


def _weight_gradient(rows: Any, d: Any) -> Array:
    """``[F, N]`` from all rows ``[..., F]`` and the cotangents ``[..., N]`` of their products."""
    leading = tuple(range(rows.ndim - 1))
    dimensions = ((leading, leading), ((), ()))
    return jax.lax.dot_general(rows, d, dimensions, preferred_element_type=jnp.float32)


def _layer_gradients(rows: Array, d: Array) -> Array:
    """The same for all layers of the MLP: ``[L, F, F]`` from ``[L, ..., F]`` and ``[L, ..., F]``.

    They are few and small for so many rows: cuBLAS leaves most of an H100 idle, unless the rows are
    divided.
    """
    layers, F = rows.shape[0], rows.shape[-1]
    parts = math.gcd(math.prod(rows.shape[1:-1]), PARTS)
    shape = (layers * parts, -1, F)
    dimensions = (((1,), (1,)), ((0,), (0,)))
    found = jax.lax.dot_general(
        rows.reshape(shape), d.reshape(shape), dimensions, preferred_element_type=jnp.float32
    )
    return jnp.sum(found.reshape(layers, parts, F, F), axis=1)
