"""Gradient steps on a mean loss over a batch, whole or in several passes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.common.parallel import split_rows
from experiments.common.problem import Mean, Metrics, Params

_LOSS_KEY = 2**31 - 1
"""Folded into an update's key for its loss; not used for samples."""

RowLoss = Callable[..., tuple[jax.Array, tuple[Any, Metrics]]]
"""``loss(params, rows, key) -> (loss, (new rows, metrics))``: a mean over rows of a batch."""


def loss_key(key: jax.Array) -> jax.Array:
    """The key of the loss (dropout) of the update whose batch was drawn from `key`."""
    return jax.random.fold_in(key, _LOSS_KEY)


def mean_gradient(
    loss: RowLoss, params: Params, rows: Any, key: jax.Array, passes: int = 1
) -> tuple[Params, Any, Metrics]:
    """The gradient of the mean loss of a batch.

    Args:
      loss: see `RowLoss`.
      params: the parameters.
      rows: a pytree whose leaves begin with the batch axis, ``[B, ...]``: the batch, and carries.
      key: key of the loss; each pass gets a different one.
      passes: number of equal parts in which the batch is processed one after the other, to save
        memory.

    Returns:
      The gradient, the new rows that the loss returns, and the metrics with ``loss`` among them.
    """

    def gradient(rows: Any, key: jax.Array) -> tuple[tuple[Params, Metrics], Any]:
        (value, (new, metrics)), slope = jax.value_and_grad(loss, has_aux=True)(params, rows, key)
        return (slope, {"loss": Mean.of(value), **metrics}), new

    if passes == 1:
        (slope, metrics), new = gradient(rows, key)
        return slope, new, metrics
    parts = jax.tree.map(lambda x: x.reshape(passes, x.shape[0] // passes, *x.shape[1:]), rows)
    parts = split_rows(parts, axis=1)

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        rows, index = part
        found, new = gradient(rows, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, found), new

    indices = jnp.arange(passes, dtype=jnp.int32)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts), key)[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, metrics), new = jax.lax.scan(add, zeros, (parts, indices))
    new = jax.tree.map(lambda x: x.reshape(passes * x.shape[1], *x.shape[2:]), new)
    return jax.tree.map(lambda g: g / jnp.asarray(passes, g.dtype), total), new, metrics


def gradient_step(
    optimizer: optax.GradientTransformation,
    loss: RowLoss,
    state: tuple[Params, Any],
    rows: Any,
    key: jax.Array,
    passes: int,
) -> tuple[Params, Any, Any, Metrics]:
    """One update of parameters with the gradient of a batch.

    Args:
      optimizer: the optimiser.
      loss: see `RowLoss`.
      state: parameters, and the optimiser's state.
      rows: as in `mean_gradient`; divided over devices here.
      key: the key of the update; the loss gets another one.
      passes: as in `mean_gradient`.

    Returns:
      Parameters, the optimiser's state, new rows, and the metrics with ``loss`` and
      ``gradient_norm`` among them.
    """
    params, opt_state = state
    gradient, new, metrics = mean_gradient(loss, params, split_rows(rows), loss_key(key), passes)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    norm = Mean.of(optax.tree.norm(gradient))
    params = optax.apply_updates(params, updates)
    return params, opt_state, new, {**metrics, "gradient_norm": norm}
