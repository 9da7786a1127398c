"""A step of the recurrence with one slot, and its scan; see `one_slot`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.attention import LAYER_NORM_EPSILON
from rrnn_jax.scan.relational.operations import as_rows
from rrnn_jax.typing import Array, Dtype


class Core(NamedTuple):
    """Static sizes and settings: heads H, head size D, padded head size E, layers of the MLP."""

    heads: int
    size: int
    padded: int
    layers: int
    input_bias: float
    forget_bias: float
    low: Dtype  # Of products.
    precision: Any
    unroll: int

    @property
    def width(self) -> int:
        """P."""
        return self.heads * self.padded


class Weights(NamedTuple):
    """Padded weights, in a wide dtype; norms' biases are called shifts."""

    qkv: Array  # [P, 3P]
    qkv_bias: Array
    qkv_scale: Array
    qkv_shift: Array
    attention_scale: Array
    attention_shift: Array
    mlp: tuple[Array, ...]  # [P, P]
    mlp_bias: tuple[Array, ...]
    mlp_scale: Array
    mlp_shift: Array
    gates: Array  # [P, 2P]


class Inputs(NamedTuple):
    """The input's keys and values ``[..., N, 2P]``, and its term of the gates ``[..., N, 2P]``."""

    kv: Array
    gates: Array


class Saved(NamedTuple):
    """The results of a step's products."""

    qkv: Array  # [..., N, 3P]
    hidden: list[Array]  # The MLP's inputs: a, and its hidden layers.
    mlp: Array
    gates: Array  # [..., N, 2P]


def parts(core: Core, x: Array) -> list[Array]:
    """An axis of several times P features, split."""
    return jnp.split(x, x.shape[-1] // core.width, axis=-1)


def heads(core: Core, x: Array) -> Array:
    """``[..., P]`` as ``[..., H, E]``."""
    return x.reshape(*x.shape[:-1], core.heads, core.padded)


def joined(x: Array) -> Array:
    """``[..., H, E]`` as ``[..., P]``."""
    return x.reshape(*x.shape[:-2], -1)


def total(x: Array) -> Array:
    """The sum over the last axis, which is kept."""
    return jnp.sum(x, axis=-1, keepdims=True)


def real(core: Core, x: Array) -> int:
    """How many of the features in the last axis are real."""
    return x.shape[-1] // core.padded * core.size


def normal(core: Core, x: Array) -> tuple[Array, Array]:
    """Rows normalised to zero mean and unit variance, and the factor ``[..., 1]``."""
    count = real(core, x)
    centred = x - total(x) / count
    if core.padded != core.size:
        is_real = np.arange(x.shape[-1]) % core.padded < core.size
        centred *= as_rows(jnp.asarray(is_real), x)
    rstd = jax.lax.rsqrt(total(jnp.square(centred)) / count + LAYER_NORM_EPSILON)
    return centred * rstd, rstd


def scaled(normals: Array, scale: Array, shift: Array) -> Array:
    """The last part of a norm."""
    return normals * as_rows(scale, normals) + as_rows(shift, normals)


def product(core: Core, rows: Array, kernel: Array, bias: Array | None = None) -> Array:
    """A product in the low dtype; XLA adds the bias within it."""
    found = jnp.dot(rows, kernel.astype(core.low), precision=core.precision)
    return found if bias is None else found + as_rows(bias, found)


def normed_qkv(core: Core, weights: Weights, normals: Array) -> list[Array]:
    """Queries, keys and values from normal rows ``[..., 3P]``, rounded; as ``[..., H, E]``."""
    qkv = scaled(normals, weights.qkv_scale, weights.qkv_shift).astype(core.low)
    return [heads(core, x.astype(normals.dtype)) for x in parts(core, qkv)]


def input_kv(core: Core, inputs: Inputs, dtype: Dtype) -> list[Array]:
    """The input's keys and values, as ``[..., H, E]``."""
    return [heads(core, x.astype(dtype)) for x in parts(core, inputs.kv)]


def memory_weight(core: Core, query: Array, key: Array, input_key: Array) -> Array:
    """The attention weight of the memory, ``[..., H, 1]``."""
    return jax.nn.sigmoid(total(query * (key - input_key)) * core.size**-0.5)


def attend(core: Core, weights: Weights, qkv: Array, memory: Array, inputs: Inputs) -> Array:
    """a, in the low dtype."""
    wide = memory.dtype
    query, key, value = normed_qkv(core, weights, normal(core, qkv.astype(wide))[0])
    input_key, input_value = input_kv(core, inputs, wide)
    weight = memory_weight(core, query, key, input_key)
    added = memory + joined(input_value + weight * (value - input_value))
    normals = normal(core, added)[0]
    return scaled(normals, weights.attention_scale, weights.attention_shift).astype(core.low)


def update(
    core: Core, weights: Weights, a: Array, mlp: Array, gates: Array, memory: Array, inputs: Inputs
) -> Array:
    """The next memory."""
    wide = memory.dtype
    normals = normal(core, a.astype(wide) + mlp.astype(wide))[0]
    candidate = jnp.tanh(scaled(normals, weights.mlp_scale, weights.mlp_shift))
    entry, forget = gate_values(core, gates, inputs, wide)
    return entry * candidate + forget * memory


def gate_values(core: Core, gates: Array, inputs: Inputs, dtype: Dtype) -> list[Array]:
    """The input gate and the forget gate."""
    packed = parts(core, gates.astype(dtype) + inputs.gates.astype(dtype))
    biases = core.input_bias, core.forget_bias
    return [jax.nn.sigmoid(x + bias) for x, bias in zip(packed, biases, strict=True)]


def forward(
    core: Core, weights: Weights, first: Array, inputs: Inputs, save: bool
) -> tuple[Array, Array | None]:
    """The memories after each step, and the packed results of its products or None."""

    def body(carry: tuple, inputs: Inputs) -> tuple[tuple, tuple]:
        memory, low, shown = carry
        qkv = product(core, low, weights.qkv, weights.qkv_bias)
        rows = [attend(core, weights, qkv, memory, inputs)]
        for j, layer in enumerate(zip(weights.mlp, weights.mlp_bias, strict=True)):
            found = product(core, rows[-1], *layer)
            rows += [jax.nn.relu(found) if j < core.layers - 1 else found]
        gates = product(core, shown, weights.gates)
        memory = update(core, weights, rows[0], rows[-1], gates, memory, inputs)
        saved = jnp.concatenate([qkv, *rows, gates], axis=-1) if save else None
        return (memory, *_shown(core, memory)), (memory, saved)

    state = first, *_shown(core, first)
    return jax.lax.scan(body, state, inputs, unroll=core.unroll)[1]


def _shown(core: Core, memory: Array) -> tuple[Array, Array]:
    """The memory as the operand of qkv's product, and of the gates'."""
    return memory.astype(core.low), jnp.tanh(memory).astype(core.low)


def unpack(core: Core, saved: Array) -> Saved:
    """What `forward` packed."""
    width, last = core.width, core.layers + 4
    rows = parts(core, saved[..., 3 * width : last * width])
    return Saved(saved[..., : 3 * width], rows[:-1], rows[-1], saved[..., last * width :])
