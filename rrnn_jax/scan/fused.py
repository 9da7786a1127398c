"""The recurrent part on a GPU: the products of a step, and Pallas kernels for all between them.

The forward pass keeps the products of every step and the memories; the backward pass computes the
rest again, in registers. Cotangents of all products are kept, too, and every weight gradient is one
product over the rows of all steps. Buffers of all steps are written in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from rrnn_jax.scan import kernels
from rrnn_jax.scan.input_terms import InputTerms
from rrnn_jax.scan.plan import Plan, cast_kernels
from rrnn_jax.scan.products import weight_gradient
from rrnn_jax.scan.sequence import select
from rrnn_jax.scan.weights import CoreWeights
from rrnn_jax.typing import Array

Shape = jax.ShapeDtypeStruct


class _Kept(NamedTuple):
    """What the forward pass keeps of all steps, time first; rows are ``[S, H, D]``.

    Attributes:
      memories: before every step and after the last, ``[T+1, B, S, H, D]``.
      qkv: products ``[T, B, S, 3, H, D]``.
      rows: what the MLP was given.
      last: the MLP's last products.
      gates: products ``[T, B, S, 2, H, D]`` or ``[T, B, S, 2]``.
      hidden: of each hidden layer of the MLP, its values.
    """

    memories: Array
    qkv: Array
    rows: Array
    last: Array
    gates: Array
    hidden: tuple[Array, ...]


class _Residuals(NamedTuple):
    weights: CoreWeights
    reset_carry: Array | None
    terms: InputTerms
    kept: _Kept


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused_recurrence(
    plan: Plan, weights: CoreWeights, carry: Array, reset_carry: Array | None, terms: InputTerms
) -> tuple[Array, Array]:
    """The final memory and the memory after every step, as `hoisted._recurrence` gives them.

    Args:
      plan: how to run it; ``plan.fused``.
      weights: of the core.
      carry: ``[B, S, F]`` float32.
      reset_carry: what a reset puts in its place; None without resets.
      terms: of all steps.
    """
    final, memories, _ = _forward(plan, weights, carry, reset_carry, terms, save=False)
    return final, memories


def _fused_fwd(
    plan: Plan, weights: CoreWeights, carry: Array, reset_carry: Array | None, terms: InputTerms
) -> tuple[tuple[Array, Array], _Residuals]:
    final, memories, kept = _forward(plan, weights, carry, reset_carry, terms, save=True)
    return (final, memories), _Residuals(weights, reset_carry, terms, kept)


def _fused_bwd(plan: Plan, residuals: _Residuals, cotangents: tuple[Array, Array]) -> tuple:
    return _backward(plan, residuals, *cotangents)


fused_recurrence.defvjp(_fused_fwd, _fused_bwd)


class _Sizes(NamedTuple):
    """Shapes of arrays, and how kernels are called."""

    plan: Plan
    batch: int
    steps: int
    resets: bool
    mask: bool

    @property
    def rows(self) -> tuple[int, int, int]:
        cell = self.plan.cell
        return cell.mem_slots, cell.num_heads, cell.head_size

    @property
    def gates(self) -> tuple[int, ...]:
        cell = self.plan.cell
        unit = (cell.num_heads, cell.head_size) if cell.gate_style == "unit" else ()
        return (2, *unit)

    @property
    def spec(self) -> kernels.Spec:
        cell = self.plan.cell
        return kernels.Spec(
            time_axis=self.plan.time_axis,
            gate_style=cell.gate_style,
            input_bias=float(cell.input_bias),
            forget_bias=float(cell.forget_bias),
            last=self.steps - 1,
            resets=self.resets,
            mask=self.mask,
        )

    def split(self, x: Array, *inner: int) -> Array:
        """The last axis as ``[*inner, H, D]``; ``[..., F]`` as ``[..., H, D]``."""
        _, heads, size = self.rows
        return x.reshape(*x.shape[:-1], *inner, heads, size)

    def low(self, *shape: int) -> Shape:
        return Shape((self.batch, *shape), self.plan.dtype)

    def wide(self, *shape: int) -> Shape:
        return Shape((self.batch, *shape), jnp.float32)

    def over_time(self, x: Shape, more: int = 0) -> Shape:
        return Shape((self.steps + more, *x.shape), x.dtype)

    def call(
        self,
        kernel: Callable[..., None],
        inputs: Sequence[Array],
        results: Sequence[Shape],
        buffers: Sequence[Array] = (),
    ) -> tuple[list[Array], list[Array]]:
        """Runs a kernel for every sequence of the batch; buffers are updated in place."""
        found = pl.pallas_call(
            kernel,
            grid=(self.batch,),
            out_shape=[*results, *(Shape(x.shape, x.dtype) for x in buffers)],
            input_output_aliases={len(inputs) + k: len(results) + k for k in range(len(buffers))},
            interpret=jax.default_backend() != "gpu",
            compiler_params=triton.CompilerParams(num_warps=self._warps(), num_stages=1),
            name=getattr(kernel, "func", kernel).__name__,
        )(*inputs, *buffers)
        return list(found[: len(results)]), list(found[len(results) :])

    def _warps(self) -> int:
        slots, heads, size = self.rows
        return min(max(slots * slots * heads * size // 2048, 4), 8)


def _sizes(plan: Plan, terms: InputTerms) -> _Sizes:
    shape = terms.qkv[0].shape
    flags = terms.resets is not None, terms.mask is not None
    return _Sizes(plan, shape[1 - plan.time_axis], shape[plan.time_axis], *flags)


def _empty(shapes: Sequence[Shape]) -> list[Array]:
    """Buffers to be written in full; what they hold before has no meaning."""

    def nothing(*refs: Any) -> None:
        del refs

    found = pl.pallas_call(
        nothing,
        grid=(1,),
        out_shape=list(shapes),
        interpret=jax.default_backend() != "gpu",
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        name="allocate",
    )()
    return list(found)


class _Vectors(NamedTuple):
    """Vectors in float32: of queries, keys and values, of both norms, biases of hidden layers."""

    qkv: Array
    norm: Array
    last: Array
    hidden: list[Array]


def _vectors(sizes: _Sizes, weights: CoreWeights) -> _Vectors:
    v = {name: x.astype(jnp.float32) for name, x in weights.vectors.items()}
    layers = sizes.plan.cell.attention_mlp_layers
    qkv = [v["block_0/qkv/bias"], v["block_0/qkv_norm/scale"], v["block_0/qkv_norm/bias"]]
    norm = [v["block_0/attention_norm/scale"], v["block_0/attention_norm/bias"]]
    last = [
        v[f"mlp/layer_{layers - 1}/bias"],
        v["block_0/mlp_norm/scale"],
        v["block_0/mlp_norm/bias"],
    ]
    return _Vectors(
        sizes.split(jnp.stack(qkv), 3),
        sizes.split(jnp.stack(norm)),
        sizes.split(jnp.stack(last)),
        [sizes.split(v[f"mlp/layer_{j}/bias"])[None, None] for j in range(layers - 1)],
    )


def _flags(sizes: _Sizes, reset_carry: Array | None, terms: InputTerms) -> tuple[Array, Array]:
    """Flags and fresh memories as the kernels want them; of no meaning where there are none."""
    some = terms.mask if terms.resets is None else terms.resets
    if some is None:
        return jnp.zeros((1,), jnp.int32), jnp.zeros((1,), jnp.float32)
    pair = [some if x is None else x for x in (terms.resets, terms.mask)]
    flags = jnp.stack(pair, axis=-1).astype(jnp.int32)
    if reset_carry is None:
        return flags, jnp.zeros((1,), jnp.float32)
    return flags, sizes.split(reset_carry)


def _terms(sizes: _Sizes, terms: InputTerms) -> tuple[Array, Array]:
    """Keys and values of input rows, and the gates' input terms, split as the kernels want them."""
    assert terms.gates is not None
    gates = terms.gates.reshape(*terms.gates.shape[:2], *sizes.gates)
    return sizes.split(terms.qkv[0], 2), gates


