"""Options and presets of Mini-Pacman.

``quick``: ``python -m experiments.mini_pacman``; minutes on 2 CPU cores.
``paper``: ``python -m experiments.mini_pacman --preset paper``; the paper's sizes, for a GPU.
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
from rrnn_jax.envs import MiniPacman


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The game."""

    mode: Literal["regular", "avoid", "hunt", "ambush", "rush"] = "regular"
    """The mode: its rewards and the end of its levels."""
    viewport: bool = True
    """Show 5 x 5 cells around Pacman, not the map."""
    first_level: int = 1
    """The level that episodes begin with."""
    max_frames: int = 3000
    """Steps after which an episode is truncated."""
    test_episodes: int = 1000
    """Episodes of the test."""

    def __post_init__(self) -> None:
        check_positive(test_episodes=self.test_episodes, first_level=self.first_level)
        make_env(self)


@dataclasses.dataclass(frozen=True)
class Config(GameConfig):
    """The settings that determine a run's results."""

    preset: Literal["quick", "paper"] = "quick"
    """Which defaults: "quick" (minutes on 2 CPU cores) or "paper" (the paper's sizes)."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)


def make_env(task: TaskConfig) -> MiniPacman:
    """The environment of a config."""
    return MiniPacman(
        mode=task.mode,
        viewport=task.viewport,
        level=task.first_level,
        max_frames=task.max_frames,
    )


PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick",
        task=TaskConfig(max_frames=500),
        **SMALL,
        learner=LearnerConfig(epochs=3, reward_scale=0.1, discount=0.97, entropy_cost=0.01),
        train=dataclasses.replace(QUICK_TRAIN, steps=400, eval_samples=256),
    ),
    # The paper's agent and settings for BoxWorld (appendix A.3); it states none for this game.
    "paper": Config(
        preset="paper",
        learner=dataclasses.replace(PAPER_LEARNER, reward_scale=0.1, level_pool=0),
        train=PAPER_TRAIN,
    ),
}
"""The presets by name."""
