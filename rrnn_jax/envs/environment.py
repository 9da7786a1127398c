"""The base class of environments: resets, and steps with automatic resets."""

import abc
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.checks import check_positive
from rrnn_jax.envs.spaces import Box, Discrete
from rrnn_jax.scan.mesh import varying_axes, varying_over
from rrnn_jax.typing import Array

State = TypeVar("State", bound=Any)
Params = TypeVar("Params", bound=Any)
Info = dict[str, Any]

WINDOW = 5
"""Rows and columns that a viewport shows."""


def at(array: Array, index: Array | tuple[Array, ...]) -> Array:
    """``array[index]`` for indices in range: checks would take most of the time of a step."""
    return array.at[index].get(mode="promise_in_bounds")


def below(uniform: Array, count: Array) -> Array:
    """Integers in 0..count-1 from uniform numbers in [0, 1)."""
    return jnp.minimum((uniform * count.astype(jnp.float32)).astype(jnp.int32), count - 1)


class Transition(NamedTuple):
    """The result of a step.

    Attributes:
      state: the next state.
      shown: the state that the observation shows; usually the same.
      reward: float32.
      terminated: bool, whether the episode ended by the rules.
      truncated: bool, whether it was cut off.
      info: additional values, by name.
    """

    state: Any
    shown: Any
    reward: Array
    terminated: Array
    truncated: Array
    info: Info


class Environment(abc.ABC, Generic[State, Params]):
    """An environment as pure functions, for one episode; use `jax.vmap` for a batch.

    The methods are those of gymnax, so agents written for its environments run on these. (`step`
    returns five values, as gymnax did before version 1; the sixth is in `info`.) The object has no
    state: everything that changes is in `state`, and all settings are in `params`, a
    `flax.struct.dataclass`. Params that change shapes or rules are static: under `jax.jit` another
    value causes a compilation.

    ``params.levels`` may contain a pool of levels ``[P, ...]`` made by `draw_levels`. Episodes then
    begin on one of them, drawn uniformly, and no level is generated during the steps of a batch.
    """

    default_params: Params
    can_truncate: bool = True
    """Whether episodes may be truncated; if not, learners need no value of their last states."""
    counts: tuple[str, ...] = ()
    """The params that are integers from 1 on and not static."""

    @property
    def name(self) -> str:
        """The name of the class."""
        return type(self).__name__

    @property
    @abc.abstractmethod
    def num_actions(self) -> int:
        """The number of actions."""

    def action_space(self, params: Params | None = None) -> Discrete:
        """The actions, from 0 to `num_actions` - 1."""
        del params
        return Discrete(self.num_actions)

    @abc.abstractmethod
    def observation_space(self, params: Params | None = None) -> Box:
        """The observations: float32 in [0, 1]."""

    @abc.abstractmethod
    def draw_level(self, key: Array, params: Params) -> Any:
        """Draws the level of an episode."""

    @abc.abstractmethod
    def start(self, level: Any, params: Params) -> State:
        """The first state of an episode on `level`."""

    @abc.abstractmethod
    def get_obs(self, state: State, params: Params) -> Array:
        """The observation of a state."""

    @abc.abstractmethod
    def transition(self, key: Array, state: State, action: Array, params: Params) -> Transition:
        """One step by the rules."""

    def draw_levels(self, key: Array, count: int, params: Params | None = None) -> Any:
        """A pool of levels for ``params.levels``.

        Args:
          key: a PRNG key.
          count: P (static under jit).
          params: parameters of the levels (default: `default_params`).

        Returns:
          Levels with a leading axis ``[P]``.

        Raises:
          ValueError: `count` below 1.
          TypeError: `count` is not an integer.
        """
        check_positive(count=count)
        params = self._params(params)
        return jax.vmap(lambda key: self.draw_level(key, params))(jax.random.split(key, count))

    def reset_env(self, key: Array, params: Params | None = None) -> tuple[Array, State]:
        """Begins an episode, as `reset`."""
        params = self._params(params)
        state = self._begin(key, params)
        return self.get_obs(state, params), state

    def reset(self, key: Array, params: Params | None = None) -> tuple[Array, State]:
        """Begins an episode.

        Args:
          key: a PRNG key.
          params: parameters (default: `default_params`).

        Returns:
          The observation and the state.

        Raises:
          ValueError: a count below 1, or ``params.levels`` is not a pool of such levels.
          TypeError: a count that is not an integer, or params of another environment.
        """
        return self.reset_env(key, self._params(params))

    def step_env(
        self, key: Array, state: State, action: Array, params: Params | None = None
    ) -> tuple[Array, State, Array, Array, Info]:
        """One step, as `step`, but without the reset at the end of an episode."""
        _check_action(action)
        params = self._params(params)
        result = self.transition(key, state, action, params)
        obs = self.get_obs(result.shown, params)
        return obs, result.state, result.reward, *_ending(result)

    def step(
        self, key: Array, state: State, action: Array, params: Params | None = None
    ) -> tuple[Array, State, Array, Array, Info]:
        """One step; if it ends the episode, observation and state are those of the next episode.

        Args:
          key: a PRNG key.
          state: the state.
          action: an integer scalar.
          params: parameters (default: `default_params`).

        Returns:
          Observation, state, reward (float32), whether the episode ended (bool), and info with
          ``terminated`` (it ended by the rules), ``truncated`` (it was cut off: bootstrap from
          ``final_observation``) and ``final_observation`` (before the reset; under jit it costs
          nothing unless it is used).

        Raises:
          ValueError: an action that is not a scalar, or invalid params, see `reset`.
          TypeError: an action that is not an integer, or params of another environment.
        """
        _check_action(action)
        params = self._params(params)
        for_step, for_reset = jax.random.split(key)
        result = self.transition(for_step, state, action, params)
        done, info = _ending(result)
        fresh = self._begin(for_reset, params)

        def choose(fresh: Array, old: Array) -> Array:
            return jax.lax.select(jnp.broadcast_to(done, old.shape), fresh, old)

        # Only one of the two observations is rendered.
        obs = self.get_obs(jax.tree.map(choose, fresh, result.shown), params)
        state = jax.tree.map(choose, fresh, result.state)
        info = {**info, "final_observation": self.get_obs(result.shown, params)}
        return obs, state, result.reward, done, info

    def _begin(self, key: Array, params: Params) -> State:
        """The first state of an episode."""
        level = self._level(key, params)
        # A start has constants, too; within `jax.shard_map` they vary as they will after a step.
        return varying_over(varying_axes(level, params), self.start(level, params))

    def _level(self, key: Array, params: Params) -> Any:
        """A level from the pool, or a new one without a pool."""
        if params.levels is None:
            return self.draw_level(key, params)
        count = _pool_size(self, params)
        # One word of random bits, for speed; the bias of the remainder is at most P / 2^32.
        index = jax.random.bits(key, (), jnp.uint32) % jnp.uint32(count)
        return jax.tree.map(lambda x: at(jnp.asarray(x), index), params.levels)

    def _params(self, params: Params | None) -> Params:
        """The params or the default ones; raises unless type and counts are valid."""
        chosen = self.default_params if params is None else params
        wanted = type(getattr(self, "default_params", chosen))
        if not isinstance(chosen, wanted):
            raise TypeError(f"params must be {wanted.__name__}, got {type(chosen).__name__}")
        # Params themselves cannot check them: JAX also puts axes in their place, such as 0.
        for name in self.counts:
            if not isinstance(value := getattr(chosen, name), jax.Array):
                check_positive(**{name: value})
        return chosen


