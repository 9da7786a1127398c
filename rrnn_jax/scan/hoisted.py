"""The fast path of the relational memory: a hoisted scan with a backward pass of its own.

Two things make it faster than autodiff through the plain scan:

- What depends on the inputs alone is computed for all steps in one product each
  (`step.input_terms`) and differentiated by autodiff.
- The recurrent part has its own backward pass (`backward.py`). It needs the memories, and the
  results of the products if they were kept; the weight gradients are taken out of the chain of
  steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.scan.backward import backward
from rrnn_jax.scan.input_terms import InputTerms, compute_dtype, input_terms
from rrnn_jax.scan.loop import Timed, loop_over_time, take_step, time_buffers
from rrnn_jax.scan.plan import Arguments, Plan, Residuals, Timewise, forward_weights
from rrnn_jax.scan.sequence import without_masked
from rrnn_jax.scan.step import recurrent_step
from rrnn_jax.scan.tape import Record
from rrnn_jax.scan.weights import CoreWeights, core_weights
from rrnn_jax.typing import Array, Carry


def hoisted_scan(plan: Plan, arguments: Arguments, sequence: Timewise) -> tuple[Carry, Carry]:
    """Runs the cell over a sequence.

    Args:
      plan: how; its `dtype` is filled in here.
      arguments: parameters and carries.
      sequence: inputs, resets and mask.

    Returns:
      The final carry, and the carry after every step with time at ``plan.time_axis``.
    """
    params, carry, reset_carry = arguments
    inputs, resets, mask = sequence
    with explain_forward_mode(plan):
        if mask is not None:
            inputs, resets = without_masked(inputs, resets, mask)
        plan = plan._replace(dtype=compute_dtype(plan.cell, params, inputs.dtype))
        terms = input_terms(plan, params, inputs, resets, mask)
        weights = core_weights(plan.cell, params)
        reset_carry = None if resets is None else reset_carry
        if plan.fused and runs_fused(plan, carry, reset_carry):
            from rrnn_jax.scan.fused import fused_recurrence  # Imports Pallas.

            return fused_recurrence(plan, weights, carry, reset_carry, terms)
        return _recurrence(plan, weights, carry, reset_carry, terms)


def runs_fused(plan: Plan, *carries: Carry | None) -> bool:
    """Whether the kernels have what these arguments ask for."""
    wide = all(x.dtype == jnp.float32 for x in jax.tree.leaves(carries))
    return plan.save and wide and plan.dtype in (jnp.float32, jnp.bfloat16)


@contextmanager
def explain_forward_mode(plan: Plan) -> Iterator[None]:
    """Adds to JAX's error what to do about it."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        name = "fused" if plan.fused else "hoisted"
        raise TypeError(
            f"implementation={name!r} (which 'auto' chose, if you did not) has no forward-mode "
            "derivative; use implementation='scan' for jax.jvp, jax.jacfwd and jax.hessian"
        ) from error


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(
    plan: Plan,
    weights: CoreWeights,
    carry: Carry,
    reset_carry: Carry | None,
    terms: InputTerms,
) -> tuple[Carry, Carry]:
    """The recurrent part: the final carry and the carry after every step."""
    final, carries, _ = _forward(plan, weights, carry, reset_carry, terms, save=False)
    return final, carries


def _recurrence_fwd(
    plan: Plan, weights: CoreWeights, carry: Carry, reset_carry: Carry | None, terms: InputTerms
) -> tuple[tuple[Carry, Carry], Residuals]:
    final, carries, saved = _forward(plan, weights, carry, reset_carry, terms, save=plan.save)
    return (final, carries), Residuals(weights, carry, reset_carry, terms, carries, saved)


def _recurrence_bwd(plan: Plan, residuals: Residuals, cotangents: tuple[Carry, Carry]) -> tuple:
    return backward(plan, residuals, *cotangents)


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _forward(
    plan: Plan,
    weights: CoreWeights,
    carry: Carry,
    reset_carry: Carry | None,
    terms: InputTerms,
    save: bool,
) -> tuple[Carry, Carry, list[Any] | None]:
    """Final carry, all carries and, if asked for, what the backward pass wants of every step."""
    used = forward_weights(plan, weights)

    def step(carry: Carry, inputs: tuple[InputTerms], t: Array) -> tuple[Carry, tuple]:
        del t
        record = Record(used, plan)
        carry = recurrent_step(plan.cell, record, carry, reset_carry, *inputs, plan.dtype)
        return carry, (carry, record.saved) if save else (carry,)

    axis, num_steps = plan.time_axis, terms.qkv[0].shape[plan.time_axis]
    t = jnp.int32(0)
    shapes = jax.eval_shape(step, carry, (take_step(terms, t, axis),), t)[1]
    # The carries go where the caller has time; what is saved has it in front, the quickest place.
    buffers = [
        time_buffers(x, num_steps, where, after=terms)
        for x, where in zip(shapes, (axis, 0), strict=False)
    ]
    final, filled = loop_over_time(
        step,
        carry,
        [Timed(terms, axis)],
        start=0,
        num_steps=num_steps,
        buffers=buffers,
        prefetch=plan.prefetch,
        unroll=plan.unroll,
    )
    return final, filled[0], filled[1] if save else None
