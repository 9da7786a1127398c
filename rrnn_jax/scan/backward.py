"""The backward pass of the hoisted scan.

`jax.vjp` of a replayed step (`tape.Replay`) gives the step's cotangents. The gradient of a kernel
is the product of what was multiplied by it and the cotangent of what came out; it needs nothing of
the chain, so it is taken over the rows of several steps at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.scan import sums
from rrnn_jax.scan.input_terms import InputTerms
from rrnn_jax.scan.loop import Timed, loop_over_time, take_step
from rrnn_jax.scan.plan import Plan, Residuals, cast_kernels, forward_weights
from rrnn_jax.scan.products import weight_gradient
from rrnn_jax.scan.step import recurrent_step
from rrnn_jax.scan.tape import Record, Replay, Weights
from rrnn_jax.scan.weights import CoreWeights
from rrnn_jax.typing import Array, Carry, accumulation_dtype


class _Chain(NamedTuple):
    """What goes from step to step, backwards."""

    carry: Carry
    vectors: dict[str, Array]
    reset_carry: Carry | None


class _Inputs(NamedTuple):
    """What a step of the backward pass reads.

    Attributes:
      terms: resets and mask; what has a cotangent is in `floats`.
      d_carry: cotangent of the carry after the step, where that is an output.
      saved: what the forward pass saved of the step.
      floats: the other terms. Their cotangents take their place: there is no room for both.
    """

    terms: InputTerms
    d_carry: Carry
    saved: list[Any] | None
    floats: Any


class _Operands(NamedTuple):
    """For each product of a step: the rows multiplied, and the cotangent of the result."""

    rows: list[Array]
    cotangents: list[Array]


class _Step(NamedTuple):
    """The backward pass of one step.

    Attributes:
      run: ``run(chain, inputs, t) -> (chain, d_floats, operands)``.
      names: the kernels of a step's products, in order.
    """

    run: Callable[[_Chain, _Inputs, Array], tuple[_Chain, Any, _Operands]]
    names: list[str]


def backward(
    plan: Plan, residuals: Residuals, d_final: Carry, d_carries: Carry
) -> tuple[CoreWeights, Carry, Carry | None, InputTerms]:
    """Cotangents of weights, first carry, reset carry and input terms."""
    num_steps = residuals.terms.qkv[0].shape[plan.time_axis]
    length, num_chunks = _chunks(plan, residuals)
    step = _step_backward(plan, residuals, padded=length * num_chunks > num_steps)
    kernels, vectors = residuals.weights
    chain = _Chain(
        d_final,
        sums.zeros_for(vectors),
        sums.zeros_for(residuals.reset_carry),
    )
    d_kernels = sums.zeros_for(kernels)
    d_floats = _floats(residuals.terms)
    run = _run_stepwise if length == 1 else _run_in_chunks
    chain, d_kernels, d_floats = run(
        plan, residuals, step, d_carries, (chain, d_kernels, d_floats), length, num_chunks
    )
    d_weights = sums.cast_like(CoreWeights(d_kernels, chain.vectors), residuals.weights)
    d_reset = sums.cast_like(chain.reset_carry, residuals.reset_carry)
    d_terms = InputTerms(*d_floats, resets=None, mask=None)
    return d_weights, chain.carry, d_reset, d_terms


State = tuple[_Chain, dict[str, Array], Any]
"""Chain, gradients of the kernels so far, and the input terms (where done, their cotangents)."""


def _run_stepwise(
    plan: Plan,
    residuals: Residuals,
    step: _Step,
    d_carries: Carry,
    state: State,
    length: int,
    num_chunks: int,
) -> State:
    """Takes the weight gradients at every step."""
    chain, d_kernels, d_floats = state

    def one(state: tuple, inputs: tuple, t: Array) -> tuple[tuple, tuple]:
        chain, d_kernels = state
        chain, d_floats, operands = step.run(chain, _Inputs(*inputs), t)
        return (chain, _add_gradients(plan, step, d_kernels, operands)), (d_floats,)

    (chain, d_kernels), (d_floats,) = loop_over_time(
        one,
        (chain, d_kernels),
        _timed_inputs(plan, residuals, d_carries),
        start=length * num_chunks - 1,
        num_steps=length * num_chunks,
        buffers=[Timed(d_floats, plan.time_axis)],
        in_place=True,
        reverse=True,
        unroll=plan.unroll,
    )
    return chain, d_kernels, d_floats


def _run_in_chunks(
    plan: Plan,
    residuals: Residuals,
    step: _Step,
    d_carries: Carry,
    state: State,
    length: int,
    num_chunks: int,
) -> State:
    """Collects the operands of `length` steps for each weight gradient."""
    inputs = _timed_inputs(plan, residuals, d_carries)
    t = jnp.int32(0)
    first = _Inputs(*(x.take(t) for x in [*inputs, Timed(state[2], plan.time_axis)]))
    shapes = jax.eval_shape(step.run, state[0], first, t)[2]
    collected = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)

    def chunk(state: tuple, start: Array) -> tuple[tuple, None]:
        chain, d_kernels, d_floats, collected = state

        def one(state: tuple, inputs: tuple, t: Array) -> tuple[tuple, tuple]:
            chain, collected = state
            chain, d_floats, operands = step.run(chain, _Inputs(*inputs), t)
            collected = Timed(collected, 0).put(start - t, operands).arrays
            return (chain, collected), (d_floats,)

        (chain, collected), (d_floats,) = loop_over_time(
            one,
            (chain, collected),
            inputs,
            start=start,
            num_steps=length,
            buffers=[Timed(d_floats, plan.time_axis)],
            in_place=True,
            reverse=True,
            unroll=plan.unroll,
        )
        d_kernels = _add_gradients(plan, step, d_kernels, collected)
        return (chain, d_kernels, d_floats, collected), None

    starts = length * jnp.arange(num_chunks, 0, -1, dtype=jnp.int32) - 1
    (chain, d_kernels, d_floats, _), _ = jax.lax.scan(chunk, (*state, collected), starts)
    return chain, d_kernels, d_floats


def _add_gradients(
    plan: Plan, step: _Step, d_kernels: dict[str, Array], operands: _Operands
) -> dict[str, Array]:
    d_kernels = dict(d_kernels)
    for name, rows, cotangent in zip(step.names, *operands, strict=True):
        gradient = weight_gradient(rows, cotangent, d_kernels[name].dtype, plan.transpose)
        d_kernels[name] = d_kernels[name] + gradient
    return d_kernels


def _timed_inputs(plan: Plan, residuals: Residuals, d_carries: Carry) -> list[Timed]:
    """The fields of `_Inputs` for all steps, `floats` apart."""
    axis = plan.time_axis
    flags = _with_floats(residuals.terms, ((), None, None))
    return [Timed(flags, axis), Timed(d_carries, axis), Timed(residuals.saved, 0)]


def _floats(terms: InputTerms) -> tuple[Any, Any, Any]:
    """The terms that have cotangents."""
    return terms.qkv, terms.rows, terms.gates


def _with_floats(terms: InputTerms, floats: tuple[Any, Any, Any]) -> InputTerms:
    qkv, rows, gates = floats
    return terms._replace(qkv=qkv, rows=rows, gates=gates)


def _chunks(plan: Plan, residuals: Residuals) -> tuple[int, int]:
    """Steps per chunk and number of chunks; the product may exceed T by less than a chunk."""
    shape = residuals.terms.qkv[0].shape
    num_steps, batch = shape[plan.time_axis], shape[1 - plan.time_axis]
    wanted = max(1, plan.rows_per_product // (batch * plan.cell.mem_slots))
    num_chunks = -(-num_steps // min(wanted, num_steps))
    return -(-num_steps // num_chunks), num_chunks


def _step_backward(plan: Plan, residuals: Residuals, padded: bool) -> _Step:
    """The backward pass of one step; `padded` if steps past the last one are run too."""
    weights, first_carry, reset_carry, terms, carries, _ = residuals
    axis = plan.time_axis
    num_steps = terms.qkv[0].shape[axis]
    kernels = cast_kernels(weights, plan.dtype)
    # Wide, so that a step's gradient is rounded no more than their sum.
    vectors = {k: x.astype(accumulation_dtype(x.dtype)) for k, x in weights.vectors.items()}
    used = forward_weights(plan, weights)

    def forward(ops: Any, carry: Carry, reset: Carry | None, terms: InputTerms) -> Carry:
        return recurrent_step(plan.cell, ops, carry, reset, terms, plan.dtype)

    def recorded(carry: Carry, terms: InputTerms) -> Record:
        record = Record(used, plan)
        forward(record, carry, reset_carry, terms)
        return record

    names, shapes = _products(recorded, first_carry, take_step(terms, jnp.int32(0), axis))

    def run(chain: _Chain, inputs: _Inputs, t: Array) -> tuple[_Chain, Any, _Operands]:
        before = take_step(carries, jnp.clip(t - 1, 0, num_steps - 1), axis)
        before = jax.tree.map(lambda m, first: jnp.where(t > 0, m, first), before, first_carry)
        saved = inputs.saved
        if saved is None:
            saved = recorded(before, _with_floats(inputs.terms, inputs.floats)).saved

        def replay(vectors, before, reset, floats, results) -> tuple[Carry, list[Array]]:
            wide = Weights(kernels, vectors)
            ops = Replay(wide, plan, saved, results)
            terms = _with_floats(inputs.terms, floats)
            return forward(ops, before, reset, terms), ops.operands

        results = [jnp.zeros(shape, plan.dtype) for shape in shapes]
        _, vjp, rows = jax.vjp(
            replay,
            vectors,
            before,
            reset_carry,
            inputs.floats,
            results,
            has_aux=True,
        )
        d_carry = jax.tree.map(jnp.add, chain.carry, inputs.d_carry)
        if padded:  # Steps past the end come first; they must leave no trace.
            exists = t < num_steps
            d_carry = jax.tree.map(lambda x: jnp.where(exists, x, jnp.zeros_like(x)), d_carry)
        d_vectors, d_before, d_reset, d_floats, cotangents = vjp(d_carry)
        if padded:
            d_before, d_floats = jax.tree.map(
                lambda new, old: jnp.where(exists, new, old),
                (d_before, d_floats),
                (chain.carry, inputs.floats),
            )
        chain = _Chain(
            d_before,
            sums.add(chain.vectors, d_vectors),
            sums.add(chain.reset_carry, d_reset),
        )
        return chain, d_floats, _Operands(rows, cotangents)

    return _Step(run, names)


def _products(
    recorded: Callable[[Carry, InputTerms], Record], carry: Carry, terms: InputTerms
) -> tuple[list[str], list[tuple[int, ...]]]:
    """Kernels and shapes of a step's products, in order."""
    found: list[tuple[list[str], list[tuple[int, ...]]]] = []

    def look(carry: Carry, terms: InputTerms) -> None:
        record = recorded(carry, terms)
        found.append((record.names, record.shapes))

    jax.eval_shape(look, carry, terms)
    return found[0]
