"""Options and presets of program evaluation.

``quick``: ``python -m experiments.program_evaluation``; 2 CPU cores.
``paper``: ``python -m experiments.program_evaluation --preset paper``; the paper's sizes, for a
GPU. README.md has results and the hardware they were measured on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from experiments.common.cells import (
    CellConfigs,
    DNCConfig,
    EntNetConfig,
    LSTMConfig,
    ModelName,
    RMCConfig,
)
from experiments.common.train_config import TrainConfig
from rrnn_jax.checks import check_positive
from rrnn_jax.typing import Implementation

MEMORIZATION = ("copy", "reverse", "double")
TASKS = ("addition", "control", "program", "copy", "reverse", "double")
"""The columns of the paper's Table 1; the meaning of "all"."""
MODELS = ("lstm", "entnet", "dnc", "rmc")
"""The rows of the paper's Table 1; the meaning of "all"."""


TaskName = Literal["all", "addition", "control", "program", "copy", "reverse", "double", "algebra"]


@dataclasses.dataclass(frozen=True)
class DifficultyConfig:
    """The difficulty of the tasks."""

    length: int = 5
    """Largest number of digits of a program's literals."""
    nesting: int = 2
    """Largest number of nested operations of a program."""
    memorization_length: int = 5
    """Largest number of digits to copy, reverse or double."""
    curriculum: Literal["mix", "fixed", "naive", "combined"] = "mix"
    """The curriculum: "mix", uniform up to the largest, separately for each sample; "fixed", the
    largest; "naive", a level that rises unless the loss does; "combined", uniform up to that level.
    With the usual window and threshold it rises every 10 updates, see rrnn_jax.tasks.curriculum.
    Evaluation always uses the largest."""
    curriculum_window: int = 10
    """Number of losses that "naive" and "combined" use to decide on the level."""
    curriculum_threshold: float = 0.1
    """Relative change of the loss per update below which they raise it."""

    def __post_init__(self) -> None:
        check_positive(
            length=self.length,
            nesting=self.nesting,
            memorization_length=self.memorization_length,
        )

    def check(self, tasks: Sequence[str], usual: "DifficultyConfig") -> None:
        """Checks that every option which differs from the preset's has an effect.

        Args:
          tasks: the tasks of an experiment.
          usual: the options of the preset.

        Raises:
          ValueError: one has none; the message names it.
        """
        memorized = [task in MEMORIZATION for task in tasks]
        shown = f"for {', '.join(tasks)}"
        idle = {
            "length": shown if all(memorized) else None,
            "nesting": shown if all(memorized) else None,
            "memorization_length": None if any(memorized) else shown,
        }
        if self.curriculum in ("mix", "fixed"):
            shown = f"with curriculum={self.curriculum!r}"
            idle |= {"curriculum_window": shown, "curriculum_threshold": shown}
        for name, reason in idle.items():
            value = getattr(self, name)
            if reason and value != getattr(usual, name):
                raise ValueError(f"{name} must be left out {reason}, got {value}")


@dataclasses.dataclass(frozen=True)
class Config(CellConfigs):
    """The settings that determine a run's results."""

    preset: Literal["quick", "paper"] = "quick"
    """Which defaults: "quick" (2 CPU cores) or "paper" (the paper's sizes)."""
    task: TaskName = "all"
    """Which task; "all" is every column of the paper's Table 1, one after the other."""
    model: ModelName = "all"
    """Which model; "all" trains one after the other and compares them."""
    decoding: Literal["non_autoregressive", "teacher_forced", "autoregressive"] = (
        "non_autoregressive"
    )
    """The input of the decoder: nothing, the previous character of the target, or its own. In
    evaluation "teacher_forced" also uses its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of products. Parameters, norms, softmax and memory are always float32."""
    implementation: Implementation = "auto"
    """How the memory core runs over a sequence, see rrnn_jax.RNN."""
    difficulty: DifficultyConfig = dataclasses.field(default_factory=DifficultyConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of this config."""
        return TASKS if self.task == "all" else (self.task,)

    @property
    def models(self) -> tuple[str, ...]:
        """The models of this config."""
        return MODELS if self.model == "all" else (self.model,)

    @property
    def is_single(self) -> bool:
        """Whether this is one run: one task and one model."""
        return "all" not in (self.task, self.model)


PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick",
        difficulty=DifficultyConfig(length=2, nesting=1, memorization_length=5),
        rmc=RMCConfig(mem_slots=4, num_heads=4, head_size=16),
        lstm=LSTMConfig(lstm_features=60, lstm_layers=2),
        dnc=DNCConfig(
            memory_size=16,
            word_size=16,
            num_reads=2,
            lstm_size=48,
            feedforward_size=176,
            dnc_outputs=64,
        ),
        entnet=EntNetConfig(num_cells=4, cell_size=80),
        train=TrainConfig(
            steps=3000,
            batch_size=128,
            learning_rate=4e-3,  # Among the best for each model, see README.md.
            schedule="cosine",
            warmup_steps=100,
            clip_norm=1.0,
            chunk_steps=50,
            eval_every=500,
            eval_samples=12_800,
            checkpoint_every=1000,
        ),
    ),
    # Paper A.2: batch 128, 200K updates, Adam at 1e-3, 12,800 samples per evaluation. Sizes are
    # those of the sweeps there; which of them were the best for a task is not stated.
    "paper": Config(
        preset="paper",
        rmc=RMCConfig(mem_slots=4, num_heads=4, head_size=128, gate_style="memory"),
        lstm=LSTMConfig(lstm_features=1024, lstm_layers=2),
        train=TrainConfig(
            steps=200_000,
            batch_size=128,
            learning_rate=1e-3,
            chunk_steps=100,
            eval_every=1000,
            eval_samples=12_800,
            checkpoint_every=1000,
        ),
    ),
}
"""The presets by name."""
