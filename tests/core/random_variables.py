"""Random weights for any module, biases and scales included, without compiling its initialisers."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from rrnn_jax import RNN


def random_variables(module: nn.Module, *args: Any, seed: int = 0) -> Any:
    """Variables of the shapes that ``module.init(key, *args)`` makes, drawn from N(0, 1/4)."""
    leaves, tree = jax.tree.flatten(args)
    leaves = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    found = _shapes if _is_hashable(module) else _shapes.__wrapped__
    shapes = found(module, tree, leaves, jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: normal(rng, leaf.shape, leaf.dtype, 0.5), shapes)


def normal(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = jnp.float32, scale: float = 1.0
) -> jax.Array:
    """Random normal numbers made by NumPy."""
    return jnp.asarray(scale * rng.normal(size=shape), dtype)


@lru_cache(maxsize=1000)
def _shapes(module: nn.Module, tree: Any, leaves: tuple, x64: Any) -> Any:
    """Those of ``module.init``, once for all tests; x64: what they depend on, too."""
    args = jax.tree.unflatten(tree, leaves)
    if type(module) is RNN and _shares_params(module):  # The cell's, for a step: no loop.
        (x,) = args
        time = 0 if module.time_major else len(x.shape) - module.cell.num_feature_axes - 1
        step = jax.ShapeDtypeStruct(x.shape[:time] + x.shape[time + 1 :], x.dtype)
        return {name: {"cell": value} for name, value in _of_cell(module.cell, step, x64).items()}
    return jax.eval_shape(module.init, jax.random.key(0), *args)


@lru_cache(maxsize=1000)
def _of_cell(cell: Any, step: Any, x64: Any) -> Any:
    def init(key: jax.Array) -> Any:
        return cell.init(
            key, cell.initialize_carry(key, step.shape), jnp.zeros(step.shape, step.dtype)
        )

    return jax.eval_shape(init, jax.random.key(0))


def _shares_params(rnn: RNN) -> bool:
    lifted = rnn.variable_axes or rnn.variable_carry or rnn.variable_broadcast != "params"
    return not lifted and not rnn.split_rngs.get("params", False)


def _is_hashable(module: nn.Module) -> bool:
    try:
        hash(module)
    except TypeError:  # A field is a list.
        return False
    return True
