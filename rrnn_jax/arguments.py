"""The arguments of a call of `RNN`: checked, sharded like the inputs, and reversed in time.

`RNN.__post_init__` checks the attributes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.recurrent import flip_sequences

from rrnn_jax.carry import as_flags, broadcast_carry, checked_carry
from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.checks import as_int32, check_bool, check_flag, check_real, check_shape
from rrnn_jax.scan.mesh import beside, varying_axes
from rrnn_jax.scan.sequence import SequenceInputs, hold_last_valid
from rrnn_jax.typing import Array, Carry


class Call(NamedTuple):
    """The arguments of a call besides its inputs, see `rrnn_jax.RNN`."""

    initial_carry: Carry | None = None
    init_key: Array | None = None
    seq_lengths: Any = None
    resets: Any = None
    reset_carry: Carry | None = None
    mask: Any = None
    row_mask: Any = None
    time_major: bool = False
    reverse: bool = False
    keep_order: bool = False


class Prepared(NamedTuple):
    """The checked arguments.

    Attributes:
      sequence: inputs and flags, in the order in which they are run.
      carry: the initial carry.
      reset_carry: the carry after a reset; None without resets.
      time_axis: the time axis of the inputs.
      flip: reverses an array along the time axis, keeping padding in its place.
    """

    sequence: SequenceInputs
    carry: Carry
    reset_carry: Carry | None
    time_axis: int
    flip: Callable[[Array], Array]


def prepare(cell: nn.RNNCellBase, inputs: Any, call: Call) -> Prepared:
    """Checks and prepares the arguments of a call.

    Args:
      cell: the bound cell.
      inputs: the inputs of the call.
      call: the other arguments.

    Returns:
      `Prepared`.

    Raises:
      ValueError, TypeError: see `rrnn_jax.RNN`.
    """
    check_flag(time_major=call.time_major, reverse=call.reverse, keep_order=call.keep_order)
    time_axis, batch = _layout(cell, inputs, call.time_major)
    if isinstance(cell, RelationalMemoryCell):
        # JAX's error for text names no argument.
        check_real("inputs", inputs if isinstance(inputs, np.ndarray) else jnp.asarray(inputs))
    inputs = jnp.asarray(inputs)
    per_step = list(batch)
    per_step.insert(time_axis, inputs.shape[time_axis])
    resets, mask, lengths = _checked_flags(call, tuple(per_step), batch)
    if lengths is not None:  # Flax's `flip_sequences` would rotate longer sequences.
        lengths = jnp.minimum(lengths, per_step[time_axis])

    def flip(x: Array) -> Array:
        return flip_sequences(x, lengths, len(batch), call.time_major)

    row_mask = _checked_rows(cell, call, inputs)
    every = range(len(per_step))
    resets, mask = (None if x is None else beside(x, inputs, every) for x in (resets, mask))
    if call.reverse:
        inputs = flip(inputs)
        row_mask = None if row_mask is None else flip(row_mask)
        mask = None if mask is None else flip(mask)
        if resets is not None:
            # Running backwards, an episode is entered after its first step has been left, and
            # masked steps between them.
            left = flip(resets)
            if mask is not None and mask.size > 0:
                before = jnp.zeros_like(jax.lax.index_in_dim(left, 0, time_axis, False))
                left = hold_last_valid(left, mask, before, time_axis)
            resets = _shift_right(left, time_axis)

    valid = None
    if lengths is not None:
        index = jax.lax.broadcasted_iota(jnp.int32, per_step, time_axis)
        valid = beside(index < jnp.expand_dims(lengths, time_axis), inputs, every)
    if row_mask is not None:
        row_mask = beside(row_mask, inputs, range(row_mask.ndim))
    sequence = SequenceInputs(inputs, resets, mask, valid, row_mask)
    step_shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
    carry, reset_carry = _carries(cell, call, sequence, time_axis, step_shape, len(batch))
    return Prepared(sequence, carry, reset_carry, time_axis, flip)


def _layout(cell: nn.RNNCellBase, inputs: Any, time_major: bool) -> tuple[int, tuple[int, ...]]:
    """The time axis and the batch shape of the inputs."""
    if not hasattr(inputs, "shape"):
        raise TypeError(f"inputs must be one array, got {type(inputs).__name__}")
    features = cell.num_feature_axes
    if inputs.ndim < features + 1:
        raise ValueError(
            f"inputs must have a time axis and {features} feature axes "
            f"({type(cell).__name__}.num_feature_axes), got shape {inputs.shape}"
        )
    if time_major:
        return 0, inputs.shape[1 : inputs.ndim - features]
    time_axis = inputs.ndim - features - 1
    return time_axis, inputs.shape[:time_axis]


def _checked_flags(
    call: Call, per_step: tuple[int, ...], batch: tuple[int, ...]
) -> tuple[Array | None, Array | None, Array | None]:
    """Resets and mask as bool, lengths as int32; raises if they are invalid."""
    resets, mask, lengths = call.resets, call.mask, call.seq_lengths
    layout = "[T, *B]" if call.time_major else "[*B, T]"
    if resets is not None:
        resets = as_flags("resets", resets)
        check_shape("resets", resets, per_step, layout)
    if mask is not None:
        check_bool("mask", mask, layout)
        mask = jnp.asarray(mask)
        check_shape("mask", mask, per_step, layout)
    if lengths is not None:
        lengths = as_int32("seq_lengths", lengths, "[*B]")
        check_shape("seq_lengths", lengths, batch, "[*B]")
    return resets, mask, lengths


def _checked_rows(cell: nn.RNNCellBase, call: Call, inputs: Array) -> Array | None:
    """The mask of rows as a JAX array; raises if it is invalid."""
    if call.row_mask is None:
        return None
    layout = "[T, *B, R]" if call.time_major else "[*B, T, R]"
    if not getattr(cell, "matrix_inputs", False):
        vectors = " with matrix_inputs=False" if isinstance(cell, RelationalMemoryCell) else ""
        raise ValueError(
            "row_mask needs a RelationalMemoryCell with matrix_inputs=True, got "
            f"{type(cell).__name__}{vectors}"
        )
    check_bool("row_mask", call.row_mask, layout)
    check_shape("row_mask", call.row_mask, inputs.shape[:-1], layout)
    return jnp.asarray(call.row_mask)


def _carries(
    cell: nn.RNNCellBase,
    call: Call,
    sequence: SequenceInputs,
    time_axis: int,
    step_shape: tuple[int, ...],
    batch_axes: int,
) -> tuple[Carry, Carry | None]:
    """The initial carry and the carry for resets, with the caller's dtypes and sharding."""
    has_resets = sequence.resets is not None
    carry, fresh = call.initial_carry, call.reset_carry
    if carry is None or (has_resets and fresh is None):
        key = jax.random.key(0) if call.init_key is None else call.init_key
        if not hasattr(key, "dtype"):
            raise TypeError(f"init_key must be a key such as jax.random.key(0), got {key!r}")
        made = cell.initialize_carry(key, step_shape)
        carry, fresh = made if carry is None else carry, made if fresh is None else fresh
    if call.initial_carry is not None:
        carry = checked_carry("initial_carry", cell, carry, step_shape)
    varying = varying_axes(sequence)
    axes = [axis for axis in range(batch_axes + 1) if axis != time_axis]
    carry = jax.tree.map(lambda x: beside(x, sequence.inputs, axes, varying), carry)
    if has_resets or call.reset_carry is not None:  # Checked without resets, too.
        fresh = broadcast_carry("reset_carry", fresh, carry, batch_axes)
    if not has_resets:
        return carry, None
    fresh = jax.tree.map(lambda x, like: beside(x, like, range(like.ndim)), fresh, carry)
    return jax.tree.map(lambda x, like: beside(x, like, ()), carry, fresh), fresh


def _shift_right(flags: Array, axis: int) -> Array:
    """Moves flags one step later; the first becomes False."""
    if flags.shape[axis] == 0:
        return flags
    first = jnp.zeros_like(jax.lax.slice_in_dim(flags, 0, 1, axis=axis))
    rest = jax.lax.slice_in_dim(flags, 0, flags.shape[axis] - 1, axis=axis)
    return jnp.concatenate([first, rest], axis=axis)
