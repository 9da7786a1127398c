"""Options and presets of BoxWorld.

``quick``: ``python -m experiments.box_world``; minutes on 2 CPU cores.
``smoke``: ``python -m experiments.box_world --preset smoke``; one lock and no distractor.
``paper``: ``python -m experiments.box_world --preset paper``; the paper's sizes, for a GPU.
What to expect of them stands in README.md, with the hardware it was measured on.
"""

import dataclasses
from typing import Literal

from experiments.common.actor_critic.cores import AgentConfig
from experiments.common.actor_critic.learner import LearnerConfig
from experiments.common.train_config import TrainConfig
from rrnn_jax.envs import BoxWorld


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The levels."""

    grid_size: int = 12
    """Cells along a side, without the border."""
    solution_length: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Boxes on the way to the gem: drawn from these."""
    num_distractors: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Boxes that waste a key: drawn from these."""
    viewport: bool = True
    """Show 5 x 5 cells around the player, not the grid."""
    max_steps: int = 120
    """The step after this many ends an episode."""
    test_episodes: int = 1000
    """Episodes of the test, on fresh levels."""

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.test_episodes < 1:
            raise ValueError(
                f"max_steps and test_episodes must be at least 1, got {self.max_steps} and "
                f"{self.test_episodes}"
            )
        make_env(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run's numbers depend on."""

    preset: Literal["quick", "smoke", "paper"] = "quick"
    """Which defaults: "quick" and "smoke" (minutes on 2 CPU cores), or "paper"."""
    model: Literal["all", "rmc", "lstm", "conv_lstm", "none"] = "rmc"
    """Which core; "none" is an agent without memory; "all" trains one after the other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of products. Parameters, norms, softmax and memory are float32 always."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    learner: LearnerConfig = dataclasses.field(default_factory=LearnerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def make_env(task: TaskConfig) -> BoxWorld:
    """The environment of a config."""
    return BoxWorld(
        grid_size=task.grid_size,
        solution_length=tuple(task.solution_length),
        num_distractors=tuple(task.num_distractors),
        viewport=task.viewport,
        max_steps=task.max_steps,
    )


_SMALL = AgentConfig(head_size=16, lstm_features=64, conv_features=16, width=64)
_QUICK = TrainConfig(
    steps=600,
    batch_size=256,
    learning_rate=1e-3,
    schedule="linear",
    epsilon=1e-5,
    clip_norm=0.5,
    chunk_steps=5,
    eval_every=25,
    eval_samples=512,
    checkpoint_every=50,
)

PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick",
        task=TaskConfig(grid_size=8, solution_length=(1, 2), num_distractors=(0, 1), max_steps=60),
        agent=_SMALL,
        learner=LearnerConfig(
            epochs=3, entropy_cost=0.02, final_entropy_cost=0.005, easy_share=0.25
        ),
        train=_QUICK,
    ),
    "smoke": Config(
        preset="smoke",
        model="lstm",
        task=TaskConfig(grid_size=6, solution_length=(1,), num_distractors=(0,), max_steps=60),
        agent=_SMALL,
        learner=LearnerConfig(epochs=3, entropy_cost=0.01),
        train=dataclasses.replace(_QUICK, steps=40, eval_every=10),
    ),
    # Paper A.3: 100 actors, minibatches of 32 trajectories of 40 steps, entropy cost 0.005,
    # discount 0.99, 1e9 frames, rates between 1e-5 and 2e-4. 96 is the next multiple of 32. The
    # optimiser and the baseline's cost are not stated; these are IMPALA's.
    "paper": Config(
        preset="paper",
        agent=AgentConfig(),
        learner=LearnerConfig(
            loss="vtrace",
            minibatch_envs=32,
            epochs=1,
            trace=1.0,
            entropy_cost=0.005,
            level_pool=65536,
            fresh_levels=64,
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
