"""Random weights for any module, biases and scales included, without compiling its initialisers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def random_variables(module: nn.Module, *args: Any, seed: int = 0) -> Any:
    """Variables of the shapes that ``module.init(key, *args)`` makes, drawn from N(0, 1/4)."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: normal(rng, leaf.shape, leaf.dtype, 0.5), shapes)


def normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = jnp.float32, scale: float = 1.0
) -> jax.Array:
    """Random normal numbers made by NumPy."""
    return jnp.asarray(scale * rng.normal(size=shape), dtype)
