"""Devices and meshes: the sharding of arrays, and giving one array the sharding of another."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rrnn_jax.typing import Array


def platform() -> str:
    """The platform on which the traced program is likely to run: "cpu", "gpu" or "tpu"."""
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    return jax.default_backend() if device is None else getattr(device, "platform", device)


def has_explicit_axes(array: Array) -> bool:
    """Whether an array is on a mesh with explicit axes, which are part of its type."""
    mesh = getattr(getattr(jax.typeof(array), "sharding", None), "mesh", None)
    return AxisType.Explicit in getattr(mesh, "axis_types", ())


def varying_axes(*trees: Any) -> frozenset[str]:
    """The mesh axes over which any of the arrays varies within `jax.shard_map`."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(trees):
        kind = jax.typeof(leaf)
        # Later versions of JAX have a separate type for it.
        found = getattr(getattr(kind, "manual_axis_type", None), "varying", None)
        axes |= frozenset(found or getattr(kind, "vma", None) or ())
    return axes


def checks_varying() -> bool:
    """Whether this is traced within a `jax.shard_map` that checks which values vary."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return False
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    manual = [name for name, kind in kinds if kind == AxisType.Manual]
    # With the check an index varies, whatever the inputs do.
    return any(varying_axes(jax.lax.axis_index(name)) for name in manual)


def varying_over(axes: frozenset[str], tree: Any) -> Any:
    """The arrays, varying over these mesh axes; gradients are summed over them once, here."""

    def cast(x: Array) -> Array:
        missing = tuple(sorted(axes - varying_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree


def beside(x: Array, other: Array, axes: Sequence[int], varying: frozenset = frozenset()) -> Array:
    """Gives an array the sharding and varying mesh axes of another.

    This concerns only the mesh axes in an array's type: explicit axes, and those over which a value
    varies within `jax.shard_map`. Otherwise the array does not change.

    Args:
      x: an array whose first axes are those `axes` of `other`.
      other: the array to follow.
      axes: axes of `other`.
      varying: further mesh axes over which the result varies.

    Returns:
      `x` with the new sharding; its other axes keep theirs.
    """
    x = varying_over(varying_axes(other) | varying, x)
    sharding = _explicit_sharding(other)
    if sharding is None:
        return x
    own = _explicit_sharding(x)
    spec = _axes_of(own, x) if own is not None else [None] * x.ndim
    used = {name for entry in spec for name in _names(entry)}
    wanted_of = _axes_of(sharding, other)
    for i, axis in enumerate(axes):
        wanted = wanted_of[axis]
        if spec[i] is None and not used & set(_names(wanted)):
            spec[i] = wanted
    if own is not None and _axes_of(own, x) == spec:
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def _explicit_sharding(x: Array) -> NamedSharding | None:
    """The sharding of an array on a mesh with explicit axes; None if it has none."""
    if not has_explicit_axes(x):
        return None
    # Outside `jax.set_mesh` only the array itself knows its devices.
    own = None if isinstance(x, Tracer) else x.sharding
    return own if isinstance(own, NamedSharding) else jax.typeof(x).sharding


def _axes_of(sharding: NamedSharding, x: Array) -> list[Any]:
    """The entry of each axis of an array; a `PartitionSpec` may omit the last ones."""
    return [*sharding.spec, *[None] * (x.ndim - len(sharding.spec))]


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def product_of(sizes: tuple[Any, ...]) -> int | None:
    """The product of sizes; None if one of them is symbolic (`jax.export`)."""
    product = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        product *= size
    return product
