"""What a step takes from its input, computed for all steps at once: it needs no memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.products import multiply_rows
from rrnn_jax.scan.tape import add_bias, as_rows, layer_norm
from rrnn_jax.scan.weights import packed_by_kind, query_key_sizes
from rrnn_jax.typing import Array, Dtype, accumulation_dtype

if TYPE_CHECKING:
    from rrnn_jax.scan.plan import Plan


class InputTerms(NamedTuple):
    """What a step takes from its input, for one step or, with a time axis, for all.

    Attributes:
      qkv: for the first block, and for every block if input rows stay the same
        (``input_queries=False``): the input rows' queries, keys and values, normalised if they are
        to be, ``[B, R, H*(2K+D)]``; where input rows do not attend only keys and values,
        ``[B, R, H*(K+D)]``.
      rows: the projected rows ``[B, R, F]``, where a block makes something of them; else None.
      gates: the input's share of the gates' pre-activations, biases included, ``[B, n*g]``; None
        without gates.
      resets, mask: ``[B]`` bool, or None.
    """

    qkv: tuple[Array, ...]
    rows: Array | None
    gates: Array | None
    resets: Array | None
    mask: Array | None


def input_terms(
    plan: Plan,
    params: Mapping[str, Any],
    inputs: Array,
    resets: Array | None,
    mask: Array | None,
) -> InputTerms:
    """Computes the input terms of all steps, one product each.

    Args:
      plan: how.
      params: the cell's parameters.
      inputs: ``[..., R, I]``, any leading axes.
      resets: bool with the leading axes, or None.
      mask: the same.

    Returns:
      `InputTerms` with the leading axes of `inputs`.
    """
    cell, dtype = plan.cell, plan.dtype
    stream = accumulation_dtype(dtype)
    attending = cell.num_blocks > 1 and cell.input_queries
    projection = params["input_projection"]
    attentions = [
        packed_by_kind(cell, params["memory"][f"block_{k}"]["attention"])
        for k in range(1 if attending else cell.num_blocks)
    ]
    # Of these, a product with the projected rows is taken.
    readers: list[Mapping[str, Array]] = [attention["qkv"] for attention in attentions]
    if cell.gate_style is not None:
        readers = [*readers, params["gates"]["input"]]

    def dense(kernel: Array, bias: Array, x: Array) -> Array:
        product: Any = multiply_rows(x, kernel, dtype, plan.transpose)
        return add_bias(product.astype(stream), bias, plan.for_cpu)

    source, rows = inputs.astype(dtype), None
    combines = not attending and _pays_to_combine(inputs.shape, projection["kernel"], readers)
    if not combines:
        # Rounded once, like the output of the projection in the plain cell.
        product = dense(projection["kernel"], projection["bias"], source)
        source = product.astype(dtype)
        rows = source.astype(stream) if attending else None
    weights = [
        _combine(projection, r, dtype) if combines else (r["kernel"], r["bias"]) for r in readers
    ]
    queries = 0 if attending else query_key_sizes(cell)[0]

    def pack(kernel: Array, bias: Array, norm: Mapping[str, Array] | None, source: Array) -> Array:
        qkv: Array = dense(kernel, bias, source)
        if norm is not None:
            qkv = qkv.astype(dtype).astype(stream)
            qkv = layer_norm(qkv, norm["scale"], norm["bias"], plan.for_cpu)
        return qkv.astype(dtype)[..., queries:]

    if combines:  # Narrow inputs: to multiply again costs less than to keep the result.
        pack = jax.checkpoint(pack)
    packed = tuple(
        pack(kernel, bias, attention["qkv_norm"] if cell.qkv_norm else None, source)
        for attention, (kernel, bias) in zip(attentions, weights, strict=False)
    )
    gates = None
    if cell.gate_style is not None:
        # They want all R rows side by side.
        gates = dense(*weights[-1], source.reshape(*source.shape[:-2], 1, -1))[..., 0, :]
        gates = gates + as_rows(params["gates"]["memory"]["bias"], gates)
    return InputTerms(
        qkv=packed,
        rows=rows,
        gates=gates,
        resets=resets,
        mask=mask,
    )


def compute_dtype(
    cell: RelationalMemoryCell, params: Mapping[str, Any], input_dtype: Dtype
) -> Dtype:
    """The dtype of the products: the cell's, or what inputs and parameters promote to."""
    if cell.dtype is not None:
        return jnp.dtype(cell.dtype)
    return jnp.promote_types(input_dtype, params["input_projection"]["kernel"].dtype)


def _combine(
    projection: Mapping[str, Array], reader: Mapping[str, Array], dtype: Dtype
) -> tuple[Array, Array]:
    """Kernel and bias of the projection and a reader of it in one.

    Where the reader takes R rows side by side, so does the combined one.
    """
    width = projection["kernel"].shape[-1]
    stream = accumulation_dtype(dtype)
    kernel = reader["kernel"].astype(dtype).reshape(-1, width, reader["kernel"].shape[-1])

    def through(x: Array) -> Array:
        return jnp.einsum("if,rfn->rin", x.astype(dtype), kernel, preferred_element_type=stream)

    combined = through(projection["kernel"]).reshape(-1, kernel.shape[-1])
    bias = jnp.sum(through(projection["bias"][None]), axis=(0, 1))
    return combined, bias + reader["bias"].astype(stream)


def _pays_to_combine(
    shape: tuple[int, ...], kernel: Array, readers: list[Mapping[str, Array]]
) -> bool:
    """Whether it takes fewer operations to multiply the weights first, and then the inputs.

    It does if the input is narrow and there are many rows of it, as is common.
    """
    features, width = kernel.shape
    rows = math.prod(shape[:-1])
    outputs = sum(reader["kernel"].size // width for reader in readers)
    in_turn = rows * (features * width + width * outputs)
    return (rows + width) * features * outputs < 0.8 * in_turn
