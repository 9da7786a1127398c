"""The inputs and outputs of a scan over a sequence, and helpers for them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.scan.mesh import has_explicit_axes
from rrnn_jax.typing import Array, Carry


class SequenceInputs(NamedTuple):
    """Inputs and flags of a sequence, all with the same time axis.

    Attributes:
      inputs: ``[*B, T, ...]`` (or time-major).
      resets: ``[*B, T]`` bool or None: re-initialise the carry before this step.
      mask: ``[*B, T]`` bool or None: where False the carry does not change.
      valid: ``[*B, T]`` bool or None: steps within `seq_lengths`; the carry of the last of them is
        the final carry, though the scan continues.
      row_mask: ``[*B, T, R]`` bool or None: valid rows of matrix inputs.
    """

    inputs: Array
    resets: Array | None = None
    mask: Array | None = None
    valid: Array | None = None
    row_mask: Array | None = None


class SequenceOutputs(NamedTuple):
    """The results of a scan.

    >>> SequenceOutputs(carry=jnp.zeros((8, 4)), outputs=jnp.zeros((8, 10, 4))).carries is None
    True

    Attributes:
      carry: the final carry.
      outputs: ``[*B, T, ...]`` (or time-major).
      carries: the carry after every step, with a time axis, or None if not requested.
    """

    carry: Carry
    outputs: Array
    carries: Carry | None = None


def select(condition: Array, on_true: Any, on_false: Any) -> Any:
    """`jnp.where` over pytrees whose leaves begin with the axes of `condition`."""

    def leaf(a: Array, b: Array) -> Array:
        expanded = condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim))
        return jnp.where(jnp.broadcast_to(expanded, a.shape), a, b)

    return jax.tree.map(leaf, on_true, on_false)


def without_unused(sequence: SequenceInputs, time_axis: int, repeat: bool) -> SequenceInputs:
    """Replaces unused inputs, so that they cannot reach a gradient, not even as NaN.

    Unused are masked steps and rows, and steps past the end of a sequence.

    Args:
      sequence: the sequence.
      time_axis: its time axis.
      repeat: replace an unused step by a used one, the previous one if there is one; otherwise by
        zeros, at which a cell may have no derivative.
    """
    inputs, resets, mask, valid, row_mask = sequence
    # Not `zeros_like`, which drops the sharding of an array that a traced function closes over.
    zero = jnp.zeros((), inputs.dtype)
    if row_mask is not None:
        inputs = select(row_mask, inputs, zero)
    used = mask if valid is None else valid if mask is None else mask & valid
    if used is not None:
        inputs = select(used, inputs, zero)
        if repeat and used.size > 0:
            first = jnp.argmax(used, axis=time_axis, keepdims=True).astype(jnp.int32)
            first = jnp.squeeze(_at_steps(inputs, first, time_axis), time_axis)
            inputs = hold_last_valid(inputs, used, first, time_axis)
    if resets is not None and mask is not None:
        resets = resets & mask
    return SequenceInputs(inputs, resets, mask, valid, row_mask)


def hold_last_valid(outputs: Array, mask: Array, before: Array, time_axis: int) -> Array:
    """Replaces the output of masked steps by that of the last unmasked step.

    Args:
      outputs: ``[*B, T, ...]``.
      mask: ``[*B, T]`` bool.
      before: the output before the first unmasked step, shaped like `outputs` without time.
      time_axis: the time axis of both.

    Returns:
      An array like `outputs`.
    """
    steps = jax.lax.broadcasted_iota(jnp.int32, mask.shape, time_axis)
    last = jax.lax.cummax(jnp.where(mask, steps, -1), axis=time_axis)
    held = _at_steps(outputs, jnp.maximum(last, 0), time_axis)
    before = jnp.broadcast_to(jnp.expand_dims(before, time_axis), outputs.shape)
    return select(last >= 0, held, before)


def _at_steps(x: Array, steps: Array, time_axis: int) -> Array:
    """The values of `x` at the given steps, integers ``[*B, T]``.

    Not `jnp.take_along_axis`, because `checkify.index_checks` fails on its gradient.
    """
    axes = range(steps.ndim)
    index = [jax.lax.broadcasted_iota(steps.dtype, steps.shape, axis) for axis in axes]
    index[time_axis] = steps
    sharding = jax.typeof(x).sharding if has_explicit_axes(x) else None
    return x.at[tuple(index)].get(mode="promise_in_bounds", out_sharding=sharding)


def output_before_first_step(cell: nn.RNNCellBase, carry: Carry, like: Any) -> Any:
    """The output of the initial carry; zeros if it is unknown.

    Args:
      cell: the cell; its `output_from_carry` is used if it has one.
      carry: its initial carry.
      like: an output of one step.

    Returns:
      Arrays of the structure, shapes and dtypes of `like`.
    """
    # The step of a subclass, unlike that of a class made by a Flax transform, has its own module.
    is_flax = type(cell).__call__.__module__ == nn.GRUCell.__module__
    if hasattr(cell, "output_from_carry"):
        before = cell.output_from_carry(carry)
    elif is_flax and isinstance(cell, nn.LSTMCell | nn.OptimizedLSTMCell | nn.ConvLSTMCell):
        before = carry[1]
    elif is_flax and isinstance(cell, nn.GRUCell | nn.SimpleCell | nn.MGUCell):
        before = carry
    else:
        before = jax.tree.map(jnp.zeros_like, like)
    return jax.tree.map(lambda x, y: x.astype(y.dtype), before, like)
