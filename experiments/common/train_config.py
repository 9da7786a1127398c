"""The training options of every experiment."""

import dataclasses
import math
from typing import Literal, get_args

from rrnn_jax.checks import check_choice

Optimizer = Literal["adam", "adamw", "rmsprop", "muon"]
Schedule = Literal["constant", "cosine", "linear"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    steps: int = 1000
    """Number of updates."""
    batch_size: int = 128
    """Sequences per update."""
    micro_batch_size: int | None = None
    """Sequences per pass: gradients of several passes are averaged into an update. Less memory, and
    on a CPU more speed. The result is the same, but for rounding, only if all sequences have
    equally many targets: a pass has the same weight as any other. None: the whole batch at once."""
    optimizer: Optimizer = "adam"
    """The optimiser. "muon": Muon for matrices, Adam for all other parameters."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    adam_learning_rate: float | None = None
    """Peak learning rate of Adam with "muon". None: learning_rate."""
    schedule: Schedule = "constant"
    """The schedule after the warm-up: constant, or a cosine or linear decay to zero."""
    hold: float = 0.0
    """Part, from 0 to 1, of the updates after the warm-up at the peak, before a decay."""
    warmup_steps: int = 0
    """Updates in which the rate rises from zero to its peak, linearly."""
    clip_norm: float | None = None
    """Largest global norm of the gradient. None: no clipping."""
    weight_decay: float = 0.0
    """Decay of weights (not of biases and norms) per update, times the rate; "adamw", and "muon"
    for its matrices."""
    beta1: float | None = None
    """Decay of the gradients' mean. None: 0.9, for matrices with "muon" 0.95; "rmsprop": no
    momentum."""
    beta2: float | None = None
    """Decay of the squared gradients' mean. None: 0.999; "rmsprop": 0.9."""
    epsilon: float | None = None
    """Added to the root of that mean; with "rmsprop" to the mean itself. None: 1e-8."""
    average_decay: float | None = None
    """Decay of an exponential average of the weights, which is evaluated too (metrics average_...)
    and not used otherwise. None: no average."""
    seed: int = 0
    """Seed of parameters and data."""
    num_seeds: int = 1
    """Runs with consecutive seeds, trained together in one program."""
    chunk_steps: int = 50
    """Updates per call of the device; metrics are means over a chunk."""
    eval_every: int = 500
    """Updates between evaluations; rounded up to whole chunks."""
    eval_samples: int = 8192
    """Sequences per evaluation, fixed and separate from training; rounded up to whole batches."""
    checkpoint_every: int = 500
    """Updates between checkpoints; rounded up to whole chunks."""
    checkpoint_minutes: float | None = None
    """Longest time between checkpoints, in minutes. None: only checkpoint_every counts."""
    target: float | None = None
    """End at the first evaluation whose score, the mean of all seeds, is as good as this."""
    minutes: float | None = None
    """Save and end after this time, in minutes; the same command resumes. None: no limit."""
    devices: int | None = None
    """Number of devices to use. None: all."""

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, get_args(Optimizer))
        check_choice("schedule", self.schedule, get_args(Schedule))
        for name in (
            *("steps", "batch_size", "num_seeds", "chunk_steps"),
            *("eval_every", "eval_samples", "checkpoint_every"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.micro_batch_size is not None and (
            self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size
        ):
            raise ValueError(
                f"micro_batch_size must divide batch_size={self.batch_size}, "
                f"got {self.micro_batch_size}"
            )
        for name in ("learning_rate", "adam_learning_rate", "checkpoint_minutes", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"warmup_steps must lie between 0 and steps={self.steps}, got {self.warmup_steps}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        for name in ("hold", "beta1", "beta2", "average_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        if self.epsilon is not None and not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and not negative, got {self.epsilon}")
        if self.target is not None and math.isnan(self.target):
            raise ValueError("target must be a number, got nan")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, "
                             f"got {self.weight_decay}")  # fmt: skip
        if self.weight_decay and self.optimizer not in ("adamw", "muon"):
            raise ValueError(
                f"weight_decay must be 0 with optimizer={self.optimizer!r}, got {self.weight_decay}"
            )
        if self.adam_learning_rate is not None and self.optimizer != "muon":
            raise ValueError(
                f"adam_learning_rate must be None with optimizer={self.optimizer!r}, "
                f"got {self.adam_learning_rate}"
            )
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"devices must be at least 1, got {self.devices}")
        if not 0 <= self.seed < 2**31 - self.num_seeds:
            raise ValueError(f"seed must be a non-negative int32, got {self.seed}")

    @property
    def micro_batches(self) -> int:
        """Passes per update."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of this run."""
        return tuple(range(self.seed, self.seed + self.num_seeds))
