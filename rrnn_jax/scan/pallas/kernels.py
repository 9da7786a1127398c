"""Everything between the products of a step: two forward and three backward Pallas kernels.

On a GPU, a step of a small core is bound by the number of its operations, and a step of a large one
by reading and writing arrays. XLA compiles a step to 32 operations and its backward pass to 63
(counted manually at the size of Nth Farthest); with these kernels there are 7 and 9.

Every program of a kernel handles one sequence of the batch. All arrays are whole; values saved for
all steps are read and written in place, at step ``t``. Rows are ``[S, H, D]`` throughout.
Norms, softmax, gates and sums are in float32, results in the dtype of the products.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rrnn_jax.scan.pallas.arithmetic import (
    Ref,
    Spec,
    attention_backward,
    attention_of,
    flag_of,
    gates_backward,
    memory_before,
    next_memory,
    next_reset,
    norm_backward,
    normalise,
    parted,
    row_sums,
    three_of,
    wide,
)


def attend(
    spec: Spec,
    t: Ref,
    flags: Ref,
    fresh: Ref,
    qkv: Ref,
    vectors: Ref,
    norm: Ref,
    memories: Ref,
    terms: Ref,
    *rest: Ref,
) -> None:
    """From the packed product to the normalised sum of the memory and its attention.

    Args:
      spec: see `Spec`.
      t: int32 ``[1]``.
      flags: int32 ``[T, B, 2]``, see `Spec`; unused without flags.
      fresh: the memory after a reset, ``[B, S, H, D]``; unused without resets.
      qkv: the product ``[B, S, 3, H, D]``.
      vectors: ``[3, 3, H, D]``: bias of the product, scale and bias of the norm.
      norm: ``[2, H, D]``: scale and bias of the norm of the rows.
      memories: before each step ``[T+1, B, S, H, D]``.
      terms: keys and values of the input rows, ``[T, B, R, 2, H, D]``.
      rest: buffers of all steps for the product and the rows (both or neither), then the results:
        the rows ``[B, S, H, D]`` and the buffers again.
    """
    b, step = pl.program_id(0), t[0]
    rows_out, *buffers = rest[len(rest) // 2 :]
    attention = attention_of(b, step, three_of(qkv, b), vectors, terms)
    normal, _ = normalise(memory_before(spec, b, step, flags, fresh, memories) + attention.attended)
    rows = (normal * norm[0][None] + norm[1][None]).astype(rows_out.dtype)
    rows_out[b] = rows
    if buffers:
        all_qkv, all_rows = buffers
        all_rows[step, b] = rows
        for kind in range(3):
            all_qkv[step, b, :, kind] = qkv[b, :, kind]


def attend_backward(
    spec: Spec,
    t: Ref,
    flags: Ref,
    fresh: Ref,
    d_product: Ref,
    d_rows: Ref,
    all_qkv: Ref,
    memories: Ref,
    vectors: Ref,
    norm: Ref,
    d_memory: Ref,
    terms: Ref,
    *rest: Ref,
) -> None:
    """The backward pass of `attend`.

    Args:
      spec: see `Spec`.
      t: int32 ``[1]``.
      flags: as in `attend`.
      fresh: as in `attend`.
      d_product: cotangent of the rows through the MLP.
      d_rows: cotangent of the rows through the residual connection.
      all_qkv: the products of all steps ``[T, B, S, 3, H, D]``.
      memories: before each step ``[T+1, B, S, H, D]``.
      vectors: as in `attend`.
      norm: as in `attend`.
      d_memory: float32.
      terms: as in `attend`.
      rest: buffers of all steps for the cotangents of the product and of the terms, and for the
        gradients of ``vectors[1:]`` and of `norm` by sequence, ``[T, B, 2, 3, H, D]`` and
        ``[T, B, 2, H, D]``. Then the results: `d_memory` with this step's contribution, the
        cotangent of the product, and the buffers again.
    """
    d_memory_out, d_qkv_out, *buffers = rest[(len(rest) - 2) // 2 :]
    all_d_qkv, all_d_terms, all_sums, all_norm_sums = buffers
    b, step = pl.program_id(0), spec.last - t[0]
    attention = attention_of(b, step, three_of(all_qkv, step, b), vectors, terms)
    normal, rstd = normalise(
        memory_before(spec, b, step, flags, fresh, memories) + attention.attended
    )
    d_normed = wide(d_product[b]) + wide(d_rows[b])
    all_norm_sums[step, b, 0] = jnp.sum(d_normed * normal, axis=0)
    all_norm_sums[step, b, 1] = jnp.sum(d_normed, axis=0)
    d = norm_backward(d_normed * norm[0][None], normal, rstd)
    d_memory_out[b] = d_memory[b] + d

    cotangents, of_inputs = attention_backward(attention, d)
    for r, pair in enumerate(of_inputs):
        for kind, g in enumerate(pair):
            all_d_terms[step, b, r, kind] = g.astype(all_d_terms.dtype)
    for kind, (g, x) in enumerate(zip(cotangents, attention.normal, strict=True)):
        all_sums[step, b, 0, kind] = jnp.sum(g * x, axis=0)
        all_sums[step, b, 1, kind] = jnp.sum(g, axis=0)
    scaled = [g * vectors[1, kind][None] for kind, g in enumerate(cotangents)]
    size = 3 * scaled[0].shape[1] * scaled[0].shape[2]
    mean = sum(row_sums(g) for g in scaled) / size
    projection = sum(row_sums(g * x) for g, x in zip(scaled, attention.normal, strict=True)) / size
    for kind, (g, x) in enumerate(zip(scaled, attention.normal, strict=True)):
        d_qkv = (attention.rstd * (g - mean - x * projection)).astype(d_qkv_out.dtype)
        d_qkv_out[b, :, kind] = d_qkv
        all_d_qkv[step, b, :, kind] = d_qkv


def update(
    spec: Spec,
    num_hidden: int,
    t: Ref,
    flags: Ref,
    fresh: Ref,
    last: Ref,
    rows: Ref,
    vectors: Ref,
    gates: Ref,
    terms: Ref,
    *rest: Ref,
) -> None:
    """From the last product of the MLP and the product of the gates to the next memory.

    Args:
      spec: see `Spec`.
      num_hidden: number of hidden layers of the MLP in `rest`.
      t: int32 ``[1]``.
      flags: as in `attend`.
      fresh: as in `attend`.
      last: the MLP's last product ``[B, S, H, D]``.
      rows: the input of the MLP.
      vectors: ``[3, H, D]``: bias of the product, scale and bias of the norm.
      gates: the product ``[B, S, 2, H, D]`` ('unit') or ``[B, S, 2]`` ('memory').
      terms: the input's term, ``[T, B, 2, H, D]`` or ``[T, B, 2]``.
      rest: hidden layers, then buffers of all steps: the memories ``[T+1, B, S, H, D]`` and, if a
        backward pass follows, the last products, the gates' and the hidden layers. Then the
        results: the memory before the next step and its tanh, in the dtype of products, and the
        buffers again.
    """
    b, step = pl.program_id(0), t[0]
    hidden, rest = rest[:num_hidden], rest[num_hidden:]
    before = memory_before(spec, b, step, flags, fresh, rest[0])
    low_out, tanh_out, memories, *saved = rest[(len(rest) - 2) // 2 :]
    updated = next_memory(spec, b, step, last[b], rows[b], vectors, gates, terms, before).memory
    if spec.mask:
        updated = jnp.where(flag_of(b, step, flags, 1, updated), updated, before)
    memories[step + 1, b] = updated
    if spec.resets:
        updated = jnp.where(next_reset(spec, b, step, flags, updated), fresh[b], updated)
    low_out[b] = updated.astype(low_out.dtype)
    tanh_out[b] = jnp.tanh(updated).astype(tanh_out.dtype)
    if saved:
        all_last, all_gates, *all_hidden = saved
        all_last[step, b] = last[b]
        for kind in range(2):
            all_gates[step, b, :, kind] = gates[b, :, kind]
        for x, buffer in zip(hidden, all_hidden, strict=True):
            buffer[step, b] = x[b]


def update_backward(
    spec: Spec,
    t: Ref,
    flags: Ref,
    fresh: Ref,
    d_fresh: Ref,
    d_memory: Ref,
    d_product: Ref,
    d_tanh: Ref,
    d_outputs: Ref,
    memories: Ref,
    all_last: Ref,
    all_rows: Ref,
    all_gates: Ref,
    vectors: Ref,
    terms: Ref,
    *rest: Ref,
) -> None:
    """The backward pass of `update`, and the sum of all cotangents of the next memory.

    Flags, `fresh`, `vectors` and `terms` are as in `update`. Cotangents from the later steps:
    `d_fresh` of `fresh` (with resets), `d_memory` of the next memory without its products,
    `d_product` through queries, keys and values, `d_tanh` of its tanh; `d_outputs` are the
    cotangents of the memories after each step, time first. Values of all steps: `memories` before
    each ``[T+1, B, S, H, D]``, `all_last` the MLP's last products, `all_rows` its inputs,
    `all_gates` the gates' products.

    `rest`: buffers of all steps for the cotangents of the last product, of the gates' and of the
    terms, and for the gradients of ``vectors[1:]`` by sequence, ``[T, B, 2, H, D]``. Then the
    results: the cotangents of `fresh` and, so far, of the previous memory, those of both products,
    and the buffers again.
    """
    d_fresh_out, d_memory_out, d_last_out, d_gates_out, *buffers = rest[(len(rest) - 4) // 2 :]
    all_d_last, all_d_gates, all_d_terms, all_sums = buffers
    b, step = pl.program_id(0), spec.last - t[0]
    before = memory_before(spec, b, step, flags, fresh, memories)
    shown = memories[step + 1, b]
    if spec.resets:
        reset = next_reset(spec, b, step, flags, shown)
        shown = jnp.where(reset, fresh[b], shown)
    squashed = jnp.tanh(shown)
    d = d_memory[b] + wide(d_product[b]) + wide(d_tanh[b]) * (1 - squashed * squashed)
    if spec.resets:
        to_fresh, d = parted(reset, d)
        d_fresh_out[b] = d_fresh[b] + to_fresh
    d = d + d_outputs[step, b]
    left_out = jnp.zeros_like(d)
    if spec.mask:
        d, left_out = parted(flag_of(b, step, flags, 1, d), d)
    found = next_memory(
        spec, b, step, all_last[step, b], all_rows[step, b], vectors, all_gates, terms,
        before, step,
    )  # fmt: skip
    d_memory_out[b] = d * found.forget + left_out
    for kind, g in enumerate(gates_backward(spec, found, before, d)):
        low = g.astype(d_gates_out.dtype)
        d_gates_out[b, :, kind] = low
        all_d_gates[step, b, :, kind] = low
        all_d_terms[step, b, kind] = jnp.sum(g, axis=0).astype(all_d_terms.dtype)

    d_normed = d * found.input * (1 - found.candidate * found.candidate)
    all_sums[step, b, 0] = jnp.sum(d_normed * found.normal, axis=0)
    all_sums[step, b, 1] = jnp.sum(d_normed, axis=0)
    d_last = norm_backward(d_normed * vectors[1][None], found.normal, found.rstd)
    d_last_out[b] = all_d_last[step, b] = d_last.astype(d_last_out.dtype)


def relu_backward(
    spec: Spec, t: Ref, d_hidden: Ref, all_hidden: Ref, _: Ref, out: Ref, all_out: Ref
) -> None:
    """The cotangent of a hidden layer's product from that of its ReLU; also saved for all steps."""
    b, step = pl.program_id(0), spec.last - t[0]
    g = d_hidden[b]
    g = jnp.where(all_hidden[step, b] > 0, g, jnp.zeros_like(g))
    out[b] = g
    all_out[step, b] = g
