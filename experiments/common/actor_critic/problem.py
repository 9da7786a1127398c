"""An agent in an environment as a training problem."""

import dataclasses
from typing import Any

import jax

from experiments.common.actor_critic.agent import Agent
from experiments.common.actor_critic.evaluation import Groups, no_groups, play
from experiments.common.actor_critic.learner import Learner, LearnerConfig, LearnerState
from experiments.common.optimizers import make_optimizer
from experiments.common.parallel import split_rows
from experiments.common.problem import Evaluation, Mean, Problem, Score
from experiments.common.train_config import TrainConfig
from rrnn_jax.envs import Environment
from rrnn_jax.typing import Array


def make_learner(
    train: TrainConfig, learner: LearnerConfig, env: Environment, agent: Agent, easy: Any = None
) -> Learner:
    """The learner of a problem; arguments and errors are those of `actor_critic`."""
    _check_used(train)
    inner = learner.gradient_steps(train.batch_size)
    optimizer = make_optimizer(
        dataclasses.replace(
            train, steps=train.steps * inner, warmup_steps=train.warmup_steps * inner
        )
    )
    params = env.default_params
    easy = params if easy is None else easy
    _check_easy(learner, params, easy)
    return Learner(env, params, easy, agent, learner, optimizer, train.batch_size, train.steps)


def actor_critic(
    train: TrainConfig,
    learner: LearnerConfig,
    *,
    env: Environment,
    agent: Agent,
    score: Score,
    test_episodes: int,
    groups: Groups = no_groups,
    easy: Any = None,
) -> Problem:
    """A problem whose update plays `learner.unroll` steps in each environment and learns from them.

    ``train.batch_size`` is the number of environments, and ``train.steps`` counts updates of
    ``batch_size * unroll`` frames. Learning rates change with the gradient steps, of which an
    update has ``learner.gradient_steps(train.batch_size)``. Evaluations play fresh episodes on
    fresh levels with sampled actions (``return``, ``length``, ...) and with the most likely ones
    (``greedy_return``, ...).

    Args:
      train: the training config.
      learner: settings of learning.
      env: the environment, with its `default_params`.
      agent: the agent.
      score: a metric of episodes.
      test_episodes: number of episodes of "test"; rounded up to whole batches like
        ``eval_samples``.
      groups: groups of episodes in evaluations.
      easy: params of the environment to draw easy levels with, see ``learner.easy_share``
        (default: its `default_params`).

    Returns:
      The problem; its state is a `LearnerState`.

    Raises:
      ValueError: ``minibatch_envs`` does not divide the number of environments, or an option has
        no effect here.
    """
    learns = make_learner(train, learner, env, agent, easy)

    def update(
        state: LearnerState, key: Array, batch: None
    ) -> tuple[LearnerState, dict[str, Mean]]:
        del batch
        state, metrics = learns.update(state._replace(play=split_rows(state.play)), key)
        return state._replace(play=split_rows(state.play)), metrics

    played = train.batch_size, env, agent, groups
    return Problem(
        init=learns.init,
        update=update,
        evaluations={
            "valid": _evaluation(train.eval_samples, *played),
            "test": _evaluation(test_episodes, *played),
        },
        score=score,
        rows=("play",),
    )


def _evaluation(
    episodes: int, batch_size: int, env: Environment, agent: Agent, groups: Groups
) -> Evaluation:
    """Fresh episodes with sampled actions and with the most likely ones."""
    rows = min(batch_size, episodes)
    played = played_episodes(episodes, batch_size)

    def step(state: LearnerState, carry: Any, key: Array, batch: None) -> tuple[Any, dict]:
        del batch
        found: dict[str, Mean] = {}
        for prefix, greedy, each in zip(
            ("", "greedy_"), (False, True), jax.random.split(key), strict=True
        ):
            ended = play(env, agent, state.params, each, env.default_params, rows, greedy)
            metrics = ended.metrics(groups)
            found |= {prefix + name: mean for name, mean in metrics.items()}
        return carry, found

    return Evaluation(step, played // rows, samples=played)


def played_episodes(episodes: int, batch_size: int) -> int:
    """The number of episodes that an evaluation plays: rounded up to whole batches.

    >>> played_episodes(1000, 256), played_episodes(100, 256)
    (1024, 100)
    """
    rows = min(batch_size, episodes)
    return rows * -(-episodes // rows)


def check(config: Any, env: Environment, easy: Any = None) -> None:
    """Raises the errors of `actor_critic` without making the problem."""
    _check_used(config.train)
    config.learner.gradient_steps(config.train.batch_size)
    _check_easy(config.learner, env.default_params, easy)


def _check_easy(learner: LearnerConfig, params: Any, easy: Any) -> None:
    if learner.easy_share and easy in (None, params):
        share = learner.easy_share
        raise ValueError(f"easy_share must be 0: the game has no easier levels, got {share}")


def _check_used(train: TrainConfig) -> None:
    for name in ("micro_batch_size", "average_decay"):
        if getattr(train, name) is not None:
            value = getattr(train, name)
            raise ValueError(f"{name} must be None with an actor-critic, got {value}")
