"""One step of the relational memory as a pure function.

All that depends on inputs alone is computed beforehand, for every step at once.

Elementwise work stays in ``[B, rows, F]``, the products' own shape: a reshape between two
elementwise operations keeps XLA's CPU backend from vectorising the loop that fuses them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.attention import LAYER_NORM_EPSILON
from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import Gates, gate_memory
from rrnn_jax.typing import Array, Carry, Dtype, accumulation_dtype

Linear = Callable[[str, Array], Array]
"""``linear(name, rows)`` multiplies rows ``[B, N, F]`` by the kernel of that name."""


class InputTerms(NamedTuple):
    """What a step takes from its input, for one step or, with a time axis, for all.

    Attributes:
      qkv: the input rows' normalised queries, keys and values in the first block,
        ``[B, R, H, 2K+D]``; only keys and values, ``[B, R, H, K+D]``, with one block.
      rows: the projected rows ``[B, R, F]``; None with one block, which does not need them.
      gates: the input's share of the gates' pre-activations, biases included, ``[B, n*g]``; None
        without gates.
      resets, mask: ``[B]`` bool, or None.
    """

    qkv: Array
    rows: Array | None
    gates: Array | None
    resets: Array | None
    mask: Array | None


def input_terms(
    cell: RelationalMemoryCell,
    params: Mapping[str, Any],
    inputs: Array,
    resets: Array | None,
    mask: Array | None,
) -> InputTerms:
    """Computes the input terms of all steps, one product each.

    Args:
      cell: the cell.
      params: its parameters.
      inputs: ``[..., R, I]``, any leading axes.
      resets: bool with the leading axes, or None.
      mask: the same.

    Returns:
      `InputTerms` with the leading axes of `inputs`.
    """
    dtype = compute_dtype(cell, params, inputs.dtype)
    stream = accumulation_dtype(dtype)

    def dense(module: Mapping[str, Any], x: Array) -> Array:
        product = x.astype(dtype) @ module["kernel"].astype(dtype)
        product = product.astype(stream)
        return product + _as_rows(module["bias"], product)

    # Rounded once, like the output of the projection in the plain cell.
    rows = dense(params["input_projection"], inputs).astype(dtype)
    block = params["memory"]["block_0"]["attention"]
    norm = block["qkv_norm"]
    qkv = dense(block["qkv"], rows).astype(dtype).astype(stream)
    qkv = layer_norm(qkv, norm["scale"], norm["bias"]).astype(dtype)
    key_size = cell.head_size if cell.key_size is None else cell.key_size
    qkv = qkv.reshape(*qkv.shape[:-1], cell.num_heads, 2 * key_size + cell.head_size)
    gates = None
    if cell.gate_style is not None:
        flat = rows.reshape(*rows.shape[:-2], -1)
        gates = dense(params["gates"]["input"], flat)
        gates = gates + _as_rows(params["gates"]["memory"]["bias"], gates)
    one_block = cell.num_blocks == 1
    return InputTerms(
        qkv=qkv[..., key_size:] if one_block else qkv,
        rows=None if one_block else rows.astype(stream),
        gates=gates,
        resets=resets,
        mask=mask,
    )


def recurrent_step(
    cell: RelationalMemoryCell,
    linear: Linear,
    vectors: Mapping[str, Array],
    carry: Carry,
    reset_carry: Carry | None,
    terms: InputTerms,
    dtype: Dtype,
) -> Carry:
    """The step that `RelationalMemoryCell` takes, from its input terms.

    Args:
      cell: the cell's configuration.
      linear: multiplies by the kernels; the backward pass puts its own in place.
      vectors: biases and scales.
      carry: the memory ``[B, S, F]`` or, with an output gate, (m, h).
      reset_carry: what a reset puts in its place; None where there are no resets.
      terms: of this step.
      dtype: dtype of the products.

    Returns:
      The next carry.
    """
    if terms.resets is not None:
        carry = _select(terms.resets, reset_carry, carry)
    memory, hidden = carry if cell.output_gate else (carry, None)
    stream = accumulation_dtype(dtype, memory.dtype)

    def dense(name: str, rows: Array) -> Array:
        product = linear(name, rows.astype(dtype)).astype(stream)
        return product + _as_rows(vectors[f"{name}/bias"], product)

    def norm(name: str, rows: Array) -> Array:
        return layer_norm(rows, vectors[f"{name}/scale"], vectors[f"{name}/bias"])

    rows = memory.astype(stream)
    for k in range(cell.num_blocks):
        is_last = k == cell.num_blocks - 1
        qkv = norm(f"block_{k}/qkv_norm", dense(f"block_{k}/qkv", rows))
        attended = _attend(cell, qkv.astype(dtype), terms.qkv if k == 0 else None, is_last)
        if k == 0 and not is_last:
            assert terms.rows is not None
            rows = jnp.concatenate([rows, terms.rows.astype(stream)], axis=1)
        elif is_last:
            rows = rows[:, : cell.mem_slots]
        rows = norm(f"block_{k}/attention_norm", rows + attended.astype(stream))
        hidden_rows = rows
        for j in range(cell.attention_mlp_layers):
            hidden_rows = jax.nn.relu(hidden_rows) if j > 0 else hidden_rows
            hidden_rows = dense(f"mlp/layer_{j}", hidden_rows)
        rows = norm(f"block_{k}/mlp_norm", rows + hidden_rows)

    new_carry = _gate(cell, linear, memory, hidden, rows, terms.gates, dtype)
    return new_carry if terms.mask is None else _select(terms.mask, new_carry, carry)


def _attend(
    cell: RelationalMemoryCell, qkv: Array, input_qkv: Array | None, is_last: bool
) -> Array:
    """Attention of memory rows (and, between blocks, input rows) to all rows.

    Heads go before rows: batched products want their batch axes in front.
    """
    batch, num_rows = qkv.shape[:2]
    key_size = cell.head_size if cell.key_size is None else cell.key_size
    packed = 2 * key_size + cell.head_size

    def heads_first(x: Array) -> Array:
        return jnp.swapaxes(x, 1, 2)

    query, key, value = jnp.split(
        heads_first(qkv.reshape(batch, num_rows, cell.num_heads, packed)),
        (key_size, 2 * key_size),
        axis=-1,
    )
    if input_qkv is not None:
        from_input = heads_first(input_qkv)
        if not is_last:
            query = jnp.concatenate([query, from_input[..., :key_size]], axis=2)
            from_input = from_input[..., key_size:]
        key = jnp.concatenate([key, from_input[..., :key_size]], axis=2)
        value = jnp.concatenate([value, from_input[..., key_size:]], axis=2)
    elif is_last:
        query = query[:, :, : cell.mem_slots]
    dtype = accumulation_dtype(query.dtype)
    query = query * jnp.asarray(key_size**-0.5, query.dtype)
    logits = jnp.einsum("bhqk,bhmk->bhqm", query, key, preferred_element_type=dtype)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    attended = jnp.einsum("bhqm,bhmd->bhqd", weights, value, preferred_element_type=dtype)
    attended = heads_first(attended.astype(value.dtype))
    return attended.reshape(batch, attended.shape[1], cell.mem_size)


def _gate(
    cell: RelationalMemoryCell,
    linear: Linear,
    memory: Array,
    hidden: Array | None,
    candidate: Array,
    from_input: Array | None,
    dtype: Dtype,
) -> Carry:
    """Blends the candidate into the memory, as the cell does."""
    if from_input is None:
        return candidate.astype(memory.dtype)
    shown = jnp.tanh(memory) if hidden is None else hidden
    packed = linear("gates", shown.astype(dtype)).astype(from_input.dtype) + from_input[:, None]
    parts = jnp.split(packed, 3 if cell.output_gate else 2, axis=-1)
    gates = Gates(
        input=jax.nn.sigmoid(parts[0] + jnp.asarray(cell.input_bias, packed.dtype)),
        forget=jax.nn.sigmoid(parts[1] + jnp.asarray(cell.forget_bias, packed.dtype)),
    )
    if not cell.output_gate:
        return gate_memory(gates, jnp.tanh(candidate), memory)
    new_memory = gate_memory(gates, candidate, memory)
    output = jax.nn.sigmoid(parts[2]) * jnp.tanh(new_memory.astype(packed.dtype))
    return new_memory, output.astype(memory.dtype)


def _select(condition: Array, on_true: Any, on_false: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition[:, None, None], a, b), on_true, on_false)


def compute_dtype(
    cell: RelationalMemoryCell, params: Mapping[str, Any], input_dtype: Dtype
) -> Dtype:
    """The dtype of the products: the cell's, or what inputs and parameters promote to."""
    if cell.dtype is not None:
        return jnp.dtype(cell.dtype)
    return jnp.promote_types(input_dtype, params["input_projection"]["kernel"].dtype)


