"""Steps per second of the environments: ``python -m benchmarks.environments --help``.

Many environments with random actions, automatic resets and new levels: BoxWorld draws as many fresh
levels for its pool as episodes would begin if all had the maximum length; Mini-Pacman draws one at
each step. Gymnax's CartPole is included if it is installed. ``--training`` times the parts of an
update of a preset, by default quick: environment (with one action all the time), acting, learning.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.options import add_shared, limit_threads_or_exit, positive
from benchmarks.records import about
from benchmarks.timing import Run, interleave
from experiments.common.environment import count_cores
from experiments.common.records import append_rows
from rrnn_jax.envs import BoxWorld, Environment, MiniPacman

STEPS = 200
"""Steps of every environment in one call."""
POOL = 4096
"""Levels of a pool, or more if as many are drawn in one call."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.environments", description="Times the environments: steps per second."
    )
    add = result.add_argument
    add("--envs", type=positive, help="environments at once, not with --training (default: 1024)")
    add_shared(add, rounds=5, min_seconds=0.2, threads=0, out=None)
    add("--clock", choices=("wall", "processor"), default="wall",
        help="seconds by the clock on the wall, or of all processors together")  # fmt: skip
    add("--training", nargs="?", const="quick", choices=("quick", "paper"),
        help="time the parts of an update of this preset instead")  # fmt: skip
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    arguments = parser()
    given = arguments.parse_args(args)
    if given.envs and given.training:
        arguments.error("--envs must be left out with --training: the preset has its own")
    limit_threads_or_exit(arguments, given.threads)
    preset = given.training
    programs = training_programs(preset) if preset else environment_programs(given.envs or 1024)
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    runs = {name: program.run for name, program in programs.items()}
    result = interleave(
        runs, rounds=given.rounds, warmup=1, min_seconds=given.min_seconds, clock=clock
    )
    common = about("environments", threads=count_cores(), clock=given.clock)
    rows = [
        {
            **common,
            "program": name,
            "environments": programs[name].envs,
            "seconds": dataclasses.asdict(timing),
            "steps_per_second": programs[name].steps / timing.median,
        }
        for name, timing in result.summaries().items()
    ]
    for row in rows:
        print(
            f"{row['program']}, {row['environments']} at once: "
            f"{row['steps_per_second']:,.0f} steps/s ({given.clock} clock)"
        )
    if given.out is not None:
        append_rows(given.out, rows)
    return 130 if result.interrupted else 0


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to time.

    Attributes:
      run: runs it once.
      envs: environments at once.
      steps: steps of all of them in a call.
    """

    run: Run
    envs: int
    steps: int


def environment_programs(envs: int) -> dict[str, Program]:
    """The environments by name."""
    boxes = {
        "BoxWorld 8, viewport": BoxWorld(
            grid_size=8, solution_length=(1, 2), num_distractors=(0, 1), max_steps=60
        ),
        "BoxWorld 12, viewport": BoxWorld(),
        "BoxWorld 12, whole grid": BoxWorld(viewport=False),
    }
    found = {
        name: _program(env, envs, fresh=envs * STEPS // (env.default_params.max_steps + 1))
        for name, env in boxes.items()
    }
    found["Mini-Pacman, viewport"] = _program(MiniPacman(), envs)
    found["Mini-Pacman, whole map"] = _program(MiniPacman(viewport=False), envs)
    try:
        from gymnax.environments.classic_control.cartpole import CartPole  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("gymnax is not installed: no CartPole", file=sys.stderr)
    else:
        found["gymnax CartPole"] = _program(CartPole(), envs)
    return found


def _program(env: Any, envs: int, fresh: int = 0) -> Program:
    """Random play in one compiled call, which also draws `fresh` levels of a pool."""
    params = env.default_params
    if fresh:
        draw = jax.jit(env.draw_levels, static_argnums=1)
        params = params.replace(levels=draw(_key(0), max(fresh, POOL)))

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, state, *_ = carry
        for_actions, for_steps = jax.random.split(key)
        actions = jax.random.bits(for_actions, (envs,), jnp.uint32) % env.num_actions
        obs, state, reward, *_ = jax.vmap(env.step, (0, 0, 0, None))(
            jax.random.split(for_steps, envs), state, actions.astype(jnp.int32), params
        )
        # All results of a step are returned, so that the compiler does not remove them.
        return (params, state, obs, reward), None

    def play(params: Any, state: Any, obs: Any, key: jax.Array) -> tuple:
        for_levels, for_steps = jax.random.split(key)
        if fresh:
            new = env.draw_levels(for_levels, fresh, params.replace(levels=None))
            levels = jax.tree.map(lambda x, y: x.at[: len(y)].set(y), params.levels, new)
            params = params.replace(levels=levels)
        start = (params, state, obs, jnp.zeros((envs,)))
        return jax.lax.scan(step, start, jax.random.split(for_steps, STEPS))[0]

    obs, state = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(_key(1), envs), params)
    compiled = jax.jit(play).lower(params, state, obs, _key(0)).compile()
    keys = itertools.count()
    return Program(
        lambda: jax.block_until_ready(compiled(params, state, obs, _key(next(keys)))),
        envs,
        envs * STEPS,
    )


def training_programs(preset: str) -> dict[str, Program]:
    """An update of the games' presets and its parts; each part includes the previous one."""
    from experiments import box_world, mini_pacman
    from experiments.box_world.train import make_game as box_world_game
    from experiments.common.actor_critic import rollout, runs
    from experiments.common.actor_critic.config import make_agent
    from experiments.mini_pacman.train import make_game as mini_pacman_game

    found: dict[str, Program] = {}
    games = {
        "BoxWorld": (box_world.PRESETS[preset], box_world_game),
        "Mini-Pacman": (mini_pacman.PRESETS[preset], mini_pacman_game),
    }
    for name, (config, make_game) in games.items():
        game: runs.Game = make_game(config)
        problem = runs.make_problem(config, game)
        agent = make_agent(config, game.env.num_actions)
        state = jax.jit(problem.init)(_key(0))
        params = game.env.default_params.replace(levels=state.levels)
        steps, envs = config.learner.unroll, config.train.batch_size
        parts: dict[str, Run] = {
            "environment": _in_turn(
                _only_environment(game.env, envs, steps), state.play.env, params
            ),
            "rollout": _in_turn(
                lambda play, key, variables, params, e=game.env, a=agent, t=steps: rollout.rollout(
                    e, a, variables, play, key, params, t
                ),
                state.play,
                state.params,
                params,
            ),
            "update": _in_turn(lambda state, key, x=problem: x.update(state, key, None), state),
        }
        for part, run in parts.items():
            found[f"{name} {preset}, {part}"] = Program(run, envs, envs * steps)
    return found


def _only_environment(env: Environment, envs: int, steps: int) -> Callable[..., tuple]:
    def play(state: Any, key: jax.Array, params: Any) -> tuple:
        def step(state: Any, key: jax.Array) -> tuple[Any, Any]:
            keys, actions = jax.random.split(key, envs), jnp.zeros((envs,), jnp.int32)
            found = jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, params)
            obs, state, reward, *_ = found
            return state, (obs, reward)

        return jax.lax.scan(step, state, jax.random.split(key, steps))

    return play


def _in_turn(function: Callable[..., tuple], state: Any, *others: Any) -> Run:
    """Calls ``function(state, key, *others)``, each with the state that the last one returned.

    As in training, it is compiled ahead of time, and the old state's memory is reused.
    """
    compiled = jax.jit(function, donate_argnums=0).lower(state, _key(0), *others).compile()
    states = [jax.tree.map(jnp.copy, state)]
    keys = itertools.count()

    def run() -> None:
        new, *more = compiled(states.pop(), _key(next(keys)), *others)
        states.append(new)
        jax.block_until_ready((new, more))

    return run


def _key(seed: int) -> jax.Array:
    return jax.random.key(seed)


if __name__ == "__main__":
    sys.exit(main())
