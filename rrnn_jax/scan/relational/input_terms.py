"""What a step takes from its input, computed for all steps at once: it needs no memory."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.relational.operations import add_bias, as_rows, layer_norm, multiply
from rrnn_jax.scan.relational.weights import Dtypes, packed_by_kind, query_key_sizes
from rrnn_jax.typing import Array, accumulation_dtype


class InputTerms(NamedTuple):
    """What a step takes from its input, for one step or, with a time axis, for all.

    Attributes:
      qkv: for the first block, and for every block if input rows stay the same
        (``input_queries=False``): the input rows' queries, keys and values, normalised if they are
        to be, ``[*B, R, H*(2K+D)]``; where input rows do not attend only keys and values,
        ``[*B, R, H*(K+D)]``.
      rows: the projected rows ``[*B, R, F]``, where a block makes something of them; else None.
      gates: the input's share of the gates' pre-activations, biases included, ``[*B, n*g]``; None
        without gates.
      present: the input rows that are there, ``[*B, R]`` bool; None for all.
      kept: what dropout keeps, ``[*B, S, F]`` bool; None without dropout.
    """

    qkv: tuple[Array, ...]
    rows: Array | None
    gates: Array | None
    present: Array | None = None
    kept: Array | None = None


def terms_of_inputs(
    cell: RelationalMemoryCell,
    cpu: bool,
    dtypes: Dtypes,
    params: Mapping[str, Any],
    inputs: Array,
    present: Array | None = None,
    kept: Array | None = None,
) -> InputTerms:
    """Computes the input terms of all steps, one product each.

    Args:
      cell: the cell's configuration.
      cpu: see `operations`.
      dtypes: of the products.
      params: the cell's parameters.
      inputs: ``[..., R, I]``, any leading axes.
      present: ``[..., R]`` bool, rows that are there; None for all.
      kept: ``[..., S, F]`` bool, what dropout keeps; None without dropout.

    Returns:
      `InputTerms` with the leading axes of `inputs`.
    """
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
    dense = partial(_dense, cpu, cell.precision)

    source, rows = inputs.astype(dtypes.inputs), None
    # Of rows that are not there the gates see zeros, not the projection's bias.
    combines = not attending and dtypes.inputs == dtypes.rows and present is None
    combines = combines and _pays_to_combine(inputs.shape, projection["kernel"], readers)
    if combines:
        readers = [_combine(projection, r, dtypes.inputs, cell.precision) for r in readers]
    else:
        # Rounded once, like the output of the projection in the plain cell.
        source = dense(projection, source).astype(dtypes.inputs)
        rows = source.astype(accumulation_dtype(dtypes.rows)) if attending else None
    queries = 0 if attending else query_key_sizes(cell)[0]

    def pack(reader: Mapping[str, Array], norm: Mapping[str, Array] | None, source: Array) -> Array:
        qkv = dense(reader, source.astype(dtypes.rows))
        if norm is not None:
            wide = qkv.astype(dtypes.rows).astype(qkv.dtype)
            qkv = layer_norm(cpu, wide, norm["scale"], norm["bias"])
        return qkv.astype(dtypes.rows)[..., queries:]

    if combines:  # Narrow inputs: to multiply again costs less than to keep the result.
        pack = jax.checkpoint(pack)
    packed = tuple(
        pack(reader, attention["qkv_norm"] if cell.qkv_norm else None, source)
        for attention, reader in zip(attentions, readers, strict=False)
    )
    gates = None
    if cell.gate_style is not None:
        if present is not None:
            source = jnp.where(present[..., None], source, jnp.zeros_like(source))
        # They want all R rows side by side.
        gates = dense(readers[-1], source.reshape(*source.shape[:-2], -1)[..., None, :])[..., 0, :]
        gates = gates.astype(accumulation_dtype(gates.dtype, dtypes.gates))
        gates = gates + as_rows(params["gates"]["memory"]["bias"], gates)
    return InputTerms(packed, rows, gates, present, kept)


def _dense(cpu: bool, precision: PrecisionLike, weights: Mapping[str, Array], x: Array) -> Array:
    """A product in the dtype of `x`, in float32 or wider from there on."""
    kernel = weights["kernel"]
    wide = kernel.astype(accumulation_dtype(x.dtype, kernel.dtype))
    product = multiply(cpu, x, wide, kernel.astype(x.dtype), None, precision)
    return add_bias(cpu, product.astype(accumulation_dtype(x.dtype)), weights["bias"])


def _combine(
    projection: Mapping[str, Array],
    reader: Mapping[str, Array],
    dtype: Any,
    precision: PrecisionLike,
) -> Mapping[str, Array]:
    """Kernel and bias of the projection and a reader of it in one.

    Where the reader takes R rows side by side, so does the combined one.
    """
    width = projection["kernel"].shape[-1]
    wide = accumulation_dtype(dtype)
    product = partial(jnp.einsum, precision=precision, preferred_element_type=wide)
    kernel = reader["kernel"].astype(dtype).reshape(-1, width, reader["kernel"].shape[-1])

    def through(x: Array) -> Array:
        return product("if,rfn->rin", x.astype(dtype), kernel)

    combined = through(projection["kernel"]).reshape(-1, kernel.shape[-1])
    bias = jnp.sum(through(projection["bias"][None]), axis=(0, 1))
    return {"kernel": combined, "bias": bias + reader["bias"].astype(wide)}


def _pays_to_combine(
    shape: tuple[Any, ...], kernel: Array, readers: list[Mapping[str, Array]]
) -> bool:
    """Whether it takes fewer operations to multiply the weights first, and then the inputs.

    It does if the input is narrow and there are many rows of it, as is common; a size that is not
    known (`jax.export`) is taken for many.
    """
    features, width = kernel.shape
    known = all(isinstance(size, int) for size in shape)
    rows = math.prod(shape[:-1]) if known else 16 * width
    outputs = sum(reader["kernel"].size // width for reader in readers)
    in_turn = rows * (features * width + width * outputs)
    return (rows + width) * features * outputs < 0.8 * in_turn
