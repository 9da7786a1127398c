"""Rollouts of an agent with a carry in a batch of environments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.actor_critic.agent import Agent, run
from experiments.common.problem import Mean
from rrnn_jax.envs import Environment
from rrnn_jax.typing import Array, Carry


class Play(NamedTuple):
    """The state of a batch of environments, and the agent's inputs for its next action.

    Attributes:
      env: the environments' states, ``[B, ...]``.
      carry: the core's memory.
      obs: the current observations.
      reset: ``[B]`` bool, whether they are the first of an episode.
      action: ``[B]`` int32, the last action.
      reward: ``[B]``, the last reward.
      total: ``[B]``, the return of the episode so far.
      length: ``[B]`` int32, its steps so far.
    """

    env: Any
    carry: Carry
    obs: Array
    reset: Array
    action: Array
    reward: Array
    total: Array
    length: Array


class Trajectory(NamedTuple):
    """A trajectory, ``[T, B, ...]``; the agent's inputs are those of `Play`.

    Attributes:
      obs: observations.
      resets: see `Play`.
      last_actions: see `Play`.
      last_rewards: see `Play`.
      actions: the actions taken.
      log_probs: their log-probabilities under the acting policy.
      values: values of the states before the actions.
      rewards: the unscaled rewards.
      terminated: whether the episode ended there by the rules.
      truncated: whether it was truncated.
      cut_values: the value of the last state where it was truncated, else 0.
    """

    obs: Array
    resets: Array
    last_actions: Array
    last_rewards: Array
    actions: Array
    log_probs: Array
    values: Array
    rewards: Array
    terminated: Array
    truncated: Array
    cut_values: Array


def begin(env: Environment, agent: Agent, key: Array, params: Any, batch: int) -> Play:
    """Begins an episode in each of `batch` environments."""
    obs, state = jax.vmap(env.reset, (0, None))(jax.random.split(key, batch), params)
    zeros = jnp.zeros((batch,), jnp.float32)
    return Play(
        env=state,
        carry=agent.initial_carry(obs.shape[1:], batch),
        obs=obs,
        reset=jnp.ones((batch,), bool),
        action=jnp.zeros((batch,), jnp.int32),
        reward=zeros,
        total=zeros,
        length=jnp.zeros((batch,), jnp.int32),
    )


def act(agent: Agent, variables: Any, play: Play) -> tuple[Carry, Array, Array]:
    """One step of the agent: its next carry, logits ``[B, A]`` and values ``[B]``."""
    inputs = (play.obs, play.reset, play.action, play.reward)
    inputs = jax.tree.map(lambda x: x[None], inputs)
    carry, logits, values = run(agent, variables, play.carry, inputs)
    return carry, logits[0], values[0]


def rollout(
    env: Environment, agent: Agent, variables: Any, play: Play, key: Array, params: Any, steps: int
) -> tuple[Play, Trajectory, dict[str, Mean]]:
    """Plays for `steps` steps with sampled actions.

    Args:
      env: the environment.
      agent: the agent.
      variables: its parameters.
      play: the state of the environments.
      key: a PRNG key.
      params: parameters of the environment.
      steps: T (static).

    Returns:
      The new state, the trajectory, and for the episodes that ended ``return``, ``length`` and the
      other values of the environment's ``info``.
    """

    def step(play: Play, key: Array) -> tuple[Play, tuple[Trajectory, dict[str, Mean]]]:
        for_action, for_env = jax.random.split(key)
        carry, logits, values = act(agent, variables, play)
        actions = jax.random.categorical(for_action, logits).astype(jnp.int32)
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)[:, 0]
        keys = jax.random.split(for_env, actions.shape[0])
        obs, state, rewards, done, info = jax.vmap(env.step, (0, 0, 0, None))(
            keys, play.env, actions, params
        )
        terminated, truncated = info.pop("terminated"), info.pop("truncated")
        last = info.pop("final_observation")
        total, length = play.total + rewards, play.length + 1
        fresh = jnp.zeros_like(done)
        cut = Play(play.env, carry, last, fresh, actions, rewards, total, length)
        is_cut = truncated & ~terminated
        cut_values = _value_if(agent, variables, cut, is_cut, env.can_truncate)
        trajectory = Trajectory(
            play.obs, play.reset, play.action, play.reward, actions, log_probs, values, rewards,
            terminated, truncated, cut_values,
        )  # fmt: skip
        ended = {"return": total, "length": length, **info}
        metrics = {name: Mean.of(value, done) for name, value in ended.items()}
        next_play = Play(
            env=state,
            carry=carry,
            obs=obs,
            reset=done,
            action=actions,
            reward=rewards,
            total=jnp.where(done, 0.0, total),
            length=jnp.where(done, 0, length),
        )
        return next_play, (trajectory, metrics)

    play, (trajectory, metrics) = jax.lax.scan(step, play, jax.random.split(key, steps))
    return play, trajectory, jax.tree.map(lambda x: jnp.sum(x, 0), metrics)


def _value_if(agent: Agent, variables: Any, play: Play, wanted: Array, possible: bool) -> Array:
    """The values of states where `wanted`, else 0; computed only if one of them is."""
    zeros = jnp.zeros(wanted.shape, jnp.float32)
    if not possible:
        return zeros

    def value() -> Array:
        return jnp.where(wanted, act(agent, variables, play)[2], 0.0)

    return jax.lax.cond(jnp.any(wanted), value, lambda: zeros)
