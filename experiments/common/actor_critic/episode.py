"""One episode of a trained agent as a GIF, with the attention of its memory."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.actor_critic import rollout
from experiments.common.actor_critic.agent import Agent
from rrnn_jax import RelationalMemoryCell
from rrnn_jax.visualize import episode_animation, save_gif


def record(
    env: Any, agent: Agent, variables: Any, key: jax.Array, at_most: int = 150
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Plays one episode with sampled actions.

    Args:
      env: an environment with `render`.
      agent: the agent.
      variables: its parameters.
      key: a PRNG key.
      at_most: the most steps to record.

    Returns:
      Images ``[T, height, width, 3]`` of the whole game; the attention ``[T, S, S+1]``, a mean
      over heads, or None for cores other than a Relational Memory Core; and captions.
    """
    params = env.default_params
    has_memory = isinstance(agent.cell, RelationalMemoryCell)

    @jax.jit
    def step(play: rollout.Play, key: jax.Array) -> tuple:
        for_action, for_env = jax.random.split(key)
        inputs = jax.tree.map(lambda x: x[None], (play.obs, play.reset, play.action, play.reward))
        mutable = ["intermediates"] if has_memory else []
        result: Any = agent.apply(variables, play.carry, *inputs, mutable=mutable)
        (carry, logits, _), captured = result
        weights = jnp.zeros(())
        if has_memory:
            inside = captured["intermediates"]["cell"]["attention_weights"][0]
            weights = jnp.mean(inside[0, 0], axis=(0, 1))  # Over blocks and heads.
        action = jax.random.categorical(for_action, logits[0, 0]).astype(jnp.int32)
        state = jax.tree.map(lambda x: x[0], play.env)
        obs, new, reward, done, _ = env.step_env(for_env, state, action, params)
        new_play = rollout.Play(
            jax.tree.map(lambda x: x[None], new), carry, obs[None], jnp.zeros((1,), bool),
            action[None], reward[None], play.total + reward, play.length + 1,
        )  # fmt: skip
        return new_play, done, weights, env.render(state)

    for_start, for_steps = jax.random.split(key)
    begin = jax.jit(partial(rollout.begin, env, agent), static_argnums=2)
    play = begin(for_start, params, 1)
    frames, attention, captions = [], [], []
    for index in range(at_most):
        captions.append(f"step {index + 1}, return {float(play.total[0]):.1f}")
        play, done, weights, picture = step(play, jax.random.fold_in(for_steps, index))
        frames.append(np.asarray(picture))
        attention.append(np.asarray(weights))
        if done:
            break
    return np.stack(frames), np.stack(attention) if has_memory else None, captions


def save_episode(path: Path, env: Any, agent: Agent, variables: Any, *, title: str) -> Path:
    """Records an episode and writes it as a GIF.

    Args:
      path: the file; its directory is created.
      env: the environment.
      agent: the agent.
      variables: its parameters.
      title: title of the figure.

    Returns:
      The path.
    """
    frames, weights, captions = record(env, agent, variables, jax.random.key(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    animation = episode_animation(frames, weights, captions=captions, title=title)
    save_gif(animation, path, frame_seconds=0.25, dpi=80)
    return path
