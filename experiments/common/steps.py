"""The device's part of training: many updates in one call, for several seeds at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.problem import Level, Mean, Metrics, Params, Problem
from experiments.common.train_config import TrainConfig, make_optimizer


class TrainState(NamedTuple):
    """All that changes in training. Every leaf but `step` has a leading axis of seeds.

    Random numbers are functions of seed and step, so there is no random state beside these.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    level: Level


class Programs(NamedTuple):
    """The functions that run on the device, jitted.

    Attributes:
      init: ``init() -> TrainState``.
      train_chunk: ``train_chunk(state, num_steps) -> (state, metrics)`` with `num_steps` static
        and the state donated; the metrics are means over the chunk, ``[num_seeds]`` each, with
        ``loss`` and ``gradient_norm`` among them.
      evaluate: ``evaluate(params) -> metrics``, ``[num_seeds]`` each.
      show: ``show(params) -> text`` of the first seed, on the host; None if the problem has none.
    """

    init: Callable[[], TrainState]
    train_chunk: Any
    evaluate: Any
    show: Callable[[Params], str] | None


def make_programs(problem: Problem, config: TrainConfig) -> Programs:
    """Builds the device's functions of a problem."""
    optimizer = make_optimizer(config)
    seeds = jnp.asarray(config.seeds, jnp.int32)

    def init() -> TrainState:
        def one(seed: jax.Array) -> tuple:
            params = problem.init(_key(seed, "init"))
            return params, optimizer.init(params), problem.initial_level

        return TrainState(jnp.int32(0), *_over_seeds(one)(seeds))

    def train_chunk(state: TrainState, num_steps: int) -> tuple[TrainState, dict[str, jax.Array]]:
        def one(seed: jax.Array, params: Params, opt_state: Any, level: Level) -> tuple:
            key = _key(seed, "train")

            def update(carry: tuple, step: jax.Array) -> tuple[tuple, Metrics]:
                params, opt_state, level = carry
                batch = problem.sample(jax.random.fold_in(key, step), level, config.batch_size)
                gradient, metrics = _gradient(problem, config, params, batch)
                updates, opt_state = optimizer.update(gradient, opt_state, params)
                params = optax.apply_updates(params, updates)
                metrics = {**metrics, **problem.level_metrics(level)}
                level = problem.next_level(level, metrics)
                norm = Mean.of(optax.tree.norm(gradient))
                return (params, opt_state, level), {**metrics, "gradient_norm": norm}

            steps = state.step + jnp.arange(num_steps, dtype=jnp.int32)
            carry, metrics = jax.lax.scan(update, (params, opt_state, level), steps)
            return carry, _pool(metrics)

        carry, metrics = _over_seeds(one)(seeds, state.params, state.opt_state, state.level)
        return TrainState(state.step + num_steps, *carry), metrics

    eval_loss = problem.eval_loss or problem.loss

    def evaluate(params: Params) -> dict[str, jax.Array]:
        rows = min(config.batch_size, config.eval_samples)
        num_batches = -(-config.eval_samples // rows)

        def one(seed: jax.Array, params: Params) -> dict[str, jax.Array]:
            key = _key(seed, "evaluate")

            def batch_metrics(index: jax.Array) -> Metrics:
                batch = problem.sample_eval(jax.random.fold_in(key, index), rows)
                loss, metrics = eval_loss(params, batch)
                return {"loss": Mean.of(loss), **metrics}

            return _pool(jax.lax.map(batch_metrics, jnp.arange(num_batches, dtype=jnp.int32)))

        return _over_seeds(one)(seeds, params)

    def show(params: Params) -> str:
        assert problem.show is not None
        return problem.show(jax.tree.map(lambda x: x[0], params))

    return Programs(
        jax.jit(init),
        jax.jit(train_chunk, static_argnums=1, donate_argnums=0),
        jax.jit(evaluate),
        None if problem.show is None else show,
    )


def _gradient(
    problem: Problem, config: TrainConfig, params: Params, batch: Any
) -> tuple[Params, Metrics]:
    """The gradient of the mean loss, over micro-batches if asked for."""

    def gradient(batch: Any) -> tuple[Params, Metrics]:
        (loss, metrics), gradient = jax.value_and_grad(problem.loss, has_aux=True)(params, batch)
        return gradient, {"loss": Mean.of(loss), **metrics}

    rows = config.micro_batch_size
    if rows is None or rows == config.batch_size:
        return gradient(batch)
    passes = config.batch_size // rows
    batches = jax.tree.map(lambda x: x.reshape(passes, rows, *x.shape[1:]), batch)

    def add(total: tuple, batch: Any) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, gradient(batch)), None

    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], batches))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, metrics), _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda g: g / jnp.asarray(passes, g.dtype), total), metrics


def _pool(metrics: Metrics) -> dict[str, jax.Array]:
    """Means over a leading axis of steps or batches."""
    return {
        name: Mean(jnp.sum(mean.total, 0), jnp.sum(mean.count, 0)).value()
        for name, mean in metrics.items()
    }


def _over_seeds(function: Callable) -> Callable:
    """Maps over the leading axis; one seed runs unbatched, which is faster than a batch of one."""

    def run(*args: Any) -> Any:
        if jax.tree.leaves(args)[0].shape[0] > 1:
            return jax.vmap(function)(*args)
        result = function(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)

    return run


_STREAMS = {"init": 0, "train": 1, "evaluate": 2}


def _key(seed: jax.Array, stream: str) -> jax.Array:
    """Keys of different streams share nothing: what is evaluated on is never trained on."""
    return jax.random.fold_in(jax.random.key(seed), _STREAMS[stream])
