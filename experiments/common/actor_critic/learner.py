"""The learner: rollouts and updates, by PPO or by the policy gradient with V-trace.

Both share rollouts, resets, stored carries and discounts; only the loss differs. An update plays
`unroll` steps in each environment with fixed parameters. Then it processes the trajectories in
minibatches (split over environments, not time), each from its initial carry.

``vtrace`` uses each trajectory once per epoch. As in IMPALA, the acting parameters of all but the
first minibatch are some gradient steps old, and V-trace corrects for that.

Where an episode *terminated*, its discount is 0. Where it was *truncated*, the value of its last
state is the bootstrap.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common.actor_critic import rollout
from experiments.common.actor_critic.agent import Agent, run
from experiments.common.actor_critic.losses import LossParts, ppo_loss, vtrace_loss
from experiments.common.actor_critic.returns import generalised_advantages
from experiments.common.problem import Mean
from rrnn_jax.checks import check_choice, check_positive
from rrnn_jax.envs import Environment
from rrnn_jax.typing import Array, Carry


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """Settings of learning from trajectories."""

    loss: Literal["ppo", "vtrace"] = "ppo"
    """Clipped ratios and generalised advantages, or IMPALA's policy gradient with V-trace."""
    unroll: int = 40
    """Steps of a trajectory."""
    minibatch_envs: int = 64
    """Trajectories of a minibatch; a divisor of the environments."""
    epochs: int = 2
    """Passes over the trajectories of an update."""
    discount: float = 0.99
    """Discount of rewards."""
    trace: float = 0.95
    """Lambda: mixes n-step returns with shorter ones; IMPALA has 1."""
    reward_scale: float = 0.2
    """Factor of rewards in the targets (metrics are unscaled)."""
    entropy_cost: float = 0.01
    """Weight of the policy's entropy at the start."""
    final_entropy_cost: float | None = None
    """Weight at the end, reached linearly. Default: the same."""
    value_cost: float = 0.5
    """Weight of the values' loss."""
    normalise: bool = True
    """PPO: whether to normalise the advantages of a minibatch to mean 0 and deviation 1."""
    clip_ratio: float = 0.2
    """PPO: the ratio of policies is clipped at this distance from 1."""
    clip_rho: float = 1.0
    """V-trace: bound on the ratio in the errors."""
    clip_pg_rho: float = 1.0
    """V-trace: bound on the ratio in the policy's gradient."""
    level_pool: int = 4096
    """Levels kept on the device for episodes to begin on; 0: each episode draws its own."""
    fresh_levels: int = 128
    """Levels of the pool that are replaced at each update."""
    easy_share: float = 0.0
    """A curriculum: in this part, from 0 to 1, of the updates fresh levels of the pool are easy."""

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, ("ppo", "vtrace"))
        check_positive(
            unroll=self.unroll,
            minibatch_envs=self.minibatch_envs,
            epochs=self.epochs,
            fresh_levels=self.fresh_levels,
        )
        check_positive(least=0, level_pool=self.level_pool)
        if self.level_pool % self.fresh_levels:
            raise ValueError(
                f"level_pool must be 0 or a multiple of fresh_levels={self.fresh_levels}, "
                f"got {self.level_pool}"
            )
        if self.easy_share and not self.level_pool:
            raise ValueError(f"easy_share must be 0 with level_pool=0, got {self.easy_share}")
        for name in ("discount", "trace", "easy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("entropy_cost", "final_entropy_cost", "value_cost"):
            if not 0 <= (getattr(self, name) or 0.0) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if not 0 < self.reward_scale < math.inf:
            raise ValueError(f"reward_scale must be positive and finite, got {self.reward_scale}")
        for name in ("clip_ratio", "clip_rho", "clip_pg_rho"):  # Infinity: no clipping.
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def gradient_steps(self, num_envs: int) -> int:
        """Gradient steps on the trajectories of one update.

        Raises:
          ValueError: the minibatch does not divide the number of environments.
        """
        if num_envs % self.minibatch_envs:
            raise ValueError(
                f"minibatch_envs must divide batch_size={num_envs}, got {self.minibatch_envs}"
            )
        return self.epochs * (num_envs // self.minibatch_envs)


def rewards_and_discounts(
    trajectory: rollout.Trajectory, config: LearnerConfig
) -> tuple[Array, Array]:
    """The rewards and discounts of a trajectory.

    Args:
      trajectory: ``[T, B]``.
      config: settings of learning.

    Returns:
      Scaled rewards, with the discounted value of the last state where the episode was truncated,
      and discounts, 0 where it terminated or was truncated.
    """
    scaled = trajectory.rewards * config.reward_scale
    rewards = scaled + config.discount * trajectory.cut_values
    done = trajectory.terminated | trajectory.truncated
    return rewards, jnp.where(done, 0.0, config.discount)


class LearnerState(NamedTuple):
    """The training state.

    Attributes:
      step: int32, updates so far.
      params: the agent's variables.
      opt_state: the optimiser's state.
      play: the states of the environments and the agent's carries.
      levels: the pool of levels, or None.
    """

    step: Array
    params: Any
    opt_state: Any
    play: rollout.Play
    levels: Any


class Learner(NamedTuple):
    """An agent that learns in an environment.

    Attributes:
      env: the environment.
      env_params: its parameters, without a pool of levels.
      easy_params: the same for drawing easy levels.
      agent: the agent.
      config: settings of learning.
      optimizer: the optimiser of the gradient steps.
      num_envs: the number of environments.
      num_updates: the number of updates of a run, for schedules.
    """

    env: Environment
    env_params: Any
    easy_params: Any
    agent: Agent
    config: LearnerConfig
    optimizer: optax.GradientTransformation
    num_envs: int
    num_updates: int

    def init(self, key: Array) -> LearnerState:
        """The state at the start of a run."""
        for_params, for_play, for_levels = jax.random.split(key, 3)
        levels = None
        if self.config.level_pool:
            levels = self._draw(for_levels, self.config.level_pool, jnp.int32(0))
        env_params = self.env_params.replace(levels=levels)
        play = rollout.begin(self.env, self.agent, for_play, env_params, self.num_envs)
        inputs = (play.obs, play.reset, play.action, play.reward)
        params = self.agent.init(for_params, play.carry, *jax.tree.map(lambda x: x[None], inputs))
        return LearnerState(jnp.int32(0), params, self.optimizer.init(params), play, levels)

    def update(self, state: LearnerState, key: Array) -> tuple[LearnerState, dict[str, Mean]]:
        """Plays once and learns from it."""
        for_levels, for_play, for_batches = jax.random.split(key, 3)
        levels = self._refill(state.levels, state.step, for_levels)
        play, trajectory, metrics = rollout.rollout(
            self.env, self.agent, state.params, state.play, for_play,
            self.env_params.replace(levels=levels), self.config.unroll,
        )  # fmt: skip
        last_value = rollout.act(self.agent, state.params, play)[2]
        params, opt_state, parts = self._learn(
            state, trajectory, state.play.carry, play, last_value, for_batches
        )
        new = LearnerState(state.step + 1, params, opt_state, play, levels)
        return new, {**metrics, **parts}

    def _refill(self, levels: Any, step: Array, key: Array) -> Any:
        """Replaces the oldest levels by fresh ones."""
        if levels is None:
            return None
        count = self.config.fresh_levels
        fresh = self._draw(key, count, step)
        start = step * count % self.config.level_pool
        return jax.tree.map(
            lambda pool, new: jax.lax.dynamic_update_slice_in_dim(pool, new, start, 0),
            levels,
            fresh,
        )

    def _draw(self, key: Array, count: int, step: Array) -> Any:
        """Draws levels: easy ones in the first part of a curriculum."""
        if not self.config.easy_share:
            return self.env.draw_levels(key, count, self.env_params)
        return jax.lax.cond(
            step < self.config.easy_share * self.num_updates,
            lambda: self.env.draw_levels(key, count, self.easy_params),
            lambda: self.env.draw_levels(key, count, self.env_params),
        )

    def _learn(
        self,
        state: LearnerState,
        trajectory: rollout.Trajectory,
        carry: Carry,
        play: rollout.Play,
        last_value: Array,
        key: Array,
    ) -> tuple[Any, Any, dict[str, Mean]]:
        """Gradient steps on one rollout."""
        config = self.config
        rewards, discounts = rewards_and_discounts(trajectory, config)
        later = jnp.concatenate([trajectory.values[1:], last_value[None]])
        advantages = generalised_advantages(
            trajectory.values, later, rewards, discounts, config.trace
        )
        last = (play.obs, play.reset, play.action, play.reward)
        data = (trajectory, rewards, discounts, advantages, carry, last)
        batches = self.num_envs // config.minibatch_envs

        def pick(index: Array) -> Any:
            by_time = jax.tree.map(lambda x: x[:, index], data[:4])
            return (*by_time, *jax.tree.map(lambda x: x[index], data[4:]))

        def gradient_step(carry: tuple, index: Array) -> tuple[tuple, dict[str, Mean]]:
            params, opt_state = carry
            gradient_of = jax.value_and_grad(self._loss, has_aux=True)
            (loss, parts), gradient = gradient_of(params, pick(index), state.step)
            updates, opt_state = self.optimizer.update(gradient, opt_state, params)
            shown = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **parts._asdict()}
            params = optax.apply_updates(params, updates)
            return (params, opt_state), {name: Mean.of(value) for name, value in shown.items()}

        def order(key: Array) -> Array:
            return jax.random.permutation(key, self.num_envs).reshape(batches, -1)

        indices = jax.vmap(order)(jax.random.split(key, config.epochs))
        indices = indices.reshape(-1, config.minibatch_envs)
        (params, opt_state), parts = jax.lax.scan(
            gradient_step, (state.params, state.opt_state), indices
        )
        return params, opt_state, jax.tree.map(lambda x: jnp.sum(x, 0), parts)

    def _loss(self, params: Any, batch: Any, step: Array) -> tuple[Array, LossParts]:
        """The loss of a minibatch, and its parts."""
        config = self.config
        trajectory, rewards, discounts, advantages, carry, last = batch
        inputs = trajectory[:4]
        if config.loss == "vtrace":  # Needs the value of the last state with these parameters.
            inputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), inputs, last)
        _, logits, values = run(self.agent, params, carry, inputs)
        if config.loss == "ppo":
            targets = advantages + trajectory.values
            if config.normalise:
                deviation = jnp.std(advantages)
                advantages = (advantages - jnp.mean(advantages)) / (deviation + 1e-8)
            parts = ppo_loss(
                logits, values, trajectory.actions, trajectory.log_probs, advantages, targets,
                config.clip_ratio,
            )  # fmt: skip
        else:
            parts = vtrace_loss(
                logits[:-1], values, trajectory.actions, trajectory.log_probs, rewards, discounts,
                lambda_=config.trace, clip_rho=config.clip_rho, clip_pg_rho=config.clip_pg_rho,
            )  # fmt: skip
        loss = (
            parts.policy
            + config.value_cost * parts.value
            - self._entropy_cost(step) * parts.entropy
        )
        return loss, parts

    def _entropy_cost(self, step: Array) -> Array:
        first, last = self.config.entropy_cost, self.config.final_entropy_cost
        last = first if last is None else last
        done = jnp.minimum(step / max(self.num_updates, 1), 1.0)
        return first + (last - first) * done
