"""A loop over time that reads and writes arrays where their time axis is, without transposing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array


def take_step(arrays: Any, index: Array, time_axis: int) -> Any:
    """One step of every array in a pytree."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, time_axis, keepdims=False), arrays
    )


def loop_over_time(
    step: Callable[[Any, Any, Array], tuple[Any, Any]],
    carry: Any,
    inputs: Any,
    *,
    start: Array | int,
    num_steps: int,
    time_axis: int,
    buffers: Any,
    reverse: bool = False,
    prefetch: bool = False,
) -> tuple[Any, Any]:
    """Runs ``carry, outputs = step(carry, inputs[t], t)`` for `num_steps` values of t.

    Args:
      step: the body.
      carry: its initial carry.
      inputs: pytree of arrays with a time axis.
      start: the first t; t goes up by one per step, or down if `reverse`. It may leave the range
        of the arrays: reads and writes are then clamped to the nearest step.
      num_steps: how many steps to run.
      time_axis: where time is, in inputs and buffers.
      buffers: pytree of arrays into which the outputs of step t are written at t.
      reverse: count down.
      prefetch: read a step's inputs at the end of the step before. XLA's CPU backend fuses a read
        at a variable position into the arithmetic that uses it, which then is not vectorised; a
        value that comes with the carry has been read already.

    Returns:
      The final carry and the filled buffers.
    """
    leaves = jax.tree.leaves(inputs)
    last = leaves[0].shape[time_axis] - 1 if leaves else 0
    sign = -1 if reverse else 1

    def position(i: Array | int) -> Array:
        return jnp.asarray(start, jnp.int32) + sign * jnp.asarray(i, jnp.int32)

    def read(i: Array | int) -> Any:
        return take_step(inputs, jnp.clip(position(i), 0, last), time_axis)

    def body(state: tuple[Any, Any, Any], i: Array) -> tuple[tuple[Any, Any, Any], None]:
        carry, buffers, ahead = state
        t = position(i)
        carry, outputs = step(carry, ahead if prefetch else read(i), t)
        buffers = jax.tree.map(
            lambda buffer, x: jax.lax.dynamic_update_index_in_dim(buffer, x, t, time_axis),
            buffers,
            outputs,
        )
        return (carry, buffers, read(i + 1) if prefetch else None), None

    state = (carry, buffers, read(0) if prefetch else None)
    (carry, buffers, _), _ = jax.lax.scan(body, state, jnp.arange(num_steps, dtype=jnp.int32))
    return carry, buffers


def time_buffer(shape: tuple[int, ...], dtype: Any, num_steps: int, time_axis: int) -> Array:
    """A buffer for `num_steps` arrays of `shape`."""
    return jnp.zeros((*shape[:time_axis], num_steps, *shape[time_axis:]), dtype)