def _forward(
    plan: Plan,
    weights: CoreWeights,
    carry: Array,
    reset_carry: Array | None,
    terms: InputTerms,
    save: bool,
) -> tuple[Array, Array, _Kept]:
    sizes = _sizes(plan, terms)
    w, v = cast_kernels(weights, plan.dtype), _vectors(sizes, weights)
    qkv_terms, gate_terms = _terms(sizes, terms)
    flags, fresh = _flags(sizes, reset_carry, terms)
    layers = plan.cell.attention_mlp_layers
    row, gate = sizes.low(*sizes.rows), sizes.low(sizes.rows[0], *sizes.gates)
    qkv_row = sizes.low(sizes.rows[0], 3, *sizes.rows[1:])
    memory = sizes.split(carry)
    shapes = [sizes.over_time(Shape(memory.shape, memory.dtype), 1)]
    if save:
        kept = [qkv_row, row, row, gate, *[row] * (layers - 1)]
        shapes += [sizes.over_time(x) for x in kept]
    memories, *buffers = _empty(shapes)
    memories = memories.at[0].set(memory)

    def step(t: Array, state: tuple) -> tuple:
        low, squashed, memories, buffers = state
        at = t[None]
        qkv = _multiply(low, w["block_0/qkv"]).reshape(qkv_row.shape)
        gates = _multiply(squashed, w["gates"]).reshape(gate.shape)
        (rows,), buffers[:2] = sizes.call(
            partial(kernels.attend, sizes.spec),
            [at, flags, fresh, qkv, v.qkv, v.norm, memories, qkv_terms],
            [row],
            buffers[:2],
        )
        hidden, x = [], rows
        for j in range(layers - 1):
            x = _multiply(x, w[f"mlp/layer_{j}"]).astype(jnp.float32) + v.hidden[j]
            x = jax.nn.relu(x).astype(plan.dtype)
            hidden.append(x)
        last = _multiply(x, w[f"mlp/layer_{layers - 1}"]).reshape(row.shape)
        shown = hidden if save else []
        (low, squashed), (memories, *buffers[2:]) = sizes.call(
            partial(kernels.update, sizes.spec, len(shown)),
            [at, flags, fresh, last, rows, v.last, gates, gate_terms, *shown],
            [row, row],
            [memories, *buffers[2:]],
        )
        return low, squashed, memories, buffers

    memory = _started(plan, memory[None], fresh, terms)[0]
    first = memory.astype(plan.dtype), jnp.tanh(memory).astype(plan.dtype)
    _, _, memories, buffers = jax.lax.fori_loop(0, sizes.steps, step, (*first, memories, buffers))
    outputs = memories[1:] if plan.time_axis == 0 else jnp.swapaxes(memories[1:], 0, 1)
    outputs = outputs.reshape(*outputs.shape[:3], -1)
    saved = (*buffers[:4], tuple(buffers[4:])) if save else ((),) * 5
    return memories[-1].reshape(carry.shape), outputs, _Kept(memories, *saved)  # type: ignore[arg-type]


