"""Gradients that are summed up over time: in a wide dtype, whatever that of what they belong to.

In bfloat16 a sum of some hundred terms stands still: what is added is less than half of its last
digit.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.typing import accumulation_dtype


def zeros_for(arrays: Any) -> Any:
    """Zeros to sum up the gradients of `arrays`, any pytree."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, accumulation_dtype(x.dtype)), arrays)


def add(sums: Any, terms: Any) -> Any:
    """The sums with one more term each, in their own dtypes."""
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, terms)


def cast_like(sums: Any, arrays: Any) -> Any:
    """The sums in the dtypes of the arrays that they are gradients of."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), sums, arrays)
