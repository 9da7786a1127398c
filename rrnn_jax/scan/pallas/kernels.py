"""What lies between the products of a step, as two kernels forward and three backward (Pallas).

On a GPU a step of a small core is bound by the number of its operations, and that of a large one
by how often its arrays are read and written. XLA makes 32 operations of a step and 63 of its
backward pass (counted by hand, Nth Farthest's size); with these kernels there are 7 and 9.

Every program of a kernel has one sequence of the batch to itself. All arrays are whole; what is
kept for all steps is read and written in place, at step ``t``. Rows are ``[S, H, D]`` throughout.
Norms, softmax, gates and sums are in float32, results in the dtype of the products.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rrnn_jax.attention import LAYER_NORM_EPSILON
from rrnn_jax.typing import Array, GateStyle

Ref = Any


class Spec(NamedTuple):
    """What the kernels are specialised for.

    Attributes:
      gate_style: of the cell.
      input_bias, forget_bias: of the cell.
      last: T - 1; going backward, ``t`` counts the steps from the end.
      resets: whether the first flag says that a memory starts anew before a step.
      mask: whether the second flag says that a step is to be done, else left out.
    """

    gate_style: GateStyle
    input_bias: float
    forget_bias: float
    last: int
    resets: bool
    mask: bool


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
    """From the packed product to the normalised sum of the memory and what it attended to.

    Args:
      spec: see `Spec`.
      t: int32 ``[1]``.
      flags: int32 ``[T, B, 2]``, see `Spec`; not looked at where there are none.
      fresh: what a reset puts in a memory's place, ``[B, S, H, D]``; the same holds.
      qkv: the product ``[B, S, 3, H, D]``.
      vectors: ``[3, 3, H, D]``: bias of the product, scale and bias of the norm.
      norm: ``[2, H, D]``: scale and bias of the norm of the rows.
      memories: before each step ``[T+1, B, S, H, D]``.
      terms: keys and values of the input rows, ``[T, B, R, 2, H, D]``.
      rest: buffers of all steps for the product and the rows (both or neither) and, after them,
        results: the rows ``[B, S, H, D]`` and the buffers again.
    """
    b, step = pl.program_id(0), t[0]
    rows_out, *buffers = rest[len(rest) // 2 :]
    attention = _attention(spec, b, step, _three(qkv, b), vectors, terms)
    normal, _ = _normalise(_before(spec, b, step, flags, fresh, memories) + attention.attended)
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
      d_product: what comes back to the rows through the MLP.
      d_rows: what comes back to them past it.
      all_qkv: the products of all steps ``[T, B, S, 3, H, D]``.
      memories: before each step ``[T+1, B, S, H, D]``.
      vectors: as in `attend`.
      norm: as in `attend`.
      d_memory: float32.
      terms: as in `attend`.
      rest: buffers of all steps, for the cotangents of the product and of the terms, and for the
        gradients of ``vectors[1:]`` and of `norm` by sequence, ``[T, B, 2, 3, H, D]`` and
        ``[T, B, 2, H, D]``. After them results: `d_memory` with this step's share, the cotangent
        of the product, and the buffers again.
    """
    d_memory_out, d_qkv_out, *buffers = rest[(len(rest) - 2) // 2 :]
    all_d_qkv, all_d_terms, all_sums, all_norm_sums = buffers
    b, step = pl.program_id(0), spec.last - t[0]
    attention = _attention(spec, b, step, _three(all_qkv, step, b), vectors, terms)
    normal, rstd = _normalise(_before(spec, b, step, flags, fresh, memories) + attention.attended)
    d_normed = _wide(d_product[b]) + _wide(d_rows[b])
    all_norm_sums[step, b, 0] = jnp.sum(d_normed * normal, axis=0)
    all_norm_sums[step, b, 1] = jnp.sum(d_normed, axis=0)
    d = _norm_backward(d_normed * norm[0][None], normal, rstd)
    d_memory_out[b] = d_memory[b] + d

    query, key, value = attention.query, attention.key, attention.value
    d_weights = jnp.sum(d[:, None] * value[None], axis=-1)
    from_inputs = [jnp.sum(d * v[None], axis=-1) for _, v in attention.inputs]
    centre = jnp.sum(attention.weights * d_weights, axis=1)
    for w, dw in zip(attention.input_weights, from_inputs, strict=True):
        centre = centre + w * dw
    scale = query.shape[-1] ** -0.5
    d_logits = attention.weights * (d_weights - centre[:, None]) * scale
    d_query = jnp.sum(d_logits[..., None] * key[None], axis=1)
    d_key = jnp.sum(d_logits[..., None] * query[:, None], axis=0)
    d_value = jnp.sum(attention.weights[..., None] * d[:, None], axis=0)
    for r, (k, _) in enumerate(attention.inputs):
        w = attention.input_weights[r]
        d_logit = w * (from_inputs[r] - centre) * scale
        d_query = d_query + d_logit[..., None] * k[None]
        d_input = [jnp.sum(d_logit[..., None] * query, axis=0), jnp.sum(w[..., None] * d, axis=0)]
        for kind, g in enumerate(d_input):
            all_d_terms[step, b, r, kind] = g.astype(all_d_terms.dtype)

    cotangents = [d_query, d_key, d_value]
    for kind, (g, x) in enumerate(zip(cotangents, attention.normal, strict=True)):
        all_sums[step, b, 0, kind] = jnp.sum(g * x, axis=0)
        all_sums[step, b, 1, kind] = jnp.sum(g, axis=0)
    scaled = [g * vectors[1, kind][None] for kind, g in enumerate(cotangents)]
    size = 3 * scaled[0].shape[1] * scaled[0].shape[2]
    mean = sum(_row_sums(g) for g in scaled) / size
    projection = sum(_row_sums(g * x) for g, x in zip(scaled, attention.normal, strict=True)) / size
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
    """From the last product of the MLP, and that of the gates, to the next memory.

    Args:
      spec: see `Spec`.
      num_hidden: how many hidden layers of the MLP there are among `rest`.
      t: int32 ``[1]``.
      flags: as in `attend`.
      fresh: as in `attend`.
      last: the MLP's last product ``[B, S, H, D]``.
      rows: what the MLP was given.
      vectors: ``[3, H, D]``: bias of the product, scale and bias of the norm.
      gates: the product ``[B, S, 2, H, D]`` ('unit') or ``[B, S, 2]`` ('memory').
      terms: the input's share, ``[T, B, 2, H, D]`` or ``[T, B, 2]``.
      rest: hidden layers, then buffers of all steps: the memories ``[T+1, B, S, H, D]`` and, where
        the backward pass is to follow, the last products, the gates' and the hidden layers. After
        them results: what the next step starts from and its tanh, in the dtype of products, and the
        buffers again.
    """
    b, step = pl.program_id(0), t[0]
    hidden, rest = rest[:num_hidden], rest[num_hidden:]
    before = _before(spec, b, step, flags, fresh, rest[0])
    low_out, tanh_out, memories, *saved = rest[(len(rest) - 2) // 2 :]
    updated = _update(spec, b, step, last[b], rows[b], vectors, gates, terms, before).memory
    if spec.mask:
        updated = jnp.where(_flag(spec, b, step, flags, 1, updated), updated, before)
    memories[step + 1, b] = updated
    if spec.resets:
        updated = jnp.where(_next_reset(spec, b, step, flags, updated), fresh[b], updated)
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
    """The backward pass of `update`, and the sum of all that comes back to the next memory.

    Args:
      spec: see `Spec`.
      t: int32 ``[1]``.
      flags: as in `attend`.
      fresh: as in `attend`.
      d_fresh: what comes back to `fresh` from the steps after, where there are resets.
      d_memory: what comes back to the next memory from the step after, past its products.
      d_product: the same through queries, keys and values.
      d_tanh: the same to its tanh.
      d_outputs: cotangents of the memories after each step, time first.
      memories: before each step ``[T+1, B, S, H, D]``.
      all_last: the MLP's last products of all steps.
      all_rows: what the MLP was given in all steps.
      all_gates: the gates' products of all steps.
      vectors: as in `update`.
      terms: as in `update`.
      rest: buffers of all steps, for the cotangents of the last product, of the gates' and of the
        terms, and for the gradients of ``vectors[1:]`` by sequence, ``[T, B, 2, H, D]``. After them
        results: what comes back to `fresh`, to the memory before, so far, the cotangents of both
        products, and the buffers again.
    """
    d_fresh_out, d_memory_out, d_last_out, d_gates_out, *buffers = rest[(len(rest) - 4) // 2 :]
    all_d_last, all_d_gates, all_d_terms, all_sums = buffers
    b, step = pl.program_id(0), spec.last - t[0]
    before = _before(spec, b, step, flags, fresh, memories)
    shown = memories[step + 1, b]
    if spec.resets:
        reset = _next_reset(spec, b, step, flags, shown)
        shown = jnp.where(reset, fresh[b], shown)
    squashed = jnp.tanh(shown)
    d = d_memory[b] + _wide(d_product[b]) + _wide(d_tanh[b]) * (1 - squashed * squashed)
    if spec.resets:
        nothing = jnp.zeros_like(d)
        d_fresh_out[b] = d_fresh[b] + jnp.where(reset, d, nothing)
        d = jnp.where(reset, nothing, d)
    d = d + d_outputs[step, b]
    left_out = jnp.zeros_like(d)
    if spec.mask:
        done = _flag(spec, b, step, flags, 1, d)
        left_out, d = jnp.where(done, left_out, d), jnp.where(done, d, left_out)
    found = _update(
        spec, b, step, all_last[step, b], all_rows[step, b], vectors, all_gates, terms,
        before, step,
    )  # fmt: skip
    candidate, i, f = found.candidate, found.input, found.forget
    d_memory_out[b] = d * f + left_out
    d_i, d_f = d * candidate, d * before
    if spec.gate_style == "memory":
        d_i, d_f = _row_sums(d_i), _row_sums(d_f)
    parts = [d_i * i * (1 - i), d_f * f * (1 - f)]
    for kind, g in enumerate(parts):
        g = g[:, 0, 0] if spec.gate_style == "memory" else g
        low = g.astype(d_gates_out.dtype)
        d_gates_out[b, :, kind] = low
        all_d_gates[step, b, :, kind] = low
        g = jnp.sum(g, axis=0).astype(all_d_terms.dtype)
        all_d_terms[step, b, kind] = g

    d_normed = d * i * (1 - candidate * candidate)
    all_sums[step, b, 0] = jnp.sum(d_normed * found.normal, axis=0)
    all_sums[step, b, 1] = jnp.sum(d_normed, axis=0)
    d_last = _norm_backward(d_normed * vectors[1][None], found.normal, found.rstd)
    d_last = d_last.astype(d_last_out.dtype)
    d_last_out[b] = d_last
    all_d_last[step, b] = d_last


def relu_backward(
    spec: Spec, t: Ref, d_hidden: Ref, all_hidden: Ref, _: Ref, out: Ref, all_out: Ref
) -> None:
    """The cotangent of a hidden layer's product from that of its ReLU; kept for all steps, too."""
    b, step = pl.program_id(0), spec.last - t[0]
    g = d_hidden[b]
    g = jnp.where(all_hidden[step, b] > 0, g, jnp.zeros_like(g))
    out[b] = g
    all_out[step, b] = g


class _Attention(NamedTuple):
    """An attention in float32, ``[S, H, D]`` or, of an input row, ``[H, D]``; weights by head."""

    normal: list[Array]
    rstd: Array
    query: Array
    key: Array
    value: Array
    inputs: list[tuple[Array, Array]]
    weights: Array
    input_weights: list[Array]
    attended: Array


def _attention(
    spec: Spec, b: Array, step: Array, qkv: list[Array], vectors: Ref, terms: Ref
) -> _Attention:
    """Attention ``[S, H, D]`` of the memory's rows to themselves and to the input rows."""
    low = qkv[0].dtype
    packed = [_wide(x) + vectors[0, kind][None] for kind, x in enumerate(qkv)]
    size = 3 * packed[0].shape[1] * packed[0].shape[2]
    mean = sum(_row_sums(x) for x in packed) / size
    centred = [x - mean for x in packed]
    rstd = jax.lax.rsqrt(sum(_row_sums(x * x) for x in centred) / size + LAYER_NORM_EPSILON)
    normal = [x * rstd for x in centred]
    # Rounded, as the products that the plain step makes of them would have them.
    query, key, value = (
        _wide((x * vectors[1, kind][None] + vectors[2, kind][None]).astype(low))
        for kind, x in enumerate(normal)
    )
    place = step, b
    inputs = [
        (_wide(terms[(*place, r, 0)]), _wide(terms[(*place, r, 1)])) for r in range(terms.shape[2])
    ]
    scale = query.shape[-1] ** -0.5
    logits = jnp.sum(query[:, None] * key[None], axis=-1) * scale
    input_logits = [jnp.sum(query * k[None], axis=-1) * scale for k, _ in inputs]
    largest = jnp.max(logits, axis=1)
    for x in input_logits:
        largest = jnp.maximum(largest, x)
    weights = jnp.exp(logits - largest[:, None])
    input_weights = [jnp.exp(x - largest) for x in input_logits]
    inverse = 1 / (jnp.sum(weights, axis=1) + sum(input_weights))
    weights = weights * inverse[:, None]
    input_weights = [w * inverse for w in input_weights]
    attended = jnp.sum(weights[..., None] * value[None], axis=1)
    for w, (_, v) in zip(input_weights, inputs, strict=True):
        attended = attended + w[..., None] * v[None]
    return _Attention(normal, rstd, query, key, value, inputs, weights, input_weights, attended)


class _Update(NamedTuple):
    """What `_update` made on the way, in float32."""

    normal: Array
    rstd: Array
    candidate: Array
    input: Array
    forget: Array
    memory: Array


def _update(
    spec: Spec,
    b: Array,
    step: Array,
    last: Array,
    rows: Array,
    vectors: Ref,
    gates: Ref,
    terms: Ref,
    memory: Array,
    *lead: Array,
) -> _Update:
    """The next memory; `lead`: the step, where the gates are of all steps."""
    normal, rstd = _normalise(_wide(rows) + (_wide(last) + vectors[0][None]))
    candidate = jnp.tanh(normal * vectors[1][None] + vectors[2][None])
    place = step, b

    def gate(kind: int, bias: float) -> Array:
        x = _wide(gates[(*lead, b, slice(None), kind)]) + _wide(terms[(*place, kind)])[None]
        x = x[:, None, None] if spec.gate_style == "memory" else x
        return jax.nn.sigmoid(x + bias)

    i, f = gate(0, spec.input_bias), gate(1, spec.forget_bias)
    return _Update(normal, rstd, candidate, i, f, i * candidate + f * memory)


def _before(spec: Spec, b: Array, step: Array, flags: Ref, fresh: Ref, memories: Ref) -> Array:
    """The memory that a step starts from."""
    memory = memories[step, b]
    if not spec.resets:
        return memory
    return jnp.where(_flag(spec, b, step, flags, 0, memory), fresh[b], memory)


def _next_reset(spec: Spec, b: Array, step: Array, flags: Ref, like: Array) -> Array:
    """Whether there is a reset before the step after."""
    after = jnp.minimum(step + 1, spec.last)
    return _flag(spec, b, after, flags, 0, like) & jnp.broadcast_to(step < spec.last, like.shape)


def _flag(spec: Spec, b: Array, step: Array, flags: Ref, which: int, like: Array) -> Array:
    return jnp.broadcast_to(flags[step, b, which] > 0, like.shape)


def _three(qkv: Ref, *place: Array) -> list[Array]:
    return [qkv[(*place, slice(None), kind)] for kind in range(3)]


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def _row_sums(x: Array) -> Array:
    """The sum of each row ``[S, H, D]``, ``[S, 1, 1]``."""
    return jnp.sum(jnp.sum(x, axis=2), axis=1)[:, None, None]


def _normalise(x: Array) -> tuple[Array, Array]:
    size = x.shape[1] * x.shape[2]
    centred = x - _row_sums(x) / size
    rstd = jax.lax.rsqrt(_row_sums(centred * centred) / size + LAYER_NORM_EPSILON)
    return centred * rstd, rstd


def _norm_backward(scaled: Array, normal: Array, rstd: Array) -> Array:
    size = normal.shape[1] * normal.shape[2]
    mean, projection = _row_sums(scaled) / size, _row_sums(scaled * normal) / size
    return rstd * (scaled - mean - normal * projection)