def _backward(
    plan: Plan, residuals: _Residuals, d_final: Array, d_outputs: Array
) -> tuple[CoreWeights, Array, Array | None, InputTerms]:
    weights, reset_carry, terms, kept = residuals
    sizes = _sizes(plan, terms)
    w, v = cast_kernels(weights, plan.dtype), _vectors(sizes, weights)
    qkv_terms, gate_terms = _terms(sizes, terms)
    flags, fresh = _flags(sizes, reset_carry, terms)
    layers = plan.cell.attention_mlp_layers
    d_outputs = sizes.split(d_outputs)
    row, wide = sizes.low(*sizes.rows), sizes.wide(*sizes.rows)
    gate = sizes.low(sizes.rows[0], *sizes.gates)
    qkv_row = sizes.low(sizes.rows[0], 3, *sizes.rows[1:])
    sums = sizes.wide(2, *sizes.rows[1:])
    qkv_sums = sizes.wide(2, 3, *sizes.rows[1:])
    buffers = _empty(
        [
            *(sizes.over_time(x) for x in (row, gate)),
            Shape(gate_terms.shape, gate_terms.dtype),
            *(sizes.over_time(x) for x in (sums, qkv_row)),
            Shape(qkv_terms.shape, qkv_terms.dtype),
            *(sizes.over_time(x) for x in (qkv_sums, sums)),
            *(sizes.over_time(x) for x in [row] * (layers - 1)),
        ],
    )

    def step(k: Array, state: tuple) -> tuple:
        d_fresh, d_memory, d_product, d_tanh, buffers = state
        at = k[None]
        (found, d_memory, d_last, d_gates), buffers[:4] = sizes.call(
            partial(kernels.update_backward, sizes.spec),
            [
                *(at, flags, fresh, d_fresh, d_memory, d_product, d_tanh, d_outputs),
                *(kept.memories, kept.last, kept.rows, kept.gates, v.last, gate_terms),
            ],
            [Shape(fresh.shape, fresh.dtype), wide, row, gate],
            buffers[:4],
        )
        d_fresh = found if sizes.resets else d_fresh  # Else it would be copied for nothing.
        d = d_last
        for j in range(layers - 2, -1, -1):
            d = _multiply_back(d, w[f"mlp/layer_{j + 1}"], row.shape)
            (d,), buffers[8 + j : 9 + j] = sizes.call(
                partial(kernels.relu_backward, sizes.spec),
                [at, d, kept.hidden[j]],
                [row],
                buffers[8 + j : 9 + j],
            )
        d = _multiply_back(d, w["mlp/layer_0"], row.shape)
        (d_memory, d_qkv), buffers[4:8] = sizes.call(
            partial(kernels.attend_backward, sizes.spec),
            [
                *(at, flags, fresh, d, d_last, kept.qkv, kept.memories),
                *(v.qkv, v.norm, d_memory, qkv_terms),
            ],
            [wide, qkv_row],
            buffers[4:8],
        )
        d_product = _multiply_back(d_qkv, w["block_0/qkv"], row.shape)
        d_tanh = _multiply_back(d_gates, w["gates"], row.shape)
        return d_fresh, d_memory, d_product, d_tanh, buffers

    nothing = jnp.zeros(row.shape, row.dtype)
    state = jnp.zeros_like(fresh), sizes.split(d_final), nothing, nothing, buffers
    d_fresh, d_memory, d_product, d_tanh, buffers = jax.lax.fori_loop(0, sizes.steps, step, state)
    d_last, d_gates, d_gate_terms, last_sums, d_qkv, d_qkv_terms, qkv_sums, norm_sums = buffers[:8]
    before = _started(plan, kept.memories[:-1], fresh, terms)
    squashed = jnp.tanh(before[0])
    d_carry = d_memory + d_product.astype(jnp.float32)
    d_carry = d_carry + d_tanh.astype(jnp.float32) * (1 - squashed * squashed)
    d_reset = None
    if terms.resets is not None:
        reset = jax.lax.index_in_dim(terms.resets, 0, plan.time_axis, keepdims=False)
        d_reset = d_fresh + select(reset, d_carry, jnp.zeros_like(d_carry))
        d_reset = d_reset.reshape(d_final.shape)
        d_carry = select(reset, jnp.zeros_like(d_carry), d_carry)

    operands = [kept.rows, *kept.hidden]
    cotangents = [*buffers[8:], d_last]
    pairs = {f"mlp/layer_{j}": x for j, x in enumerate(zip(operands, cotangents, strict=True))}
    pairs["block_0/qkv"] = before.astype(plan.dtype), d_qkv
    pairs["gates"] = jnp.tanh(before).astype(plan.dtype), d_gates
    d_kernels, d_vectors = {}, {}
    for name, (rows, d) in pairs.items():
        rows, d = _flat(rows), _flat(d)
        gradient = weight_gradient(rows, d, jnp.float32, plan.transpose)
        d_kernels[name] = gradient.astype(weights.kernels[name].dtype)
        if f"{name}/bias" in weights.vectors:
            d_vectors[f"{name}/bias"] = jnp.sum(d, axis=(0, 1, 2), dtype=jnp.float32)
    for name, found in (
        ("block_0/mlp_norm", last_sums),
        ("block_0/qkv_norm", qkv_sums),
        ("block_0/attention_norm", norm_sums),
    ):
        scale, bias = jnp.sum(found, axis=(0, 1)).reshape(2, -1)
        d_vectors |= {f"{name}/scale": scale, f"{name}/bias": bias}
    d_vectors = {k: d_vectors[k].astype(x.dtype) for k, x in weights.vectors.items()}
    d_terms = InputTerms(
        (d_qkv_terms.reshape(terms.qkv[0].shape),),
        None,
        d_gate_terms.reshape(terms.gates.shape),  # type: ignore[union-attr]
        None,
        None,
    )
    return CoreWeights(d_kernels, d_vectors), d_carry.reshape(d_final.shape), d_reset, d_terms


