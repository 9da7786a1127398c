"""Options and presets of Nth Farthest.

``quick``: ``python -m experiments.nth_farthest``; minutes on 2 CPU cores.
``paper``: ``python -m experiments.nth_farthest --preset paper``; the paper's sizes, for a GPU.
What to expect of both stands in README.md, with the hardware it was measured on.
"""

import dataclasses
from typing import Literal

from experiments.common.train_config import TrainConfig
from rrnn_jax.checks import check_positive
from rrnn_jax.tasks import nth_farthest


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
class RMCConfig:
    """The Relational Memory Core."""

    mem_slots: int = 8
    """Memory slots."""
    num_heads: int = 8
    """Attention heads."""
    head_size: int = 32
    """Size of a head; a slot is num_heads * head_size wide."""
    num_blocks: int = 1
    """Attention blocks per step."""
    mlp_layers: int = 2
    """Layers of the row-wise MLP."""
    gate_style: Literal["unit", "memory", "none"] = "unit"
    """A gate per memory unit, per slot, or none."""

    def __post_init__(self) -> None:
        check_positive(
            mem_slots=self.mem_slots,
            num_heads=self.num_heads,
            head_size=self.head_size,
            num_blocks=self.num_blocks,
            mlp_layers=self.mlp_layers,
        )


@dataclasses.dataclass(frozen=True)
class LSTMConfig:
    """The LSTM baseline."""

    lstm_features: int = 512
    """Width of a layer."""
    lstm_layers: int = 1
    """Layers, with skip connections."""

    def __post_init__(self) -> None:
        check_positive(lstm_features=self.lstm_features, lstm_layers=self.lstm_layers)


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run's numbers depend on."""

    preset: Literal["quick", "paper"] = "quick"
    """Which defaults: "quick" (minutes on 2 CPU cores) or "paper" (the paper's sizes)."""
    model: Literal["all", "rmc", "lstm"] = "all"
    """Which model; "all" trains one after the other and compares them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of products. Parameters, norms, softmax and memory are float32 always."""
    implementation: Literal["auto", "scan", "hoisted", "fused"] = "auto"
    """How the memory core runs over a sequence, see rrnn_jax.RNN."""
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    rmc: RMCConfig = dataclasses.field(default_factory=RMCConfig)
    lstm: LSTMConfig = dataclasses.field(default_factory=LSTMConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick",
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
    # Paper A.1: 8 vectors of 16 features, batch 1600, Adam at 1e-4, 2048 units over 8 slots.
    # The number of updates is not stated there.
    "paper": Config(
        preset="paper",
        task=TaskConfig(),
        rmc=RMCConfig(),
        lstm=LSTMConfig(),
        train=TrainConfig(
            steps=500_000,
            batch_size=1600,
            learning_rate=1e-4,
            chunk_steps=100,
            eval_every=1000,
            eval_samples=16_000,
            checkpoint_every=1000,
        ),
    ),
}
"""The presets by name."""
