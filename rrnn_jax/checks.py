"""Errors that name the argument, the expected value and the received one."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer

from rrnn_jax.typing import Array, Carry, Initializer


def check_positive(least: int = 1, **sizes: Any) -> None:
    """Raises unless every size is an integer of at least `least`."""
    for name, size in sizes.items():
        try:
            operator.index(size)
        except TypeError:
            raise TypeError(
                f"{name} must be an integer, got {size!r} of type {type(size).__name__}"
            ) from None
        if isinstance(size, bool | Array):  # An array would be traced in a transformed module.
            raise TypeError(f"{name} must be an integer, got {size!r}")
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")


def check_between(name: str, value: Any, low: int, high: int) -> None:
    """Raises unless `value` is an integer from `low` to `high`."""
    check_positive(**{name: value})
    if not low <= int(value) <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if not isinstance(value, str | None) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_shape(name: str, array: Array, shape: tuple[int, ...], layout: str) -> None:
    """Raises unless `array` has exactly `shape`; `layout` explains its axes."""
    import chex  # Imported here, because it imports testing libraries, which is slow.

    try:
        chex.assert_shape(array, tuple(shape))
    except AssertionError:
        raise ValueError(
            f"{name} must have shape {layout} = {tuple(shape)}, got {tuple(array.shape)}"
        ) from None


def check_bool(name: str, array: Any, layout: str) -> None:
    """Raises unless `array` has dtype bool; `layout` explains its axes."""
    if getattr(array, "dtype", None) != jnp.bool_:
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(
            f"{name} must be a bool array {layout}, got {kind}; convert numbers by "
            f"jnp.asarray({name}) != 0"
        )


def as_int32(name: str, array: Any, layout: str) -> Array:
    """An integer array as int32, because shorter ones may overflow; raises for other dtypes."""
    kind = getattr(array, "dtype", type(array).__name__)
    if not hasattr(array, "dtype") or not jnp.issubdtype(kind, jnp.integer):
        raise TypeError(f"{name} must be an integer array {layout}, got {kind}")
    return jnp.asarray(array).astype(jnp.int32)


def check_floating(name: str, array: Array) -> None:
    """Raises unless `array` has a floating-point dtype."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating-point, got {array.dtype}")


def check_real(name: str, array: Any) -> None:
    """Raises unless `array` has a real dtype."""
    if not any(jnp.issubdtype(array.dtype, x) for x in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"{name} must be real, got {array.dtype}")


def check_like(name: str, cell: nn.RNNCellBase, carry: Carry, expected: Carry) -> None:
    """Raises unless structure, shapes and kinds of dtypes are the expected ones."""
    if jax.tree.structure(carry) != jax.tree.structure(expected):
        raise TypeError(
            f"{name} must have the structure that {type(cell).__name__}.initialize_carry makes, "
            f"{jax.tree.structure(expected)}, got {jax.tree.structure(carry)}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(carry)
    for (path, leaf), like in zip(leaves, jax.tree.leaves(expected), strict=True):
        part = name + jax.tree_util.keystr(path)
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"{part} must be an array, got {type(leaf).__name__}")
        check_shape(part, leaf, like.shape, "[*B, ...]")
        if jnp.issubdtype(like.dtype, jnp.floating):
            check_floating(part, leaf)


def check_inputs(inputs: Any, cell: nn.Module) -> None:
    """Raises unless `inputs` are real, with as many features as an `input_projection`."""
    if not hasattr(inputs, "shape"):
        raise TypeError(f"inputs must be one array, got {type(inputs).__name__}")
    check_real("inputs", inputs)
    params = nn.meta.unbox(cell.get_variable("params", "input_projection") or {})
    kernel = params.get("kernel")
    # The kernels of all steps, if each has its own, have another axis.
    if getattr(kernel, "ndim", 0) == 2 and inputs.shape[-1:] != kernel.shape[:1]:
        raise ValueError(
            f"inputs must have {kernel.shape[0]} features, as the parameters do, "
            f"got shape {tuple(inputs.shape)}"
        )


def check_float_dtype(**dtypes: Any) -> None:
    """Raises unless every dtype is None or a floating-point dtype."""
    for name, dtype in dtypes.items():
        try:
            floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            raise TypeError(f"{name} must be a floating-point dtype, got {dtype!r}")


def check_cell(cell: Any) -> None:
    """Raises unless `cell` is a cell: an instance, not its class, a layer or parameters."""
    if not isinstance(cell, nn.RNNCellBase):
        got = repr(cell) if isinstance(cell, type) else type(cell).__name__
        raise TypeError(f"cell must be an instance of flax.linen.RNNCellBase, got {got}")


def check_config(config: Any, of: type) -> None:
    """Raises unless `config` is one of a task's own, not its class."""
    if not isinstance(config, of):
        raise TypeError(f"config must be an instance of {of.__module__}.{of.__name__}, "
                        f"got {config!r}")  # fmt: skip


def check_flag(**flags: Any) -> None:
    """Raises unless every flag is a bool."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {flag!r}")


def check_fields(module: nn.Module, of: type) -> None:
    """Raises unless attributes of class `of` are bools, functions and dtypes as annotated."""
    for field in dataclasses.fields(of):  # A subclass may have others, not set yet.
        value = getattr(module, field.name)
        if field.type is bool:
            check_flag(**{field.name: value})
        if field.name in ("dtype", "param_dtype"):
            check_float_dtype(**{field.name: value})
        if field.type == Initializer and not callable(value):
            raise TypeError(f"{field.name} must be an initializer, got {value!r}")
        if field.name == "dot_general" and not (value is None or callable(value)):
            raise TypeError(f"dot_general must be a function or None, got {value!r}")


def check_tuple(example: str, **values: Any) -> None:
    """Raises unless every value is a tuple, such as `example`, or another sequence."""
    for name, value in values.items():
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(f"{name} must be a tuple such as {example}, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether a value is a number, or a scalar array."""
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


def check_number(**values: Any) -> None:
    """Raises unless every value is a number, or a scalar array."""
    for name, value in values.items():
        if not is_number(value):
            raise TypeError(f"{name} must be a number, got {value!r}")


def check_rate(**rates: float) -> None:
    """Raises unless every rate lies in [0, 1)."""
    check_number(**rates)
    for name, rate in rates.items():
        if isinstance(rate, Tracer):
            raise TypeError(f"{name} must be a number known when tracing, got {rate}")
        if not 0 <= rate < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {rate}")