def _started(plan: Plan, memories: Array, fresh: Array, terms: InputTerms) -> Array:
    """What steps started from, ``[T, B, S, H, D]``, of the memories before them."""
    if terms.resets is None:
        return memories
    resets = terms.resets if plan.time_axis == 0 else terms.resets.T
    resets = resets[: memories.shape[0]]
    return select(resets, jnp.broadcast_to(fresh[None], memories.shape), memories)


def _flat(x: Array) -> Array:
    """``[T, B, S, ...]`` as ``[T, B, S, N]``."""
    return x.reshape(*x.shape[:3], -1)


def _multiply(x: Array, kernel: Array) -> Array:
    """Rows ``[B, S, H, D]`` times a kernel ``[F, N]``; of shape ``[B, S, H, D]`` if N is F."""
    slots = x.shape[:2]
    product = x.reshape(-1, kernel.shape[0]) @ kernel
    return (
        product.reshape(*slots, *x.shape[2:]) if product.shape[-1] == kernel.shape[0] else product
    )


def _multiply_back(d: Array, kernel: Array, shape: tuple[int, ...]) -> Array:
    """Cotangents of a product, as those of what was multiplied by the kernel."""
    flat = d.reshape(-1, kernel.shape[1])
    return jax.lax.dot_general(flat, kernel, (((1,), (1,)), ((), ()))).reshape(shape)
