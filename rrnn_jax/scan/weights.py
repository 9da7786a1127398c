"""The cell's parameters as the fast path wants them: kernels apart from vectors, by name."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.typing import Array, Carry


class CoreWeights(NamedTuple):
    """What a recurrent step needs.

    Attributes:
      kernels: matrices that multiply something of the memory, ``[F, N]``, by name.
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
    """The cell's parameters out of its variables, boxes of metadata opened.

    Args:
      cell: the cell.
      variables: its collections.
      carry: of a step.
      inputs: those of a step.

    Raises:
      flax.errors.FlaxError: what the cell itself raises of parameters that are missing, or of other
        shapes than it would make.
    """
    cell = cell.clone(parent=None, name=None)
    hashable: Any = cell  # A Flax module is, though its dataclass does not say so.
    features = inputs.shape[len(inputs.shape) - cell.num_feature_axes :]
    params = {"params": variables["params"]} if "params" in variables else {}
    if not _own_shapes(hashable, features).items() <= _shapes_by_path(params).items():
        jax.eval_shape(cell.apply, params, carry, inputs)
    return nn.meta.unbox(params["params"])


@lru_cache(maxsize=64)
def _own_shapes(
    cell: RelationalMemoryCell, features: tuple[int, ...]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of the parameters that the cell makes for inputs of that shape."""

    def init() -> Any:
        key = jax.random.key(0)
        carry = cell.initialize_carry(key, features)
        return cell.init(key, carry, jnp.zeros(features, cell.param_dtype))

    return _shapes_by_path(jax.eval_shape(init))


def _shapes_by_path(variables: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
    return {
        # What is not a key of a dictionary leads into a box.
        tuple(k.key for k in path if isinstance(k, jax.tree_util.DictKey)): jnp.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


def core_weights(cell: RelationalMemoryCell, params: Mapping[str, Any]) -> CoreWeights:
    """Picks the weights of the recurrent part from the cell's parameters.

    The gates' biases are not among them: they enter with the hoisted input term.
    """
    kernels: dict[str, Array] = {}
    vectors: dict[str, Array] = {}

    def take(name: str, module: Mapping[str, Any]) -> None:
        for leaf, value in module.items():
            (kernels if leaf == "kernel" else vectors)[
                name if leaf == "kernel" else f"{name}/{leaf}"
            ] = value

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
        kernels["gates"] = params["gates"]["memory"]["kernel"]
    return CoreWeights(kernels, vectors)


def query_key_sizes(cell: RelationalMemoryCell) -> tuple[int, int, int]:
    """Widths of the packed queries, keys and values of all heads."""
    key_size = cell.head_size if cell.key_size is None else cell.key_size
    return cell.num_heads * key_size, cell.num_heads * key_size, cell.mem_size


def packed_by_kind(
    cell: RelationalMemoryCell, attention: Mapping[str, Mapping[str, Array]]
) -> dict[str, dict[str, Array]]:
    """The parameters of an attention with their packed axis reordered.

    From head by head, and within a head as query, key, value, to all heads' queries, all heads'
    keys, all heads' values. A norm over the whole axis does not notice.
    """
    heads = cell.num_heads
    key_size = cell.head_size if cell.key_size is None else cell.key_size

    def reorder(x: Array) -> Array:
        if key_size == cell.head_size:  # One copy; of large kernels the other way takes longer.
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
