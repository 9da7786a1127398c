"""Options and presets of Nth Farthest.

``quick``: ``python -m experiments.nth_farthest``; the paper's task, minutes on 2 CPU cores.
``laptop``: ``--preset laptop``; the same core trained longer, about an hour on one CPU core.
``paper``: ``--preset paper``; the paper's sizes, for a GPU.
``small``: ``--preset small``; 4 objects of 4 features without a curriculum, minutes on 2 cores.
README.md has results and the hardware they were measured on.
"""

import dataclasses
from typing import Literal

from experiments.common.cells import CellConfigs, LSTMConfig, ModelName, RMCConfig
from experiments.common.train_config import TrainConfig
from experiments.nth_farthest.curriculum import CurriculumConfig
from rrnn_jax.checks import check_positive
from rrnn_jax.tasks import nth_farthest
from rrnn_jax.typing import Implementation


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task."""

    num_objects: int = 8
    """Objects in a sequence."""
    num_features: int = 16
    """Size of an object's vector."""

    def __post_init__(self) -> None:
        nth_farthest.Config(self.num_objects, self.num_features)


@dataclasses.dataclass(frozen=True)
class Config(CellConfigs):
    """The settings that determine a run's results."""

    preset: Literal["quick", "laptop", "paper", "small"] = "quick"
    """Which defaults: "quick" (minutes on 2 CPU cores), "laptop" (an hour or so), "paper" (the
    paper's sizes, for a GPU) or "small" (4 objects of 4 features)."""
    model: ModelName = "all"
    """Which model; "all" trains the memory core, then the LSTM, and compares them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of products. Parameters, norms, softmax and memory are always float32."""
    implementation: Implementation = "auto"
    """How the memory core runs over a sequence, see rrnn_jax.RNN."""
    readout_features: int = 256
    """Width of each of the read-out's four layers."""
    staged: bool = True
    """Train with the curriculum; otherwise on the evaluated task from the start."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_positive(readout_features=self.readout_features)


STAGES = CurriculumConfig(
    # The farthest, behind the reference; the reference anywhere; then more and more ranks, and
    # vectors that are nearly uniform in the end.
    ranks=(1, 1, 1, 2, 4, 0, 0),
    reference_first=(1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0),
    correlation=(1.0, 1.0, 0.8, 0.8, 0.8, 0.6, 0.2),
    least_correlation=(1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0),
    earlier_weight=(0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1),
    until_accuracy=(0.68, 0.5, 0.5, 0.42, 0.36, 0.58),
    # A model that does not reach the accuracy still gets all ranks in the end.
    max_updates=(600, 500, 800, 700, 600, 1500),
    accuracy_updates=50,
)
"""The curriculum of all presets with the paper's task."""

_QUICK = Config(
    preset="quick",
    readout_features=128,
    rmc=RMCConfig(mem_slots=8, num_heads=4, head_size=16),
    lstm=LSTMConfig(lstm_features=132),
    curriculum=STAGES,
    train=TrainConfig(
        steps=4000,
        batch_size=512,
        optimizer="muon",
        # The best of four for each model: experiments/results/nth_farthest/recipe.json (core) and
        # laptop_rates.json (LSTM).
        learning_rate=2e-2,
        adam_learning_rate=2e-3,
        schedule="cosine",
        hold=0.8,
        warmup_steps=100,
        clip_norm=1.0,
        chunk_steps=25,
        eval_every=100,
        eval_samples=4096,
        checkpoint_every=200,
        checkpoint_minutes=5,
    ),
)

PRESETS: dict[str, Config] = {
    "quick": _QUICK,
    "laptop": dataclasses.replace(
        _QUICK,
        preset="laptop",
        lstm=dataclasses.replace(_QUICK.lstm, lstm_learning_rate=2e-2),
        train=dataclasses.replace(
            _QUICK.train,
            steps=12_000,
            learning_rate=1e-2,
            hold=0.4,
            eval_every=200,
            eval_samples=16_384,
        ),
    ),
    # Paper A.1: batch 1600, 2048 units over 8 slots, a read-out of 4 x 256. The number of updates
    # is not stated there; its optimiser is Adam at 1e-4. 8,000 updates of one seed take a
    # minute of an H200 with `implementation="cuda"`.
    "paper": Config(
        preset="paper",
        model="all",
        dtype="bfloat16",
        curriculum=STAGES,
        lstm=LSTMConfig(lstm_learning_rate=2e-2),
        train=dataclasses.replace(
            _QUICK.train,
            steps=8000,
            batch_size=1600,
            learning_rate=1e-2,
            num_seeds=3,
            hold=0.5,
            chunk_steps=100,
            eval_every=300,
            eval_samples=16_000,
            checkpoint_every=2000,
        ),
    ),
    "small": Config(
        preset="small",
        staged=False,
        task=TaskConfig(num_objects=4, num_features=4),
        rmc=RMCConfig(mem_slots=4, num_heads=2, head_size=32),
        lstm=LSTMConfig(lstm_features=128),
        train=TrainConfig(
            steps=2300,
            batch_size=2048,
            micro_batch_size=256,
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=100,
            clip_norm=1.0,
            chunk_steps=25,
            eval_every=100,
            eval_samples=16384,
            checkpoint_every=400,
        ),
    ),
}
"""The presets by name."""


def check(config: Config) -> None:
    """Checks a config as far as its own fields cannot, see `CurriculumConfig.check`."""
    config.curriculum.check(config.staged, PRESETS[config.preset].curriculum)
