"""What the fast paths need to know of devices and meshes."""

from typing import Any

import jax

from rrnn_jax.typing import Array


def platform() -> str:
    """The platform that what is traced now is likely to run on."""
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    return jax.default_backend() if device is None else getattr(device, "platform", device)


def has_explicit_axes(array: Array) -> bool:
    """Whether an array lies on a mesh with axes that are explicit: parts of arrays' types."""
    mesh = getattr(getattr(jax.typeof(array), "sharding", None), "mesh", None)
    return jax.sharding.AxisType.Explicit in getattr(mesh, "axis_types", ())


def varying_axes(*trees: Any) -> frozenset[str]:
    """The mesh axes over which any of the arrays varies within `jax.shard_map`."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(trees):
        kind = jax.typeof(leaf)
        # Later versions of JAX have it in a type of its own.
        found = getattr(getattr(kind, "manual_axis_type", None), "varying", None)
        axes |= frozenset(found or getattr(kind, "vma", None) or ())
    return axes


def varying_over(axes: frozenset[str], tree: Any) -> Any:
    """The arrays, varying over these mesh axes; gradients are summed up over them once, here."""

    def cast(x: Array) -> Array:
        missing = tuple(sorted(axes - varying_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree


def product_of(sizes: tuple[Any, ...]) -> int | None:
    """The product of sizes; None where `jax.export` does not know one of them."""
    product = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        product *= size
    return product
