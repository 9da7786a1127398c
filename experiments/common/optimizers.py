"""Optimisers by name, with schedule, clipping, weight decay and an average of the weights."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.problem import Params
from experiments.common.train_config import TrainConfig


def make_schedule(config: TrainConfig, peak: float | None = None) -> optax.Schedule:
    """The learning rate of each update: warm-up, a constant part, then the schedule.

    >>> config = TrainConfig(steps=10, warmup_steps=2, schedule="cosine")
    >>> [round(float(make_schedule(config)(step)), 5) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0]

    Args:
      config: how to train.
      peak: the peak rate (default: `config.learning_rate`).

    Returns:
      A function of the update's number.
    """
    peak = config.learning_rate if peak is None else peak
    after = config.steps - config.warmup_steps
    held = round(config.hold * after)
    parts: list[optax.Schedule] = []
    if config.warmup_steps:
        parts.append(optax.linear_schedule(0.0, peak, config.warmup_steps))
    if held and config.schedule != "constant":
        parts.append(optax.constant_schedule(peak))
    if config.schedule == "cosine":
        parts.append(optax.cosine_decay_schedule(peak, max(after - held, 1)))
    elif config.schedule == "linear":
        parts.append(optax.linear_schedule(peak, 0.0, max(after - held, 1)))
    else:
        parts.append(optax.constant_schedule(peak))
    if len(parts) == 1:
        return parts[0]
    ends = [config.warmup_steps] if config.warmup_steps else []
    if len(parts) > len(ends) + 1:
        ends.append(config.warmup_steps + held)
    return optax.join_schedules(parts, ends)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """The optimiser of a config; its updates are added to the parameters.

    ``muon`` (`optax.contrib.muon`) is for matrices; all other parameters, and the word tables of an
    embedding or an adaptive softmax, use Adam with `config.adam_learning_rate`. Weight decay is
    decoupled as in AdamW, multiplied by the learning rate; it excludes biases, scales of norms and
    parameters with fewer than two axes, and with ``muon`` all that use Adam.
    """
    chain = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    chain.append(_by_name(config))
    if config.average_decay is not None:
        chain.append(average_weights(config.average_decay))
    return chain[0] if len(chain) == 1 else optax.chain(*chain)


def _by_name(config: TrainConfig) -> optax.GradientTransformation:
    rate = make_schedule(config)
    b1 = 0.9 if config.beta1 is None else config.beta1
    b2 = 0.999 if config.beta2 is None else config.beta2
    eps = 1e-8 if config.epsilon is None else config.epsilon
    if config.optimizer == "adam":
        return optax.adam(rate, b1, b2, eps)
    if config.optimizer == "adamw":
        decay = config.weight_decay
        return optax.adamw(rate, b1, b2, eps, weight_decay=decay, mask=decaying)
    if config.optimizer == "rmsprop":
        b2 = 0.9 if config.beta2 is None else config.beta2
        return optax.rmsprop(rate, b2, eps, momentum=config.beta1)
    assert config.optimizer == "muon", config.optimizer
    return optax.contrib.muon(
        rate,
        beta=0.95 if config.beta1 is None else config.beta1,
        eps=eps,
        weight_decay=config.weight_decay,
        weight_decay_mask=decaying,
        adam_b1=b1,
        adam_b2=b2,
        adam_learning_rate=make_schedule(config, config.adam_learning_rate),
        muon_weight_dimension_numbers=_matrices,
    )


def decaying(params: Params) -> Any:
    """Which parameters have weight decay: those with two or more axes except biases and scales.

    >>> decaying({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and _name(path) not in ("bias", "scale"), params
    )


def _matrices(params: Params) -> Any:
    """The matrices for Muon; None for other parameters, including tables of words."""

    def numbers(path: Any, leaf: Any) -> Any:
        is_table = re.search(r"embedding|^(head|entries|tail_\d+)$", _name(path))
        return optax.contrib.MuonDimensionNumbers() if leaf.ndim == 2 and not is_table else None

    return jax.tree_util.tree_map_with_path(numbers, params)


def _name(path: Any) -> str:
    return str(getattr(path[-1], "key", getattr(path[-1], "name", ""))) if path else ""


class AverageState(NamedTuple):
    """The average of the parameters, and its number of updates."""

    count: jax.Array
    average: Params


def average_weights(decay: float) -> optax.GradientTransformation:
    r"""An exponential average of the parameters; updates pass through unchanged.

    .. math:: a_t = d_t a_{t-1} + (1 - d_t) \theta_t, \quad d_t = \min(d, (1 + t) / (10 + t))

    so that the first parameters are soon forgotten. Use it as the last transformation of a chain.
    """

    def init(params: Params) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, params))

    def update(updates: Any, state: Any, params: Params | None = None) -> tuple:
        assert params is not None
        count = state.count + 1
        limit = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda a, p: (a + (1.0 - limit) * (p - a)).astype(a.dtype), state.average, new
        )
        return updates, AverageState(count, average)

    return optax.GradientTransformation(init, update)


def averaged(opt_state: Any) -> Params | None:
    """The average in an optimiser's state; None if there is none."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, AverageState))
    found = [leaf for leaf in leaves if isinstance(leaf, AverageState)]
    return found[0].average if found else None
