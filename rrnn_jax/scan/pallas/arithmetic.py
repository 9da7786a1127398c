"""The float32 arithmetic of a step between its products, for one sequence within a kernel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.attention import LAYER_NORM_EPSILON
from rrnn_jax.gating import GateStyle
from rrnn_jax.typing import Array

Ref = Any


class Spec(NamedTuple):
    """The static configuration of the kernels.

    Attributes:
      gate_style: gate style of the cell.
      input_bias, forget_bias: gate biases of the cell.
      last: T - 1; in the backward pass ``t`` counts from the end.
      resets: whether the first flag is the reset before a step.
      mask: whether the second flag is the mask of a step.
    """

    gate_style: GateStyle | None
    input_bias: float
    forget_bias: float
    last: int
    resets: bool
    mask: bool


class Attention(NamedTuple):
    """Attention in float32: ``[S, H, D]``, or ``[H, D]`` for an input row; weights by head."""

    normal: list[Array]
    rstd: Array
    query: Array
    key: Array
    value: Array
    inputs: list[tuple[Array, Array]]
    weights: Array
    input_weights: list[Array]
    attended: Array


def attention_of(b: Array, step: Array, qkv: list[Array], vectors: Ref, terms: Ref) -> Attention:
    """Attention ``[S, H, D]`` of the memory's rows to themselves and to the input rows."""
    low = qkv[0].dtype
    packed = [wide(x) + vectors[0, kind][None] for kind, x in enumerate(qkv)]
    size = 3 * packed[0].shape[1] * packed[0].shape[2]
    mean = sum(row_sums(x) for x in packed) / size
    centred = [x - mean for x in packed]
    rstd = jax.lax.rsqrt(sum(row_sums(x * x) for x in centred) / size + LAYER_NORM_EPSILON)
    normal = [x * rstd for x in centred]
    # Rounded like the operands of products in the plain step.
    query, key, value = (
        wide((x * vectors[1, kind][None] + vectors[2, kind][None]).astype(low))
        for kind, x in enumerate(normal)
    )
    place = step, b
    inputs = [
        (wide(terms[(*place, r, 0)]), wide(terms[(*place, r, 1)])) for r in range(terms.shape[2])
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
    return Attention(normal, rstd, query, key, value, inputs, weights, input_weights, attended)


def attention_backward(
    attention: Attention, d: Array
) -> tuple[list[Array], list[tuple[Array, Array]]]:
    """Cotangents of queries, keys, values, and of the key and value of each input row."""
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
    of_inputs = []
    for r, (k, _) in enumerate(attention.inputs):
        w = attention.input_weights[r]
        d_logit = w * (from_inputs[r] - centre) * scale
        d_query = d_query + d_logit[..., None] * k[None]
        d_input = jnp.sum(d_logit[..., None] * query, axis=0), jnp.sum(w[..., None] * d, axis=0)
        of_inputs.append(d_input)
    return [d_query, d_key, d_value], of_inputs


class Update(NamedTuple):
    """Intermediate values of `next_memory`, in float32."""

    normal: Array
    rstd: Array
    candidate: Array
    input: Array
    forget: Array
    memory: Array


def next_memory(
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
) -> Update:
    """The next memory; `lead`: the step, if the gates are those of all steps."""
    normal, rstd = normalise(wide(rows) + (wide(last) + vectors[0][None]))
    candidate = jnp.tanh(normal * vectors[1][None] + vectors[2][None])
    place = step, b

    def gate(kind: int, bias: float) -> Array:
        x = wide(gates[(*lead, b, slice(None), kind)]) + wide(terms[(*place, kind)])[None]
        x = x[:, None, None] if spec.gate_style == "memory" else x
        return jax.nn.sigmoid(x + bias)

    i, f = gate(0, spec.input_bias), gate(1, spec.forget_bias)
    return Update(normal, rstd, candidate, i, f, i * candidate + f * memory)


def gates_backward(spec: Spec, found: Update, before: Array, d: Array) -> list[Array]:
    """Cotangents of both gates before the sigmoid, a row or a scalar for each slot."""
    i, f = found.input, found.forget
    d_i, d_f = d * found.candidate, d * before
    if spec.gate_style == "memory":
        d_i, d_f = row_sums(d_i), row_sums(d_f)
    parts = [d_i * i * (1 - i), d_f * f * (1 - f)]
    return [g[:, 0, 0] if spec.gate_style == "memory" else g for g in parts]


def memory_before(
    spec: Spec, b: Array, step: Array, flags: Ref, fresh: Ref, memories: Ref
) -> Array:
    """The memory that a step starts from."""
    memory = memories[step, b]
    if not spec.resets:
        return memory
    return jnp.where(flag_of(b, step, flags, 0, memory), fresh[b], memory)


def next_reset(spec: Spec, b: Array, step: Array, flags: Ref, like: Array) -> Array:
    """Whether there is a reset before the next step."""
    after = jnp.minimum(step + 1, spec.last)
    return flag_of(b, after, flags, 0, like) & jnp.broadcast_to(step < spec.last, like.shape)


def flag_of(b: Array, step: Array, flags: Ref, which: int, like: Array) -> Array:
    """A flag of a step in the shape of `like`: 0 is the reset, 1 the mask."""
    return jnp.broadcast_to(flags[step, b, which] > 0, like.shape)


def three_of(qkv: Ref, *place: Array) -> list[Array]:
    """Queries, keys and values ``[S, H, D]`` from a product."""
    return [qkv[(*place, slice(None), kind)] for kind in range(3)]


def wide(x: Array) -> Array:
    """Converts to float32."""
    return x.astype(jnp.float32)


def row_sums(x: Array) -> Array:
    """The sum of each row ``[S, H, D]``, ``[S, 1, 1]``."""
    return jnp.sum(jnp.sum(x, axis=2), axis=1)[:, None, None]


def normalise(x: Array) -> tuple[Array, Array]:
    """Rows normalised to zero mean and unit variance, and the factor."""
    size = x.shape[1] * x.shape[2]
    centred = x - row_sums(x) / size
    rstd = jax.lax.rsqrt(row_sums(centred * centred) / size + LAYER_NORM_EPSILON)
    return centred * rstd, rstd


def norm_backward(scaled: Array, normal: Array, rstd: Array) -> Array:
    """The cotangent of a norm's input; `scaled`: that of its output times the scale."""
    size = normal.shape[1] * normal.shape[2]
    mean, projection = row_sums(scaled) / size, row_sums(scaled * normal) / size
    return rstd * (scaled - mean - normal * projection)


def parted(flag: Array, d: Array) -> tuple[Array, Array]:
    """A cotangent split in two: where the flag is set, and where it is not; zeros elsewhere."""
    nothing = jnp.zeros_like(d)
    return jnp.where(flag, d, nothing), jnp.where(flag, nothing, d)