@jax.custom_vjp
def layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    """LayerNorm over the last axis in the dtype of `x`, with a backward pass of two row sums."""
    return _layer_norm_fwd(x, scale, bias)[0]


def _layer_norm_fwd(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    rstd = jax.lax.rsqrt(variance + jnp.asarray(LAYER_NORM_EPSILON, x.dtype))
    normal = centred * rstd
    scaled = normal * _as_rows(scale, x)
    return scaled + _as_rows(bias, x), (normal, rstd, scale, bias)


def _layer_norm_bwd(residuals: tuple, g: Array) -> tuple[Array, Array, Array]:
    normal, rstd, scale, bias = residuals
    axes = tuple(range(g.ndim - 1))
    d_scale = jnp.sum(g * normal, axis=axes).astype(scale.dtype)
    d_bias = jnp.sum(g, axis=axes).astype(bias.dtype)
    g = g * _as_rows(scale, g)
    mean = jnp.mean(g, axis=-1, keepdims=True)
    projection = jnp.mean(g * normal, axis=-1, keepdims=True)
    return rstd * (g - mean - normal * projection), d_scale, d_bias


layer_norm.defvjp(_layer_norm_fwd, _layer_norm_bwd)


def _as_rows(vector: Array, like: Array) -> Array:
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))
