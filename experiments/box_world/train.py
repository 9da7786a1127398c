"""Training of one or all cores on BoxWorld."""

import functools

from experiments.box_world.config import Config, make_env
from experiments.common.actor_critic import runs
from experiments.common.actor_critic.evaluation import no_groups
from experiments.common.problem import Score
from rrnn_jax.envs import box_world_heuristic
from rrnn_jax.envs.box_world import BoxWorldState
from rrnn_jax.typing import Array


def make_game(config: Config) -> runs.Game:
    """The game of a config; evaluations are split by L and F if there are several."""
    task = config.task
    pairs = [(length, f) for length in task.solution_length for f in task.num_distractors]

    def groups(states: BoxWorldState) -> dict[str, Array]:
        return {
            f"L{length}_F{number}": (states.solution_length == length)
            & (states.num_distractors == number)
            for length, number in pairs
        }

    lengths, numbers = (
        f"{min(values)} to {max(values)}" if len(values) > 1 else str(min(values))
        for values in (task.solution_length, task.num_distractors)
    )
    env = make_env(task)
    size = f"{task.grid_size} x {task.grid_size}"
    return runs.Game(
        env=env,
        score=Score(
            "solved",
            label="share of fresh levels solved",
            limits=(0.0, 1.02),
            text="{:.1%}",
        ),
        title=f"BoxWorld {size}; boxes: {lengths}, distractors: {numbers}",
        test_episodes=task.test_episodes,
        groups=groups if 1 < len(pairs) <= 9 else no_groups,
        easy=env.default_params.replace(
            solution_length=(min(task.solution_length),),
            num_distractors=(min(task.num_distractors),),
        ),
        heuristic=box_world_heuristic if task.viewport else None,
    )


train = functools.partial(runs.train, make_game)
"""Trains the models of a config: ``train(config, run_dir)``, see `runs.train`."""
evaluate = functools.partial(runs.evaluate, make_game)
"""Plays the test's episodes with the newest checkpoints: ``evaluate(config, run_dir)``."""
