"""Problems with a loss on batches from a key, from arrays on the device, or from the host.

>>> import jax.numpy as jnp
>>> def loss(params, x):
...     return jnp.mean((x - params) ** 2), {"right": Mean.of(jnp.abs(x - params) < 1)}
>>> problem = supervised(
...     TrainConfig(batch_size=8, eval_samples=16),
...     init=lambda key: jnp.zeros(()),
...     sample=lambda key, level, rows: jax.random.normal(key, (rows,)),
...     sample_eval=lambda key, rows: jax.random.normal(key, (rows,)),
...     loss=loss,
...     score=Score("right", "max"),
... )
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from experiments.common.gradients import gradient_step
from experiments.common.optimizers import averaged, make_optimizer
from experiments.common.parallel import split_rows
from experiments.common.problem import (
    Batch,
    Evaluation,
    Feed,
    Mean,
    Metrics,
    Params,
    Problem,
    Score,
)
from experiments.common.train_config import TrainConfig

Level = Any
Loss = Callable[..., tuple[jax.Array, Metrics]]
"""``loss(params, batch) -> (loss, metrics)``; with dropout ``loss(params, batch, key)``."""


class Curriculum(NamedTuple):
    """Training data that depend on progress; each seed has its own level.

    Attributes:
      level: the first level, a pytree of arrays.
      advance: ``advance(level, metrics) -> level``, after every update.
      metrics: ``metrics(level) -> metrics`` of a level, to log (default: none).
    """

    level: Level = ()
    advance: Callable[[Level, Metrics], Level] = lambda level, metrics: level
    metrics: Callable[[Level], Metrics] = lambda level: {}


FLAT = Curriculum()
"""No curriculum: the level is always ``()``."""


class State(NamedTuple):
    """The state of a supervised problem."""

    params: Params
    opt_state: Any
    level: Level


def supervised(
    config: TrainConfig,
    *,
    init: Callable[[jax.Array], Params],
    loss: Loss,
    score: Score,
    sample: Callable[..., Batch] | None = None,
    feed: Feed | None = None,
    sample_eval: Callable[..., Batch] | None = None,
    eval_feeds: Mapping[str, tuple[Feed, int]] | None = None,
    eval_loss: Loss | None = None,
    needs_key: bool = False,
    curriculum: Curriculum = FLAT,
    data: Any = None,
    show: Callable[[Params], str] | None = None,
) -> Problem:
    """A problem whose update is a gradient step on the loss of one batch.

    Args:
      config: the training config.
      init: ``init(key) -> params``.
      loss: ``loss(params, batch) -> (loss, metrics)``, means over the batch.
      score: a metric of the loss.
      sample: ``sample(key, level, batch_size) -> batch``; every leaf begins with the batch axis.
        With `data`: ``sample(key, level, batch_size, data)``.
      feed: instead of `sample`, batches from the host, ``[num_steps, batch_size, ...]``.
      sample_eval: ``sample_eval(key, batch_size) -> batch`` for evaluations "valid" and, with other
        keys, "test". With `data`: ``sample_eval(key, batch_size, data)``.
      eval_feeds: instead of it, batches from the host by name: a feed and its number of batches.
      eval_loss: as `loss`, for evaluations, without a key (default: `loss`).
      needs_key: whether the loss has a key as its third argument, for dropout (then `eval_loss` is
        required).
      curriculum: the level of `sample`.
      data: arrays that stay on the device, for `sample` and `sample_eval`.
      show: ``show(params) -> text``, see `Problem`.

    Returns:
      The problem; its state is a `State`.

    Raises:
      ValueError: not exactly one of `sample` and `feed`, or of their counterparts, is given, or
        `eval_loss` is missing.
    """
    _check_one(sample=sample, feed=feed)
    _check_one(sample_eval=sample_eval, eval_feeds=eval_feeds)
    if needs_key and eval_loss is None:
        raise ValueError("eval_loss must be given with needs_key")
    optimizer = make_optimizer(config)

    def start(key: jax.Array, *data: Any) -> State:
        params = init(key)
        return State(params, optimizer.init(params), curriculum.level)

    return Problem(
        init=start,
        update=_update(config, optimizer, loss, sample, needs_key, curriculum),
        evaluations=_evaluations(config, eval_loss or loss, sample_eval, eval_feeds),
        score=score,
        feed=feed,
        data=data,
        show=None if show is None else lambda state: show(state.params),
    )


def _check_one(**given: Any) -> None:
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"exactly one of {' and '.join(given)} must be given")


def _update(
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    sample: Callable[..., Batch] | None,
    needs_key: bool,
    curriculum: Curriculum,
) -> Callable[..., tuple[State, Metrics]]:
    def of_rows(params: Params, batch: Batch, key: jax.Array) -> tuple:
        value, metrics = loss(params, batch, key) if needs_key else loss(params, batch)
        return value, ((), metrics)

    def update(state: State, key: jax.Array, batch: Batch, *data: Any) -> tuple[State, Metrics]:
        level = state.level
        if sample is not None:
            batch = sample(key, level, config.batch_size, *data)
        params, opt_state, _, metrics = gradient_step(
            optimizer, of_rows, state[:2], batch, key, config.micro_batches
        )
        metrics = {**metrics, **curriculum.metrics(level)}
        return State(params, opt_state, curriculum.advance(level, metrics)), metrics

    return update


def _evaluations(
    config: TrainConfig,
    judge: Loss,
    sample_eval: Callable[..., Batch] | None,
    eval_feeds: Mapping[str, tuple[Feed, int]] | None,
) -> dict[str, Evaluation]:
    rows = min(config.batch_size, config.eval_samples)

    def evaluate(state: State, carry: tuple, key: jax.Array, batch: Batch, *data: Any) -> tuple:
        if sample_eval is not None:
            batch = sample_eval(key, rows, *data)
        batch = split_rows(batch)

        def judged(params: Params) -> dict[str, Mean]:
            value, metrics = judge(params, batch)
            return {"loss": Mean.of(value), **metrics}

        return carry, with_average(judged, state.params, state.opt_state)

    if eval_feeds is None:
        once = Evaluation(evaluate, -(-config.eval_samples // rows))
        return {"valid": once, "test": once}
    return {name: Evaluation(evaluate, steps, feed=f) for name, (f, steps) in eval_feeds.items()}


def with_average(
    judge: Callable[[Params], Mapping[str, Mean]], params: Params, opt_state: Any
) -> dict[str, Mean]:
    """The metrics of the parameters and, with ``average_`` before the names, of their average.

    Args:
      judge: ``judge(params) -> metrics``.
      params: the parameters.
      opt_state: state of `make_optimizer`; without an average there are no such metrics.

    Returns:
      All metrics.
    """
    metrics = dict(judge(params))
    average = averaged(opt_state)
    if average is not None:
        metrics |= {f"average_{name}": mean for name, mean in judge(average).items()}
    return metrics
