"""A loop over time that reads and writes arrays where their time axis is, without transposing."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array


class Timed(NamedTuple):
    """Arrays with a time axis.

    Attributes:
      arrays: any pytree.
      axis: where time is in every array of it.
    """

    arrays: Any
    axis: int

    def take(self, t: Array) -> Any:
        """One step of every array."""
        return take_step(self.arrays, t, self.axis)

    def put(self, t: Array, values: Any) -> "Timed":
        """The arrays with one step of each replaced."""
        return Timed(
            jax.tree.map(
                lambda x, value: jax.lax.dynamic_update_index_in_dim(x, value, t, self.axis),
                self.arrays,
                values,
            ),
            self.axis,
        )


def take_step(arrays: Any, index: Array, time_axis: int) -> Any:
    """One step of every array in a pytree."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, time_axis, keepdims=False), arrays
    )


def loop_over_time(
    step: Callable[[Any, tuple, Array], tuple[Any, tuple]],
    carry: Any,
    inputs: Sequence[Timed],
    *,
    start: Array | int,
    num_steps: int,
    buffers: Sequence[Timed],
    in_place: bool = False,
    reverse: bool = False,
    prefetch: bool = False,
    unroll: int = 1,
) -> tuple[Any, list[Any]]:
    """Runs ``carry, outputs = step(carry, inputs[t], t)`` for `num_steps` values of t.

    Args:
      step: the body; takes a tuple with a step of each of `inputs`, and returns a tuple with what
        to write into each of `buffers`.
      carry: its initial carry.
      inputs: what is read.
      start: the first t; t goes up by one per step, or down if `reverse`. It may leave the range
        of the arrays: reads and writes are then clamped to the nearest step.
      num_steps: how many steps to run.
      buffers: into which the outputs of step t are written at t.
      in_place: the step also gets, after its inputs, what stands in each buffer at t.
      reverse: count down.
      prefetch: read a step's inputs at the end of the step before. XLA's CPU backend fuses a read
        at a variable position into the arithmetic that uses it, which then is not vectorised; what
        comes with the carry has been read already.
      unroll: steps per iteration.

    Returns:
      The final carry, and the arrays of the filled buffers.
    """
    read_from = [*inputs, *(buffers if in_place else ())]
    leaves = [(leaf, x.axis) for x in read_from for leaf in jax.tree.leaves(x.arrays)]
    last = leaves[0][0].shape[leaves[0][1]] - 1 if leaves else 0
    sign = -1 if reverse else 1
    axes = [buffer.axis for buffer in buffers]

    def position(i: Array | int) -> Array:
        return jnp.asarray(start, jnp.int32) + sign * jnp.asarray(i, jnp.int32)

    def index(i: Array | int) -> Array:
        return jnp.clip(position(i), 0, last)

    def read(i: Array | int) -> tuple:
        return tuple(x.take(index(i)) for x in inputs)

    def read_buffers(i: Array | int, arrays: list[Any]) -> tuple:
        if not in_place:
            return ()
        return tuple(Timed(x, axis).take(index(i)) for x, axis in zip(arrays, axes, strict=True))

    def body(state: tuple, i: Array) -> tuple[tuple, None]:
        carry, arrays, ahead, standing = state
        t = position(i)
        carry, outputs = step(carry, (*(ahead if prefetch else read(i)), *standing), t)
        arrays = [
            Timed(array, axis).put(t, values).arrays
            for array, axis, values in zip(arrays, axes, outputs, strict=True)
        ]
        ahead = read(i + 1) if prefetch else None
        # Always ahead: XLA copies a buffer, all of it, that is read and then written in one step.
        return (carry, arrays, ahead, read_buffers(i + 1, arrays)), None

    arrays = [buffer.arrays for buffer in buffers]
    state = (carry, arrays, read(0) if prefetch else None, read_buffers(0, arrays))
    (carry, arrays, *_), _ = jax.lax.scan(
        body, state, jnp.arange(num_steps, dtype=jnp.int32), unroll=unroll
    )
    return carry, arrays


def time_buffers(shapes: Any, num_steps: int, time_axis: int, after: Any = ()) -> Timed:
    """Room for `num_steps` values of the given shapes and dtypes, with any content.

    Args:
      shapes: of one step, any pytree.
      num_steps: T.
      time_axis: where time is to be.
      after: arrays; the room is taken once the first of them is there. What only its computation
        needs can then be in the same memory.
    """
    first = [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(after)[:1] if leaf.size > 0]

    def buffer(x: jax.ShapeDtypeStruct) -> Array:
        shape = (*x.shape[:time_axis], num_steps, *x.shape[time_axis:])
        # A constant would be there from the start, whatever comes before.
        return (
            jnp.broadcast_to(first[0].astype(x.dtype), shape)
            if first
            else jnp.zeros(shape, x.dtype)
        )

    return Timed(jax.tree.map(buffer, shapes), time_axis)
