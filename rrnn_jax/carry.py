"""Carries: resets, checks, and conversion to the caller's dtypes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.checks import check_cell, check_floating, check_like, check_shape
from rrnn_jax.scan.mesh import beside
from rrnn_jax.scan.sequence import select
from rrnn_jax.typing import Array, Carry


def reset_carry(
    cell: nn.RNNCellBase,
    carry: Carry,
    flags: Any,
    fresh: Carry | None = None,
    *,
    rng: Array | None = None,
) -> Carry:
    """Resets a carry to its initial value where an episode begins.

    For your own loops, instead of ``jnp.where(flags[:, None], fresh, carry)``: that is correct
    for a state ``[B, F]``. For a memory ``[B, S, F]`` it fails, or resets slots if B = S; with one
    slot its result has the shape ``[B, B, F]``.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RelationalMemoryCell
    >>> cell = RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2)
    >>> carry = jnp.zeros((3, 4, 16))
    >>> carry = reset_carry(cell, carry, jnp.array([True, False, False]))
    >>> carry.sum(axis=(1, 2))
    Array([4., 0., 0.], dtype=float32)

    An actor that steps the cell itself passes `done` of the previous step: ``carry =
    reset_carry(cell, carry, done)``, then ``carry, y = cell.apply(variables, carry, x)``.

    Args:
      cell: any `flax.linen.RNNCellBase`.
      carry: its carry, a pytree of arrays whose leading axes are the batch axes.
      flags: ``[*B]`` bool, or numbers that are not 0 where True.
      fresh: the new carry, with or without batch axes, such as a learned initial memory (it
        receives gradients). Default: the cell's `initialize_carry`.
      rng: key for `initialize_carry` (default: ``jax.random.key(0)``).

    Returns:
      A carry with the structure, shapes and dtypes of `carry`.

    Raises:
      ValueError: `flags` have other axes than the leading ones of `carry`, `fresh` has another
        structure or shape, or is missing for a cell with a learned initial memory.
      TypeError: `flags` are neither bool nor numbers, `carry` is not made of arrays, or `fresh` is
        floating-point and `carry` is not, or the reverse.
    """
    check_cell(cell)
    flags = as_flags("flags", flags)
    if not jax.tree.leaves(carry) or not all(hasattr(x, "dtype") for x in jax.tree.leaves(carry)):
        raise TypeError(f"carry must hold arrays, got {carry!r}")
    carry = jax.tree.map(jnp.asarray, carry)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if leaf.shape[: flags.ndim] != flags.shape:
            raise ValueError(
                f"flags must have the batch axes of carry, got flags {flags.shape} and "
                f"carry{jax.tree_util.keystr(path)} {leaf.shape}"
            )
    if fresh is None:
        fresh = _initial_carry(cell, carry, flags, jax.random.key(0) if rng is None else rng)
    fresh = broadcast_carry("fresh", fresh, carry, flags.ndim)
    axes = range(flags.ndim)
    flags = beside(flags, jax.tree.leaves(carry)[0], axes)
    fresh = jax.tree.map(lambda x, like: beside(x, like, range(like.ndim)), fresh, carry)
    carry = jax.tree.map(lambda x, like: beside(x, like, ()), carry, fresh)
    return select(flags, fresh, carry)


def _initial_carry(cell: nn.RNNCellBase, carry: Carry, flags: Array, rng: Array) -> Carry:
    """The cell's own initial carry; raises unless it has the shapes of `carry`."""
    if getattr(cell, "learned_carry", False) and cell.scope is None:
        raise ValueError(
            "fresh must be given for a cell with learned_carry=True: its initial memory is "
            'variables["params"]["initial_memory"]'
        )
    fresh = cell.initialize_carry(rng, _step_shape(cell, carry, flags))
    shapes, expected = (jax.tree.map(jnp.shape, x) for x in (carry, fresh))
    if shapes != expected:
        raise ValueError(
            f"carry must have the shapes of the cell's carry, for flags {flags.shape} {expected}, "
            f"got {shapes}; flags must have all batch axes"
        )
    return fresh


def _step_shape(cell: nn.RNNCellBase, carry: Carry, flags: Array) -> tuple[int, ...]:
    """The shape of one step's input, as far as `initialize_carry` may depend on it.

    A convolutional cell needs the image's axes, which its carry has too; widths do not matter.
    """
    features = cell.num_feature_axes
    first = jax.tree.leaves(carry)[0].shape[flags.ndim :]
    return (*flags.shape, *(first if len(first) == features else (1,) * features))


def as_flags(name: str, flags: Any) -> Array:
    """Flags as bool: numbers, such as the `done` of an environment, are True where not 0."""
    try:
        flags = flags if hasattr(flags, "dtype") else jnp.asarray(flags)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be bool or numbers: {error}") from None
    if flags.dtype == jnp.bool_:
        return jnp.asarray(flags)
    real = any(jnp.issubdtype(flags.dtype, kind) for kind in (jnp.integer, jnp.floating))
    if not real:
        raise TypeError(f"{name} must be bool or numbers (True where not 0), got {flags.dtype}")
    return jnp.asarray(flags != 0)


def checked_carry(
    name: str, cell: nn.RNNCellBase, carry: Carry, step_shape: tuple[int, ...]
) -> Carry:
    """The caller's carry as JAX arrays; raises if it does not fit the cell.

    Carries of cells that are neither Flax's nor ours are not checked.

    Args:
      name: name of the argument.
      cell: the cell.
      carry: the caller's carry.
      step_shape: shape of one step's input.
    """
    if isinstance(cell, RelationalMemoryCell):
        cell.check_step(carry, step_shape, name)
    elif type(cell).__module__.startswith(("flax.linen.recurrent", "rrnn_jax.")):
        key = jax.random.key(0)
        alone = cell.clone(parent=None, name=None)
        check_like(
            name, cell, carry, jax.eval_shape(lambda: alone.initialize_carry(key, step_shape))
        )
    return jax.tree.map(jnp.asarray, carry)


def broadcast_carry(name: str, fresh: Carry, carry: Carry, batch_axes: int) -> Carry:
    """`fresh`, which may lack the batch axes, in the shapes and dtypes of `carry`."""
    if jax.tree.structure(fresh) != jax.tree.structure(carry):
        raise ValueError(
            f"{name} must have the structure of the carry, {jax.tree.structure(carry)}, got "
            f"{jax.tree.structure(fresh)}"
        )

    def leaf(path: Any, value: Any, like: Array) -> Array:
        value, part = jnp.asarray(value), name + jax.tree_util.keystr(path)
        if batch_axes and value.ndim == like.ndim - batch_axes:
            check_shape(part, value, like.shape[batch_axes:], "without *B")
            value = value.reshape((1,) * batch_axes + value.shape)
        else:
            check_shape(part, value, like.shape, "[*B, ...]")
        if jnp.issubdtype(like.dtype, jnp.floating):
            check_floating(part, value)
        elif jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{part} must be {like.dtype}, as the carry is, got {value.dtype}")
        value = value if value.dtype == like.dtype else value.astype(like.dtype)
        return jnp.broadcast_to(value, like.shape)

    return jax.tree_util.tree_map_with_path(leaf, fresh, carry)
