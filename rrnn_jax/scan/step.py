"""One step of the relational memory as a pure function.

All that depends on inputs alone is computed beforehand (`input_terms.py`).

The packed axis of queries, keys and values is laid out [all heads' q, all heads' k, all heads' v]
here, not head by head as in the parameters (`weights.packed_by_kind`): they are taken apart at
every step, and put together again going backward, which contiguous pieces make cheap.

Elementwise work stays in ``[B, rows, F]``, the products' own shape: a reshape between two
elementwise operations keeps XLA's CPU backend from vectorising the loop that fuses them.
"""

import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import Gates, gate_memory
from rrnn_jax.scan.input_terms import InputTerms
from rrnn_jax.scan.sequence import select
from rrnn_jax.scan.tape import Operations
from rrnn_jax.scan.weights import query_key_sizes
from rrnn_jax.typing import Array, Carry, Dtype, accumulation_dtype


def recurrent_step(
    cell: RelationalMemoryCell,
    ops: Operations,
    carry: Carry,
    reset_carry: Carry | None,
    terms: InputTerms,
    dtype: Dtype,
) -> Carry:
    """The step that `RelationalMemoryCell` takes, from its input terms.

    Args:
      cell: the cell's configuration.
      ops: how to compute: for the first time, or again for the gradient.
      carry: the memory ``[B, S, F]`` or, with an output gate, (m, h).
      reset_carry: what a reset puts in its place; None where there are no resets.
      terms: of this step.
      dtype: dtype of the products.

    Returns:
      The next carry.
    """
    if terms.resets is not None:
        carry = select(terms.resets, reset_carry, carry)
    memory, hidden = carry if cell.output_gate else (carry, None)
    stream = accumulation_dtype(dtype, memory.dtype)

    def dense(name: str, rows: Array, keep: bool = False) -> Array:
        return ops.bias(name, ops.product(name, rows, keep).astype(stream))

    rows = memory.astype(stream)
    for k in range(cell.num_blocks):
        only_memory = k == cell.num_blocks - 1 or not cell.input_queries
        qkv = dense(f"block_{k}/qkv", rows, keep=not cell.qkv_norm)
        if cell.qkv_norm:
            qkv = ops.norm(f"block_{k}/qkv_norm", qkv)
        from_input = terms.qkv[k] if k < len(terms.qkv) else None
        attended = _attend(cell, ops, qkv.astype(dtype), from_input, only_memory)
        if only_memory:
            rows = rows[:, : cell.mem_slots]
        elif k == 0:
            assert terms.rows is not None
            rows = jnp.concatenate([rows, terms.rows.astype(stream)], axis=1)
        rows = ops.norm(f"block_{k}/attention_norm", rows + attended.astype(stream))
        hidden_rows = rows
        for j in range(cell.attention_mlp_layers):
            hidden_rows = ops.relu(hidden_rows) if j > 0 else hidden_rows
            hidden_rows = dense(f"mlp/layer_{j}", hidden_rows)
        rows = ops.norm(f"block_{k}/mlp_norm", rows + hidden_rows)

    new_carry = _gate(cell, ops, memory, hidden, rows, terms.gates)
    return new_carry if terms.mask is None else select(terms.mask, new_carry, carry)


def _attend(
    cell: RelationalMemoryCell,
    ops: Operations,
    qkv: Array,
    input_qkv: Array | None,
    only_memory: bool,
) -> Array:
    """Attention of memory rows (and, between blocks, input rows) to all rows.

    Heads go before rows: batched products want their batch axes in front.
    """
    queries, keys, _ = query_key_sizes(cell)

    def heads_first(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(*x.shape[:2], cell.num_heads, -1), 1, 2)

    query, key, value = jnp.split(qkv, (queries, queries + keys), axis=-1)
    if only_memory:
        query = query[:, : cell.mem_slots]
    query, key, value = heads_first(query), heads_first(key), heads_first(value)
    if input_qkv is not None:
        if not only_memory:
            query = jnp.concatenate([query, heads_first(input_qkv[..., :queries])], axis=2)
        from_input = input_qkv[..., input_qkv.shape[-1] - keys - cell.mem_size :]
        input_key, input_value = jnp.split(from_input, (keys,), axis=-1)
        key = jnp.concatenate([key, heads_first(input_key)], axis=2)
        value = jnp.concatenate([value, heads_first(input_value)], axis=2)
    attended = jnp.swapaxes(ops.attend(query, key, value), 1, 2)
    return attended.reshape(*attended.shape[:2], cell.mem_size)


def _gate(
    cell: RelationalMemoryCell,
    ops: Operations,
    memory: Array,
    hidden: Array | None,
    candidate: Array,
    from_input: Array | None,
) -> Carry:
    """Blends the candidate into the memory, as the cell does."""
    if from_input is None:
        return candidate.astype(memory.dtype)
    shown = jnp.tanh(memory) if hidden is None else hidden
    packed = ops.product("gates", shown).astype(from_input.dtype) + from_input[:, None]
    parts = jnp.split(packed, 3 if cell.output_gate else 2, axis=-1)
    gates = Gates(
        input=ops.sigmoid(parts[0] + jnp.asarray(cell.input_bias, packed.dtype)),
        forget=ops.sigmoid(parts[1] + jnp.asarray(cell.forget_bias, packed.dtype)),
    )
    if not cell.output_gate:
        return gate_memory(gates, jnp.tanh(candidate), memory)
    new_memory = gate_memory(gates, candidate, memory)
    output = ops.sigmoid(parts[2]) * jnp.tanh(new_memory.astype(packed.dtype))
    return new_memory, output.astype(memory.dtype)
