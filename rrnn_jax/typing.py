"""Axis letters and array aliases used throughout the package.

======  ==========================================================
letter  meaning
======  ==========================================================
``B``   batch (``*B``: any number of batch axes, none included)
``T``   time
``S``   memory slots
``R``   rows that one input adds to the attention (1 for vectors)
``H``   attention heads
``D``   head size (width of a head's values)
``K``   key size (width of a head's queries and keys)
``F``   memory width, ``F = H * D``
``I``   input features
``N``   objects of a task
``V``   vocabulary
======  ==========================================================
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

Array: TypeAlias = jax.Array
Dtype: TypeAlias = Any
"""Anything that `jnp.dtype` accepts, or ``None`` to follow inputs and parameters."""
Initializer: TypeAlias = Callable[..., Array]
"""``initializer(key, shape, dtype) -> Array``, as in `jax.nn.initializers`."""
Memory: TypeAlias = Array
"""``[*B, S, F]``."""
Carry: TypeAlias = Any
Remat: TypeAlias = Literal["none", "full", "save_products", "chunked"]
Implementation: TypeAlias = Literal["auto", "scan", "hoisted", "fused", "cuda"]
DotGeneral: TypeAlias = Callable[..., Array]
"""A product like `jax.lax.dot_general`, for example a quantised one."""


def accumulation_dtype(*dtypes: Dtype) -> Dtype:
    """The widest of `dtypes`, at least float32: the dtype of norms, softmax and gates.

    >>> accumulation_dtype(jnp.bfloat16)
    dtype('float32')

    Args:
      *dtypes: floating-point dtypes; ``None`` is skipped.

    Returns:
      float32, or float64 if one of them is and ``jax_enable_x64`` is set.
    """
    # Not `jnp.promote_types`, which cannot widen under strict promotion.
    is_double = any(dtype is not None and jnp.dtype(dtype) == jnp.float64 for dtype in dtypes)
    wide = jnp.float64 if is_double else jnp.float32
    return jnp.dtype(jax.dtypes.canonicalize_dtype(wide))


def widest(first: Dtype, *others: Dtype) -> Dtype:
    """The floating-point dtype to which all given ones promote; integers follow the others.

    The result of `jax.numpy.promote_types`, whatever the promotion mode.

    >>> widest(jnp.bfloat16, jnp.float32), widest(jnp.bfloat16, jnp.float16)
    (dtype('float32'), dtype('float32'))

    Args:
      first: a dtype.
      *others: more dtypes.

    Returns:
      One of them, or float32 if none can represent the others; never float64 without
      ``jax_enable_x64``.
    """
    floating = [x for x in (first, *others) if jnp.issubdtype(x, jnp.floating)]
    found = [jnp.dtype(jax.dtypes.canonicalize_dtype(x)) for x in floating]
    if not found:
        return jnp.dtype(jnp.float32)
    return found[0] if len(set(found)) == 1 else accumulation_dtype(*found)
