"""The fast path of the relational memory: a hoisted scan with a backward pass of its own.

Two things make it faster than autodiff through the plain scan:

- What depends on the inputs alone is computed for all steps in one product each
  (`step.input_terms`) and differentiated by autodiff.
- The recurrent part has its own backward pass (`backward.py`). It needs the memories, and the
  results of the products if they were kept; the weight gradients are taken out of the chain of
  steps.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.scan.backward import backward
from rrnn_jax.scan.loop import loop_over_time, take_step, time_buffer
from rrnn_jax.scan.plan import Plan, Residuals, cast_kernels
from rrnn_jax.scan.products import RecordProducts
from rrnn_jax.scan.step import InputTerms, compute_dtype, input_terms, recurrent_step
from rrnn_jax.scan.weights import CoreWeights, core_weights
from rrnn_jax.typing import Array, Carry


def hoisted_scan(
    plan: Plan,
    params: Mapping[str, Any],
    inputs: Array,
    carry: Carry,
    reset_carry: Carry | None,
    resets: Array | None,
    mask: Array | None,
) -> tuple[Carry, Carry]:
    """Runs the cell over a sequence.

    Args:
      plan: how; its `dtype` is filled in here.
      params: the cell's parameters.
      inputs: ``[B, T, R, I]``, or ``[T, B, R, I]`` with ``plan.time_axis == 0``.
      carry: ``[B, S, F]``, or a pair of such arrays with an output gate.
      reset_carry: what a reset puts in place of the carry, shaped like it; None without resets.
      resets: ``[B, T]`` or ``[T, B]`` bool, or None.
      mask: the same.

    Returns:
      The final carry, and the carry after every step with time at ``plan.time_axis``.
    """
    if mask is not None:
        # What stands in a masked step must not reach the gradient, NaN included.
        inputs = jnp.where(mask[..., None, None], inputs, jnp.zeros_like(inputs))
        resets = None if resets is None else resets & mask
    plan = plan._replace(dtype=compute_dtype(plan.cell, params, inputs.dtype))
    terms = input_terms(plan.cell, params, inputs, resets, mask)
    weights = core_weights(plan.cell, params)
    return _recurrence(plan, weights, carry, None if resets is None else reset_carry, terms)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(
    plan: Plan,
    weights: CoreWeights,
    carry: Carry,
    reset_carry: Carry | None,
    terms: InputTerms,
) -> tuple[Carry, Carry]:
    """The recurrent part: the final carry and the carry after every step."""
    final, carries, _ = _forward(plan, weights, carry, reset_carry, terms, keep_products=False)
    return final, carries


def _recurrence_fwd(
    plan: Plan, weights: CoreWeights, carry: Carry, reset_carry: Carry | None, terms: InputTerms
) -> tuple[tuple[Carry, Carry], Residuals]:
    final, carries, products = _forward(
        plan, weights, carry, reset_carry, terms, keep_products=plan.keep_products
    )
    return (final, carries), Residuals(weights, carry, reset_carry, terms, carries, products)


def _recurrence_bwd(plan: Plan, residuals: Residuals, cotangents: tuple[Carry, Carry]) -> tuple:
    return backward(plan, residuals, *cotangents)


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)


def _forward(
    plan: Plan,
    weights: CoreWeights,
    carry: Carry,
    reset_carry: Carry | None,
    terms: InputTerms,
    keep_products: bool,
) -> tuple[Carry, Carry, list[Array] | None]:
    """Final carry, all carries and, if asked for, the results of all products."""
    kernels = cast_kernels(weights, plan.dtype)

    def step(carry: Carry, terms: InputTerms, t: Array) -> tuple[Carry, tuple]:
        del t
        linear = RecordProducts(kernels)
        carry = recurrent_step(
            plan.cell, linear, weights.vectors, carry, reset_carry, terms, plan.dtype
        )
        return carry, (carry, linear.results if keep_products else None)

    axis, num_steps = plan.time_axis, terms.qkv.shape[plan.time_axis]
    t = jnp.int32(0)
    shapes = jax.eval_shape(step, carry, take_step(terms, t, axis), t)[1]
    final, (carries, products) = loop_over_time(
        step,
        carry,
        terms,
        start=0,
        num_steps=num_steps,
        time_axis=axis,
        buffers=jax.tree.map(lambda x: time_buffer(x.shape, x.dtype, num_steps, axis), shapes),
        prefetch=plan.prefetch,
    )
    return final, carries, products
