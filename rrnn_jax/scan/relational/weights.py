"""The cell's parameters for the fast path: kernels and vectors, by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import Scope

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import packed_width
from rrnn_jax.typing import Array, Carry, Dtype, accumulation_dtype, widest

Shapes = dict[tuple[str, ...], tuple[int, ...]]


class CoreWeights(NamedTuple):
    """The weights of a recurrent step, in a dtype wide enough for sums of gradients over time.

    In bfloat16 a sum of some hundred terms stops growing: a new term is less than half of its
    last digit.

    Attributes:
      kernels: the matrices of products with memory rows, ``[F, N]``, by name.
      vectors: biases and norms' scales, by name.
    """

    kernels: dict[str, Array]
    vectors: dict[str, Array]


def checked_params(
    cell: RelationalMemoryCell,
    variables: Mapping[str, Any],
    carry: Carry,
    inputs: jax.ShapeDtypeStruct,
) -> Mapping[str, Any]:
    """The cell's parameters from its variables, with metadata boxes removed.

    Args:
      cell: the cell.
      variables: its collections.
      carry: the carry of a step.
      inputs: the inputs of a step.

    Raises:
      flax.errors.FlaxError: as the cell does for missing parameters or wrong shapes.
    """
    params = nn.meta.unbox(variables.get("params", {}))
    if not _has_shapes(params, param_shapes(cell, inputs.shape)):
        path = () if cell.scope is None else cell.scope.debug_path  # Named in the error.

        def step(params: Any, carry: Carry, inputs: Array) -> Any:
            scope = Scope({"params": params}, path=path)
            return cell.clone(parent=scope, name=None)(carry, inputs)

        jax.eval_shape(step, variables.get("params", {}), carry, inputs)
    return params


def param_shapes(cell: RelationalMemoryCell, input_shape: tuple[int, ...]) -> Shapes:
    """The shapes of the cell's parameters for a step's input, by path."""
    width, packed = cell.mem_size, sum(query_key_sizes(cell))
    rows = input_shape[-2] if cell.matrix_inputs else 1
    shapes: Shapes = {}

    def dense(fan_in: int, fan_out: int, *path: str) -> None:
        shapes[*path, "kernel"] = (fan_in, fan_out)
        shapes[*path, "bias"] = (fan_out,)

    def norm(size: int, *path: str) -> None:
        shapes[*path, "scale"] = shapes[*path, "bias"] = (size,)

    dense(input_shape[-1], width, "input_projection")
    for k in range(cell.num_blocks):
        block = ("memory", f"block_{k}")
        dense(width, packed, *block, "attention", "qkv")
        if cell.qkv_norm:
            norm(packed, *block, "attention", "qkv_norm")
        norm(width, *block, "attention_norm")
        norm(width, *block, "mlp_norm")
    for j in range(cell.attention_mlp_layers):
        dense(width, width, "memory", "mlp", f"layer_{j}")
    if cell.gate_style is not None:
        gates = packed_width(cell.gate_style, width, cell.output_gate)
        dense(rows * width, gates, "gates", "input")
        dense(width, gates, "gates", "memory")
    return shapes


def _has_shapes(params: Mapping[str, Any], shapes: Shapes) -> bool:
    for path, shape in shapes.items():
        found: Any = params
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None or np.shape(found) != shape:
            return False
    return True


def core_weights(cell: RelationalMemoryCell, params: Mapping[str, Any]) -> CoreWeights:
    """Selects the weights of the recurrent part from the cell's parameters.

    The gates' biases are part of the hoisted input term.
    """
    kernels: dict[str, Array] = {}
    vectors: dict[str, Array] = {}

    def take(name: str, module: Mapping[str, Any]) -> None:
        for leaf, value in module.items():
            value = value.astype(accumulation_dtype(value.dtype))
            if leaf == "kernel":
                kernels[name] = value
            else:
                vectors[f"{name}/{leaf}"] = value

    memory = params["memory"]
    for k in range(cell.num_blocks):
        block = memory[f"block_{k}"]
        attention = packed_by_kind(cell, block["attention"])
        take(f"block_{k}/qkv", attention["qkv"])
        if cell.qkv_norm:
            take(f"block_{k}/qkv_norm", attention["qkv_norm"])
        take(f"block_{k}/attention_norm", block["attention_norm"])
        take(f"block_{k}/mlp_norm", block["mlp_norm"])
    for j in range(cell.attention_mlp_layers):
        take(f"mlp/layer_{j}", memory["mlp"][f"layer_{j}"])
    if cell.gate_style is not None:
        take("gates", {"kernel": params["gates"]["memory"]["kernel"]})
    return CoreWeights(kernels, vectors)


def query_key_sizes(cell: RelationalMemoryCell) -> tuple[int, int, int]:
    """Widths of the packed queries, keys and values of all heads."""
    key_size = cell.head_size if cell.key_size is None else cell.key_size
    return cell.num_heads * key_size, cell.num_heads * key_size, cell.mem_size


def packed_by_kind(
    cell: RelationalMemoryCell, attention: Mapping[str, Mapping[str, Array]]
) -> dict[str, dict[str, Array]]:
    """The parameters of an attention with their packed axis reordered.

    From query, key and value of each head to all heads' queries, all heads' keys, all heads'
    values. A norm over the whole axis does not depend on the order.
    """
    heads = cell.num_heads
    key_size = cell.head_size if cell.key_size is None else cell.key_size

    def reorder(x: Array) -> Array:
        if key_size == cell.head_size:  # A single copy, which is faster for large kernels.
            kinds = x.reshape(*x.shape[:-1], heads, 3, key_size)
            return jnp.swapaxes(kinds, -3, -2).reshape(x.shape)
        x = x.reshape(*x.shape[:-1], heads, 2 * key_size + cell.head_size)
        kinds = jnp.split(x, (key_size, 2 * key_size), axis=-1)
        return jnp.concatenate([kind.reshape(*x.shape[:-2], -1) for kind in kinds], axis=-1)

    return {
        name: {leaf: reorder(value) for leaf, value in attention[name].items()}
        for name in ("qkv", "qkv_norm")
        if name in attention
    }


class Dtypes(NamedTuple):
    """The dtypes of products: all are the cell's `dtype`, if it has one.

    Attributes:
      inputs: for products of the inputs, including the gates' term.
      rows: for products of memory rows, and of input rows in the attention.
      gates: for the gates' product of the memory.
    """

    inputs: Dtype
    rows: Dtype
    gates: Dtype


def product_dtypes(
    cell: RelationalMemoryCell, params: Mapping[str, Any], input_dtype: Dtype, carry: Carry
) -> Dtypes:
    """The dtypes of the cell's products; by promotion if the cell has no `dtype`."""
    if cell.dtype is not None:
        return Dtypes(*[jnp.dtype(cell.dtype)] * 3)
    kernel = params["input_projection"]["kernel"].dtype
    memory = jax.tree.leaves(carry)[-1].dtype
    inputs = widest(input_dtype, kernel)
    return Dtypes(inputs, accumulation_dtype(inputs, memory), widest(memory, kernel))
