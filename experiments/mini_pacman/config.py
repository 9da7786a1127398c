"""Options and presets of Mini-Pacman.

``quick``: ``python -m experiments.mini_pacman``; minutes on 2 CPU cores.
``paper``: ``python -m experiments.mini_pacman --preset paper``; the paper's sizes, for a GPU.
What to expect of both stands in README.md, with the hardware it was measured on.
"""

import dataclasses
from typing import Literal

from experiments.common.actor_critic.cores import AgentConfig
from experiments.common.actor_critic.learner import LearnerConfig
from experiments.common.train_config import TrainConfig
from rrnn_jax.envs import MiniPacman


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The game."""

    mode: Literal["regular", "avoid", "hunt", "ambush", "rush"] = "regular"
    """What is rewarded, and what ends a level."""
    viewport: bool = True
    """Show 5 x 5 cells around Pacman, not the map."""
    first_level: int = 1
    """The level that episodes begin with."""
    max_frames: int = 3000
    """Steps after which an episode is cut off."""
    test_episodes: int = 1000
    """Episodes of the test."""

    def __post_init__(self) -> None:
        if self.test_episodes < 1:
            raise ValueError(f"test_episodes must be at least 1, got {self.test_episodes}")
        if self.first_level < 1:
            raise ValueError(f"first_level must be at least 1, got {self.first_level}")
        make_env(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run's numbers depend on."""

    preset: Literal["quick", "paper"] = "quick"
    """Which defaults: "quick" (minutes on 2 CPU cores) or "paper" (the paper's sizes)."""
    model: Literal["all", "rmc", "lstm", "conv_lstm", "none"] = "rmc"
    """Which core; "none" is an agent without memory; "all" trains one after the other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of products. Parameters, norms, softmax and memory are float32 always."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    learner: LearnerConfig = dataclasses.field(default_factory=LearnerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


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
        agent=AgentConfig(head_size=16, lstm_features=64, conv_features=16, width=64),
        learner=LearnerConfig(epochs=3, reward_scale=0.1, discount=0.97, entropy_cost=0.01),
        train=TrainConfig(
            steps=400,
            batch_size=256,
            learning_rate=1e-3,
            schedule="linear",
            epsilon=1e-5,
            clip_norm=0.5,
            chunk_steps=5,
            eval_every=25,
            eval_samples=256,
            checkpoint_every=50,
        ),
    ),
    # The paper's agent and numbers for BoxWorld (appendix A.3); it states none for this game.
    "paper": Config(
        preset="paper",
        learner=LearnerConfig(
            loss="vtrace",
            minibatch_envs=32,
            epochs=1,
            trace=1.0,
            reward_scale=0.1,
            entropy_cost=0.005,
            level_pool=0,
        ),
        train=TrainConfig(
            steps=260_417,
            batch_size=96,
            optimizer="rmsprop",
            beta2=0.99,
            epsilon=0.1,
            learning_rate=2e-4,
            schedule="linear",
            clip_norm=40.0,
            chunk_steps=50,
            eval_every=2000,
            eval_samples=960,
            checkpoint_every=2000,
        ),
    ),
}
"""The presets by name."""
