"""Training of one or all cores on Mini-Pacman."""

import functools

from experiments.common.actor_critic import runs
from experiments.common.problem import Score
from experiments.mini_pacman.config import Config, make_env
from rrnn_jax.envs import mini_pacman_heuristic


def make_game(config: Config) -> runs.Game:
    """The game of a config."""
    heuristic = functools.partial(mini_pacman_heuristic, mode=config.task.mode)
    view = "a window of 5 x 5 cells" if config.task.viewport else "the whole map"
    return runs.Game(
        env=make_env(config.task),
        score=Score("return", label="mean return of fresh episodes", text="{:.1f}"),
        title=f'Mini-Pacman, mode "{config.task.mode}", {view}',
        test_episodes=config.task.test_episodes,
        heuristic=heuristic if config.task.viewport else None,
    )


train = functools.partial(runs.train, make_game)
"""Trains the models of a config: ``train(config, run_dir)``, see `runs.train`."""
evaluate = functools.partial(runs.evaluate, make_game)
"""Plays the test's episodes with the newest checkpoints: ``evaluate(config, run_dir)``."""
