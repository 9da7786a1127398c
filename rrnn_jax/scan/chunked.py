"""The hoisted scan for long sequences: its memory grows with the square root of their length.

Only the carries between chunks of about sqrt(T) steps are kept. Going backward a chunk is run once
more, and all that is known of it is forgotten before the next one. Chunks are read from the
sequence, and written into it, where they are: to stack and to transpose them would hold several
copies of the whole sequence at once.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.scan import sums
from rrnn_jax.scan.hoisted import explain_forward_mode, hoisted_scan
from rrnn_jax.scan.loop import time_buffers
from rrnn_jax.scan.plan import Arguments, Plan, Timewise
from rrnn_jax.typing import Array, Carry


def chunked_scan(plan: Plan, arguments: Arguments, sequence: Timewise) -> tuple[Carry, Carry]:
    """Runs the cell over a sequence; arguments and results are those of `hoisted_scan`."""
    with explain_forward_mode(plan):
        return _run(plan, arguments, sequence)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(plan: Plan, arguments: Arguments, sequence: Timewise) -> tuple[Carry, Carry]:
    final, carries, _ = _forward(plan, arguments, sequence)
    return final, carries


def _run_fwd(
    plan: Plan, arguments: Arguments, sequence: Timewise
) -> tuple[tuple[Carry, Carry], tuple]:
    final, carries, between = _forward(plan, arguments, sequence)
    return (final, carries), (arguments, sequence, between)


def _run_bwd(plan: Plan, residuals: tuple, cotangents: tuple[Carry, Carry]) -> tuple:
    arguments, sequence, between = residuals
    d_final, d_carries = cotangents
    axis = plan.time_axis
    length, whole = _lengths(sequence.inputs.shape[axis])
    # Of integers and bools there is no gradient.
    floating = jnp.issubdtype(sequence.inputs.dtype, jnp.inexact)
    state: tuple[Any, ...] = (
        d_final,
        sums.zeros_for(arguments.params),
        sums.zeros_for(arguments.reset_carry),
        jnp.zeros_like(sequence.inputs) if floating else None,
    )

    def one(state: tuple, before: Carry, start: Array | int, steps: int) -> tuple:
        d_carry, d_params, d_reset, d_inputs = state
        chunk, d_chunk = _cut(sequence, start, steps, axis), _cut(d_carries, start, steps, axis)

        def run(arguments: Arguments, inputs: Array) -> tuple[Carry, Carry]:
            return hoisted_scan(plan._replace(save=True), arguments, chunk._replace(inputs=inputs))

        _, vjp = jax.vjp(run, arguments._replace(carry=before), chunk.inputs)
        d_arguments, d_piece = vjp((d_carry, d_chunk))
        return (
            d_arguments.carry,
            sums.add(d_params, d_arguments.params),
            sums.add(d_reset, d_arguments.reset_carry),
            _paste(d_inputs, d_piece, start, axis) if floating else None,
        )

    carries_between, last = between
    if whole < sequence.inputs.shape[axis]:
        state = one(state, last, whole, sequence.inputs.shape[axis] - whole)
    starts = length * jnp.arange(whole // length, dtype=jnp.int32)
    (d_carry, d_params, d_reset, d_inputs), _ = jax.lax.scan(
        lambda state, x: (one(state, *x, length), None),
        state,
        (carries_between, starts),
        reverse=True,
    )
    d_params = sums.cast_like(d_params, arguments.params)
    d_reset = sums.cast_like(d_reset, arguments.reset_carry)
    return Arguments(d_params, d_carry, d_reset), Timewise(d_inputs, None, None)


_run.defvjp(_run_fwd, _run_bwd)


def _forward(
    plan: Plan, arguments: Arguments, sequence: Timewise
) -> tuple[Carry, Carry, tuple[Carry, Carry]]:
    """Final carry, all carries, and the carries before each whole chunk and after the last one."""
    axis = plan.time_axis
    steps = sequence.inputs.shape[axis]
    length, whole = _lengths(steps)
    carry = arguments.carry
    carries = time_buffers(
        jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), carry), steps, axis
    ).arrays

    def one(state: tuple, start: Array | int, steps: int) -> tuple[tuple, Carry]:
        carry, carries = state
        chunk = _cut(sequence, start, steps, axis)
        after, found = hoisted_scan(
            plan._replace(save=False), arguments._replace(carry=carry), chunk
        )
        return (after, _paste(carries, found, start, axis)), carry

    starts = length * jnp.arange(whole // length, dtype=jnp.int32)
    (carry, carries), between = jax.lax.scan(
        lambda state, start: one(state, start, length), (carry, carries), starts
    )
    last = carry
    if whole < steps:
        (carry, carries), _ = one((carry, carries), whole, steps - whole)
    return carry, carries, (between, last)


def _lengths(steps: int) -> tuple[int, int]:
    """Steps of a chunk, and how many steps fill whole chunks."""
    length = max(1, math.isqrt(steps))
    return length, steps // length * length


def _cut(arrays: Any, start: Array | int, steps: int, axis: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, steps, axis=axis), arrays)


def _paste(arrays: Any, pieces: Any, start: Array | int, axis: int) -> Any:
    return jax.tree.map(
        lambda x, piece: jax.lax.dynamic_update_slice_in_dim(x, piece, start, axis=axis),
        arrays,
        pieces,
    )
