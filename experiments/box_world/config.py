"""Options and presets of BoxWorld.

``quick``: ``python -m experiments.box_world``; minutes on 2 CPU cores.
``smoke``: ``python -m experiments.box_world --preset smoke``; one lock and no distractor.
``paper``: ``python -m experiments.box_world --preset paper``; the paper's sizes, for a GPU.
README.md has results and the hardware they were measured on.
"""

import dataclasses
from typing import Literal

from experiments.common.actor_critic.config import (
    PAPER_LEARNER,
    PAPER_TRAIN,
    QUICK_TRAIN,
    SMALL,
    GameConfig,
)
from experiments.common.actor_critic.learner import LearnerConfig
from rrnn_jax.checks import check_positive
from rrnn_jax.envs import BoxWorld


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The levels."""

    grid_size: int = 12
    """Cells along a side, without the border."""
    solution_length: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Numbers of boxes on the way to the gem, to draw from."""
    num_distractors: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Numbers of distractor boxes, to draw from."""
    viewport: bool = True
    """Show 5 x 5 cells around the player, not the grid."""
    max_steps: int = 120
    """The step after this many ends an episode."""
    test_episodes: int = 1000
    """Episodes of the test, on fresh levels."""

    def __post_init__(self) -> None:
        check_positive(max_steps=self.max_steps, test_episodes=self.test_episodes)
        make_env(self)


@dataclasses.dataclass(frozen=True)
class Config(GameConfig):
    """The settings that determine a run's results."""

    preset: Literal["quick", "smoke", "paper"] = "quick"
    """Which defaults: "quick" and "smoke" (minutes on 2 CPU cores), or "paper"."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)


def make_env(task: TaskConfig) -> BoxWorld:
    """The environment of a config."""
    return BoxWorld(
        grid_size=task.grid_size,
        solution_length=tuple(task.solution_length),
        num_distractors=tuple(task.num_distractors),
        viewport=task.viewport,
        max_steps=task.max_steps,
    )


PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick",
        task=TaskConfig(grid_size=8, solution_length=(1, 2), num_distractors=(0, 1), max_steps=60),
        **SMALL,
        learner=LearnerConfig(
            epochs=3, entropy_cost=0.02, final_entropy_cost=0.005, easy_share=0.25
        ),
        train=QUICK_TRAIN,
    ),
    "smoke": Config(
        preset="smoke",
        model="lstm",
        task=TaskConfig(grid_size=6, solution_length=(1,), num_distractors=(0,), max_steps=60),
        **SMALL,
        learner=LearnerConfig(epochs=3, entropy_cost=0.01),
        train=dataclasses.replace(QUICK_TRAIN, steps=40, eval_every=10),
    ),
    "paper": Config(
        preset="paper",
        learner=dataclasses.replace(PAPER_LEARNER, level_pool=65536, fresh_levels=64),
        train=PAPER_TRAIN,
    ),
}
"""The presets by name."""