def _check_action(action: Any) -> None:
    """Raises unless the action is an integer scalar."""
    if shape := np.shape(action):
        raise ValueError(f"action must be a scalar (use jax.vmap for a batch), got shape {shape}")
    if not jnp.issubdtype(dtype := jnp.result_type(action), jnp.integer):
        raise TypeError(f"action must be an integer, got {dtype}")


def _pool_size(env: Environment, params: Any) -> int:
    """P; raises unless ``params.levels`` is a pool of such levels."""
    found = jax.tree.map(lambda x: _described(x, np.shape(x)), params.levels)
    first = jax.tree.leaves(params.levels)[:1]
    count = next(iter(np.shape(first[0])), 0) if first else 0
    level = _level_like(env, jax.tree.structure(params.replace(levels=None)))
    if count < 1 or found != jax.tree.map(lambda x: _described(x, (count, *x.shape)), level):
        raise ValueError(
            "levels must be a pool made by draw_levels for these params, of levels "
            f"{jax.tree.map(lambda x: _described(x, x.shape), level)} with an axis [P] before, "
            f"got {found}"
        )
    return count


def _described(x: Any, shape: tuple[int, ...]) -> str:
    """A dtype and a shape, such as "int32[3, 2]"; the dtype is that of a JAX array."""
    is_array = hasattr(x, "dtype")
    return f"{jnp.result_type(x) if is_array else type(x).__name__}{list(shape)}"


@lru_cache(maxsize=100)
def _level_like(env: Environment, structure: Any) -> Any:
    """The shapes of a level, which depend on static params only."""
    params = structure.unflatten([1] * structure.num_leaves)
    return jax.eval_shape(lambda: env.draw_level(jax.random.key(0), params))


def _ending(result: Transition) -> tuple[Array, Info]:
    """Whether the episode ended, and info with the reason."""
    ending = {"terminated": result.terminated, "truncated": result.truncated}
    return result.terminated | result.truncated, {**result.info, **ending}
