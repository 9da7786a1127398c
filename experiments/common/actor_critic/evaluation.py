"""Evaluation on whole fresh episodes: returns, lengths, and the environment's info."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.actor_critic import rollout
from experiments.common.actor_critic.agent import Agent
from experiments.common.problem import Mean
from rrnn_jax.envs import Environment
from rrnn_jax.typing import Array

Policy = Callable[[Array, Array], Array]
"""``policy(obs, last_action) -> [A]`` bool: the actions to draw from; -1 is no last action."""

Groups = Callable[[Any], dict[str, Array]]
"""``groups(states) -> {name: [B] bool}``: groups of episodes by their states."""


def no_groups(states: Any) -> dict[str, Array]:
    """No groups."""
    del states
    return {}


class Episodes(NamedTuple):
    """Finished episodes, ``[B]`` each.

    Attributes:
      total: the return.
      length: steps, int32.
      info: the environment's info at the last step, by name.
      states: the last states.
    """

    total: Array
    length: Array
    info: dict[str, Array]
    states: Any

    def metrics(self, groups: Groups = no_groups) -> dict[str, Mean]:
        """Means over all episodes and over each group.

        ``return_squared`` is for the standard error of ``return``, see `standard_error`.
        """
        values = {"return": self.total, "length": self.length, **self.info}
        found = {name: Mean.of(value) for name, value in values.items()}
        found["return_squared"] = Mean.of(jnp.square(self.total))
        for group, members in groups(self.states).items():
            for name in ("return", *self.info):
                found[f"{name}_{group}"] = Mean.of(values[name], members)
        return found


def standard_error(mean: float, mean_of_squares: float, count: int) -> float:
    """The standard error of a mean.

    >>> standard_error(0.5, 0.5, 101)
    0.05
    """
    return (max(mean_of_squares - mean**2, 0.0) / max(count - 1, 1)) ** 0.5


def play(
    env: Environment,
    agent: Agent | Policy,
    variables: Any,
    key: Array,
    params: Any,
    episodes: int,
    greedy: bool = False,
) -> Episodes:
    """Plays episodes to their ends.

    Args:
      env: the environment.
      agent: the agent, or a policy without memory.
      variables: the agent's parameters; ignored for a policy.
      key: a PRNG key.
      params: parameters of the environment, without a pool, so that levels are fresh.
      episodes: B (static).
      greedy: use the most likely action instead of a sampled one.

    Returns:
      The episodes.
    """
    for_start, for_steps = jax.random.split(key)
    # A policy has no carry, as an agent without a core.
    player = agent if isinstance(agent, Agent) else Agent(env.num_actions)
    begun = rollout.begin(env, player, for_start, params, episodes)

    def step(index: Array, game: rollout.Play) -> tuple[rollout.Play, Array, dict[str, Array]]:
        for_action, for_env = jax.random.split(jax.random.fold_in(for_steps, index))
        if isinstance(agent, Agent):
            carry, logits, _ = rollout.act(agent, variables, game)
        else:
            allowed = jax.vmap(agent)(game.obs, jnp.where(game.reset, -1, game.action))
            carry, logits = game.carry, jnp.where(allowed, 0.0, -jnp.inf)
        drawn = jax.random.categorical(for_action, logits)
        actions = (jnp.argmax(logits, -1) if greedy else drawn).astype(jnp.int32)
        obs, states, rewards, done, info = jax.vmap(env.step_env, (0, 0, 0, None))(
            jax.random.split(for_env, episodes), game.env, actions, params
        )
        for name in ("terminated", "truncated"):
            del info[name]
        next_game = rollout.Play(
            states, carry, obs, jnp.zeros_like(done), actions, rewards,
            game.total + rewards, game.length + 1,
        )  # fmt: skip
        return next_game, done, info

    def advance(carry: tuple) -> tuple:
        index, game, over, last_info = carry
        new, done, info = step(index, game)

        def keep(old: Array, now: Array) -> Array:
            return jnp.where(over.reshape(-1, *[1] * (now.ndim - 1)), old, now)

        game = jax.tree.map(keep, game, new)
        return index + 1, game, over | done, jax.tree.map(keep, last_info, info)

    shapes = jax.eval_shape(step, jnp.int32(0), begun)[2]
    info = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    start = (jnp.int32(0), begun, jnp.zeros((episodes,), bool), info)
    _, game, _, info = jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), advance, start)
    return Episodes(game.total, game.length, info, game.env)
