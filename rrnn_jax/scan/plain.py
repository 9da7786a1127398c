"""The plain scan: `flax.linen.scan` of any cell, with resets, masks, lengths and remat."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.errors import InvalidRngError

from rrnn_jax.scan.mesh import varying_axes, varying_over
from rrnn_jax.scan.sequence import (
    SequenceInputs,
    SequenceOutputs,
    hold_last_valid,
    output_before_first_step,
    select,
)
from rrnn_jax.typing import Array, Carry, Remat


class Lifting(NamedTuple):
    """The arguments of `flax.linen.scan` that `flax.linen.RNN` exposes."""

    unroll: int
    variable_axes: Mapping[Any, Any]
    variable_broadcast: Any
    variable_carry: Any
    split_rngs: Mapping[Any, bool]


def plain_scan(
    cell: nn.RNNCellBase,
    sequence: SequenceInputs,
    initial_carry: Carry,
    reset_carry: Carry | None,
    *,
    time_axis: int,
    lifting: Lifting,
    remat: Remat = "none",
    all_carries: bool = False,
) -> SequenceOutputs:
    """Runs `cell` over a sequence, one step at a time.

    Args:
      cell: any cell, bound to the calling module's scope.
      sequence: inputs, and optionally resets, mask and valid steps.
      initial_carry: the carry before the first step.
      reset_carry: the carry after a reset; required with resets.
      time_axis: the time axis of inputs and outputs.
      lifting: arguments for `flax.linen.scan`.
      remat: what the backward pass recomputes, see `rrnn_jax.RNN`.
      all_carries: whether to return the carry after every step.

    Returns:
      `SequenceOutputs`.

    Raises:
      ValueError: ``remat="chunked"`` if chunks would draw other random numbers than the whole
        sequence, or if steps have separate variables.
    """
    if remat == "chunked":
        _check_chunks(cell, sequence, initial_carry, time_axis, lifting)

    def step(cell: nn.RNNCellBase, state: tuple[Carry, Carry], x: SequenceInputs):
        carry, last_valid = state
        if x.resets is not None:
            carry = select(x.resets, reset_carry, carry)
        rows = () if x.row_mask is None else (x.row_mask,)
        new_carry, y = cell(carry, x.inputs, *rows)
        new_carry = jax.tree.map(_rounded_to, new_carry, carry)
        if x.mask is not None:
            new_carry = select(x.mask, new_carry, carry)
        if x.valid is not None:
            last_valid = select(x.valid, new_carry, last_valid)
        return (new_carry, last_valid), (y, new_carry if all_carries else None)

    axes = varying_axes(cell.variables, sequence, initial_carry, reset_carry)
    run = _scan_with_remat(step, time_axis, lifting, remat, axes)
    state = (initial_carry, None if sequence.valid is None else initial_carry)
    (carry, last_valid), (outputs, carries) = run(cell, state, sequence)
    if sequence.mask is not None and sequence.mask.size > 0:
        mask = sequence.mask
        first = jax.tree.map(lambda y: jax.lax.index_in_dim(y, 0, time_axis, False), outputs)
        before = output_before_first_step(cell, initial_carry, first)
        outputs = jax.tree.map(lambda y, b: hold_last_valid(y, mask, b, time_axis), outputs, before)
    return SequenceOutputs(carry if sequence.valid is None else last_valid, outputs, carries)


def _rounded_to(new: Array, old: Array) -> Array:
    """A part of a carry, which Flax's cells may promote, in the dtype of the previous one."""
    floating = all(jnp.issubdtype(x.dtype, jnp.floating) for x in (new, old))
    promoted = floating and jnp.finfo(new.dtype).bits > jnp.finfo(old.dtype).bits
    return new.astype(old.dtype) if promoted else new


def _scan_with_remat(
    step: Callable, time_axis: int, lifting: Lifting, remat: Remat, axes: frozenset[str]
) -> Callable[[nn.RNNCellBase, Any, SequenceInputs], tuple[Any, Any]]:
    """Lifts `step` into a scan over the time axis of its inputs."""

    def scan(body: Callable) -> Callable:
        return nn.scan(
            body,
            in_axes=time_axis,
            out_axes=time_axis,
            unroll=lifting.unroll,
            variable_axes=lifting.variable_axes,
            variable_broadcast=lifting.variable_broadcast,
            variable_carry=lifting.variable_carry,
            split_rngs=lifting.split_rngs,
        )

    # Inside a loop nothing can be merged across steps, so the barrier against it is useless.
    if remat == "full":
        return scan(nn.remat(step, prevent_cse=False))
    if remat == "save_products":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return scan(nn.remat(step, prevent_cse=False, policy=policy))
    if remat == "chunked":
        return _chunked_scan(scan, step, time_axis, axes)
    return scan(step)


def _check_chunks(
    cell: nn.RNNCellBase,
    sequence: SequenceInputs,
    carry: Carry,
    time_axis: int,
    lifting: Lifting,
) -> None:
    """Raises if a scan of chunks would differ from a scan of steps."""
    stepwise = [name for name in lifting.variable_axes if name != "intermediates"]
    if stepwise:
        raise ValueError(
            f"remat='chunked' needs variables that all steps share, got variable_axes={stepwise}; "
            "use remat='full'"
        )
    if cell.is_initializing():
        return
    alone = cell.clone(parent=None, name=None)

    def step(variables: Any, carry: Carry, inputs: Array) -> Any:
        x = jnp.sum(inputs, axis=time_axis, dtype=inputs.dtype)  # Shaped and sharded like a step's.
        return alone.apply(variables, carry, x, mutable=True)

    try:
        jax.eval_shape(step, cell.variables, carry, sequence.inputs)
    except InvalidRngError as error:
        raise ValueError(
            "remat='chunked' would draw other random numbers than the whole sequence, and "
            f"{type(cell).__name__} draws some in a step; use remat='full'"
        ) from error


def _chunked_scan(scan: Callable, step: Callable, time_axis: int, axes: frozenset[str]) -> Callable:
    """A scan over chunks of about sqrt(T) steps that stores only the carries between chunks."""

    def chunk(cell: nn.RNNCellBase, state: Any, xs: SequenceInputs) -> tuple[Any, Any]:
        # When Flax traces the outer scan, it loses the mesh axes over which a carry varies.
        return scan(step)(cell, varying_over(axes, state), xs)

    inner = nn.remat(chunk, prevent_cse=False)

    def run(cell: nn.RNNCellBase, state: Any, xs: SequenceInputs) -> tuple[Any, Any]:
        steps = xs.inputs.shape[time_axis]
        if not isinstance(steps, int):  # Symbolic (`jax.export`): one chunk.
            return inner(cell, state, xs)
        length = max(1, math.isqrt(steps))
        whole = steps // length * length

        def cut(x: Array) -> Array:
            x = jax.lax.slice_in_dim(x, 0, whole, axis=time_axis)
            shape = (*x.shape[:time_axis], whole // length, length, *x.shape[time_axis + 1 :])
            return x.reshape(shape)

        def join(y: Array) -> Array:
            return y.reshape(*y.shape[:time_axis], whole, *y.shape[time_axis + 2 :])

        state, ys = scan(inner)(cell, state, jax.tree.map(cut, xs))
        ys = jax.tree.map(join, ys)
        if whole == steps:
            return state, ys
        rest = jax.tree.map(lambda x: jax.lax.slice_in_dim(x, whole, steps, axis=time_axis), xs)
        state, last = inner(cell, state, rest)
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=time_axis), ys, last)
        return state, ys

    return run
