"""What the training loop needs to know of a task and a model: a few pure functions."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any
Batch = Any
Level = Any


class Mean(NamedTuple):
    """A mean that can be pooled: the total and the count are summed over batches apart.

    >>> pooled = Mean.of(jnp.array([1.0, 0.0])) + Mean.of(jnp.array([1.0, 1.0, 1.0, 0.0]))
    >>> round(float(pooled.value()), 4)
    0.6667
    """

    total: jax.Array
    count: jax.Array

    @staticmethod
    def of(values: jax.Array, weights: jax.Array | None = None) -> "Mean":
        """The mean of `values`, weighted by `weights` (bool or float, same shape)."""
        values = values.astype(jnp.float32)
        if weights is None:
            return Mean(jnp.sum(values), jnp.float32(values.size))
        weights = weights.astype(jnp.float32)
        # Where, not times: what stands under a zero weight may be NaN.
        return Mean(jnp.sum(jnp.where(weights > 0, values, 0.0) * weights), jnp.sum(weights))

    def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> jax.Array:
        """The mean; 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1e-9)


Metrics = Mapping[str, Mean]
Loss = Callable[[Params, Batch], tuple[jax.Array, Metrics]]


def keep_level(level: Level, metrics: Metrics) -> Level:
    """No curriculum: the level stays."""
    del metrics
    return level


def no_metrics(level: Level) -> Metrics:
    """Nothing to log of a level."""
    del level
    return {}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task and a model, as pure functions.

    Attributes:
      init: ``init(key) -> params``.
      sample: ``sample(key, level, batch_size) -> batch``; every leaf begins with the batch axis.
      loss: ``loss(params, batch) -> (loss, metrics)``; the metrics must hold ``accuracy``.
      sample_eval: ``sample_eval(key, batch_size) -> batch``, of what the model is judged by.
      trivial_accuracy: the score of not learning, drawn into plots.
      initial_level: the state of a curriculum, a pytree of arrays (default: none).
      level_metrics: ``level_metrics(level) -> metrics``: what to log of a level (default: nothing).
      next_level: ``next_level(level, metrics) -> level``, after every step.
      eval_loss: as `loss`, for evaluation (default: `loss`).
      show: ``show(params) -> text``: a few examples with the model's answers, printed and kept in
        ``samples.txt`` at every evaluation, with the parameters of the first seed (default: none).
        It runs on the host, and jits what it runs on the device.
    """

    init: Callable[[jax.Array], Params]
    sample: Callable[[jax.Array, Level, int], Batch]
    loss: Loss
    sample_eval: Callable[[jax.Array, int], Batch]
    trivial_accuracy: float
    initial_level: Level = ()
    level_metrics: Callable[[Level], Metrics] = no_metrics
    next_level: Callable[[Level, Metrics], Level] = keep_level
    eval_loss: Loss | None = None
    show: Callable[[Params], str] | None = None
