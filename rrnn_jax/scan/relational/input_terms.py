"""The terms of a step that depend only on its input, computed for all steps at once."""

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
    """The input terms of one step or, with a time axis, of all steps.

    Attributes:
      qkv: for the first block, and for every block if input rows stay the same
        (``input_queries=False``): the input rows' queries, keys and values (normalised with
        `qkv_norm`), ``[*B, R, H*(2K+D)]``; if input rows do not attend, only keys and values,
        ``[*B, R, H*(K+D)]``.
      rows: the projected rows ``[*B, R, F]``, if a block needs them; else None.
      gates: the input's term of the gates' pre-activations, with biases, ``[*B, n*g]``; None
        without gates.
      present: the valid input rows, ``[*B, R]`` bool; None for all.
      kept: the units that dropout keeps, ``[*B, S, F]`` bool; None without dropout.
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
    """Computes the input terms of all steps with one product each.

    Args:
      cell: the cell's configuration.
      cpu: see `operations`.
      dtypes: dtypes of the products.
      params: the cell's parameters.
      inputs: ``[..., R, I]``, any leading axes.
      present: ``[..., R]`` bool, valid rows; None for all.
      kept: ``[..., S, F]`` bool, the units that dropout keeps; None without dropout.

    Returns:
      `InputTerms` with the leading axes of `inputs`.
    """
    attending = cell.num_blocks > 1 and cell.input_queries
    projection = params["input_projection"]
    attentions = [
        packed_by_kind(cell, params["memory"][f"block_{k}"]["attention"])
        for k in range(1 if attending else cell.num_blocks)
    ]
    # The modules that multiply the projected rows.
    readers: list[Mapping[str, Array]] = [attention["qkv"] for attention in attentions]
    if cell.gate_style is not None:
        readers = [*readers, params["gates"]["input"]]
    dense = partial(_dense, cpu, cell.precision)

    source, rows = inputs.astype(dtypes.inputs), None
    # For masked rows the gates get zeros, not the projection's bias, so nothing is combined.
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

    if combines:  # With narrow inputs, recomputing the product is cheaper than storing it.
        pack = jax.checkpoint(pack)
    packed = tuple(
        pack(reader, attention["qkv_norm"] if cell.qkv_norm else None, source)
        for attention, reader in zip(attentions, readers, strict=False)
    )
    gates = None
    if cell.gate_style is not None:
        if present is not None:
            source = jnp.where(present[..., None], source, jnp.zeros_like(source))
        # The gates need all R rows concatenated.
        gates = dense(readers[-1], source.reshape(*source.shape[:-2], -1)[..., None, :])[..., 0, :]
        gates = gates.astype(accumulation_dtype(dtypes.gates))
        gates = gates + as_rows(params["gates"]["memory"]["bias"], gates)
    return InputTerms(packed, rows, gates, present, kept)


def _dense(cpu: bool, precision: PrecisionLike, weights: Mapping[str, Array], x: Array) -> Array:
    """A product in the dtype of `x`; the result is float32 or wider."""
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
    """Kernel and bias of the projection and a reader, combined into one layer.

    If the reader takes R concatenated rows, so does the combined layer.
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
    """Whether multiplying the weights first, and then the inputs, takes fewer operations.

    It does if the input is narrow and has many rows, as is common. An unknown size (`jax.export`)
    counts as many.
    """
    features, width = kernel.shape
    known = all(isinstance(size, int) for size in shape)
    rows = math.prod(shape[:-1]) if known else 16 * width
    outputs = sum(reader["kernel"].size // width for reader in readers)
    in_turn = rows * (features * width + width * outputs)
    return (rows + width) * features * outputs < 0.8 * in_turn
