"""The backward pass of the hoisted scan.

A step is gone through again elementwise, with the results of its products taken from the forward
pass (or multiplied anew where those were not kept), and `jax.vjp` of that gives its cotangents. The
gradient of a kernel is the product of what was multiplied by it and the cotangent of what came out;
it needs nothing of the chain, so it is taken over the rows of several steps at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.scan.loop import loop_over_time, take_step
from rrnn_jax.scan.plan import Plan, Residuals, cast_kernels
from rrnn_jax.scan.products import RecordProducts, ReplayProducts, weight_gradient
from rrnn_jax.scan.step import InputTerms, recurrent_step
from rrnn_jax.scan.weights import CoreWeights
from rrnn_jax.typing import Array, Carry, accumulation_dtype


class _Chain(NamedTuple):
    """What goes from step to step, backwards."""

    carry: Carry
    vectors: dict[str, Array]
    reset_carry: Carry | None


class _Inputs(NamedTuple):
    """What a step of the backward pass reads: input terms, cotangent of its carry, products."""

    floats: tuple[Array | None, ...]
    flags: tuple[Array | None, ...]
    d_carry: Carry
    products: list[Array] | None


class _Operands(NamedTuple):
    """For each product of a step: the rows multiplied, and the cotangent of the result."""

    rows: list[Array]
    cotangents: list[Array]


StepBackward = Callable[[_Chain, _Inputs, Array], tuple[_Chain, tuple[Any, _Operands]]]


def backward(
    plan: Plan, residuals: Residuals, d_final: Carry, d_carries: Carry
) -> tuple[CoreWeights, Carry, Carry | None, InputTerms]:
    """Cotangents of weights, first carry, reset carry and input terms."""
    axis = plan.time_axis
    num_steps = residuals.terms.qkv.shape[axis]
    chunk, num_chunks = _chunks(plan, residuals)
    step, names = _step_backward(plan, residuals, padded=chunk * num_chunks > num_steps)

    floats, flags = residuals.terms[:3], residuals.terms[3:]
    inputs = _Inputs(floats, flags, d_carries, residuals.products)
    kernels = residuals.weights.kernels
    chain = _Chain(
        d_final,
        jax.tree.map(jnp.zeros_like, residuals.weights.vectors),
        jax.tree.map(jnp.zeros_like, residuals.reset_carry),
    )
    d_kernels = {
        name: jnp.zeros(kernel.shape, accumulation_dtype(kernel.dtype))
        for name, kernel in kernels.items()
    }
    d_floats = jax.tree.map(jnp.zeros_like, floats)

    def add_gradients(d_kernels: dict[str, Array], operands: _Operands) -> dict[str, Array]:
        d_kernels = dict(d_kernels)
        for name, rows, cotangent in zip(names, *operands, strict=True):
            gradient = weight_gradient(rows, cotangent, d_kernels[name].dtype)
            d_kernels[name] = d_kernels[name] + gradient
        return d_kernels

    if chunk == 1:

        def one(state: tuple, inputs: _Inputs, t: Array) -> tuple[tuple, Any]:
            chain, d_kernels = state
            chain, (d_floats, operands) = step(chain, inputs, t)
            return (chain, add_gradients(d_kernels, operands)), d_floats

        (chain, d_kernels), d_floats = loop_over_time(
            one,
            (chain, d_kernels),
            inputs,
            start=num_steps - 1,
            num_steps=num_steps,
            time_axis=axis,
            buffers=d_floats,
            reverse=True,
            prefetch=plan.prefetch,
        )
    else:
        t = jnp.int32(0)
        shapes = jax.eval_shape(step, chain, take_step(inputs, t, axis), t)[1][1]
        collected = jax.tree.map(lambda x: jnp.zeros((chunk, *x.shape), x.dtype), shapes)

        def run_chunk(state: tuple, start: Array) -> tuple[tuple, None]:
            chain, d_kernels, d_floats, collected = state

            def one(state: tuple, inputs: _Inputs, t: Array) -> tuple[tuple, Any]:
                chain, collected = state
                chain, (d_floats, operands) = step(chain, inputs, t)
                collected = jax.tree.map(
                    lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, start - t, 0),
                    collected,
                    operands,
                )
                return (chain, collected), d_floats

            (chain, collected), d_floats = loop_over_time(
                one,
                (chain, collected),
                inputs,
                start=start,
                num_steps=chunk,
                time_axis=axis,
                buffers=d_floats,
                reverse=True,
                prefetch=plan.prefetch,
            )
            return (chain, add_gradients(d_kernels, collected), d_floats, collected), None

        starts = chunk * jnp.arange(num_chunks, 0, -1, dtype=jnp.int32) - 1
        state = (chain, d_kernels, d_floats, collected)
        (chain, d_kernels, d_floats, _), _ = jax.lax.scan(run_chunk, state, starts)

    d_kernels = {name: d_kernels[name].astype(kernels[name].dtype) for name in kernels}
    d_terms = InputTerms(*d_floats, resets=None, mask=None)
    return CoreWeights(d_kernels, chain.vectors), chain.carry, chain.reset_carry, d_terms


def _chunks(plan: Plan, residuals: Residuals) -> tuple[int, int]:
    """Steps per chunk and number of chunks; the product may exceed T by less than a chunk."""
    num_steps = residuals.terms.qkv.shape[plan.time_axis]
    batch = residuals.terms.qkv.shape[1 - plan.time_axis]
    wanted = max(1, plan.rows_per_product // (batch * plan.cell.mem_slots))
    num_chunks = -(-num_steps // min(wanted, num_steps))
    return -(-num_steps // num_chunks), num_chunks


def _step_backward(
    plan: Plan, residuals: Residuals, padded: bool
) -> tuple[StepBackward, list[str]]:
    """The backward pass of one step, and the names of a step's products in order."""
    weights, first_carry, reset_carry, terms, carries, _ = residuals
    axis = plan.time_axis
    num_steps = terms.qkv.shape[axis]
    kernels = cast_kernels(weights, plan.dtype)

    def forward(linear, vectors, carry, reset_carry, floats, flags) -> Carry:
        terms = InputTerms(*floats, *flags)
        return recurrent_step(plan.cell, linear, vectors, carry, reset_carry, terms, plan.dtype)

    def step(chain: _Chain, inputs: _Inputs, t: Array) -> tuple[_Chain, tuple[Any, _Operands]]:
        before = take_step(carries, jnp.clip(t - 1, 0, num_steps - 1), axis)
        before = jax.tree.map(lambda m, first: jnp.where(t > 0, m, first), before, first_carry)
        known = inputs.products
        if known is None:
            linear = RecordProducts(kernels)
            forward(linear, weights.vectors, before, reset_carry, inputs.floats, inputs.flags)
            known = linear.results

        def replay(vectors, before, reset_carry, floats, known) -> tuple[Carry, list[Array]]:
            linear = ReplayProducts(kernels, known)
            carry = forward(linear, vectors, before, reset_carry, floats, inputs.flags)
            return carry, linear.operands

        _, vjp, rows = jax.vjp(
            replay, weights.vectors, before, reset_carry, inputs.floats, known, has_aux=True
        )
        d_carry = jax.tree.map(jnp.add, chain.carry, inputs.d_carry)
        if padded:  # Steps past the end come first; they must leave no trace.
            exists = t < num_steps
            d_carry = jax.tree.map(lambda x: jnp.where(exists, x, jnp.zeros_like(x)), d_carry)
        d_vectors, d_before, d_reset, d_floats, cotangents = vjp(d_carry)
        if padded:
            d_before = jax.tree.map(
                lambda new, old: jnp.where(exists, new, old), d_before, chain.carry
            )
        chain = _Chain(
            d_before,
            jax.tree.map(jnp.add, chain.vectors, d_vectors),
            jax.tree.map(jnp.add, chain.reset_carry, d_reset),
        )
        return chain, (d_floats, _Operands(rows, cotangents))

    recorder = RecordProducts(kernels)
    first = take_step(terms, jnp.int32(0), axis)
    jax.eval_shape(
        lambda carry, reset, terms: forward(
            recorder, weights.vectors, carry, reset, terms[:3], terms[3:]
        ),
        first_carry,
        reset_carry,
        first,
    )
    return step, recorder.names
