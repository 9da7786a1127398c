"""The options of training that every experiment has."""

import dataclasses
import math
from typing import Literal

import optax


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    steps: int = 1000
    """Updates in all."""
    batch_size: int = 128
    """Sequences per update."""
    micro_batch_size: int | None = None
    """Sequences per pass: gradients of several passes are averaged into an update. Less memory, and
    on a CPU more speed, for the same result. None: the whole batch at once."""
    learning_rate: float = 1e-3
    """Peak learning rate of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: the peak rate to the end, or a cosine to zero."""
    warmup_steps: int = 0
    """Updates in which the rate rises from zero to its peak, linearly."""
    clip_norm: float | None = None
    """Largest global norm of the gradient. None: no clipping."""
    seed: int = 0
    """Seed of parameters and data."""
    num_seeds: int = 1
    """Runs with consecutive seeds, trained side by side in one program."""
    chunk_steps: int = 50
    """Updates per call of the device; metrics are means over a chunk."""
    eval_every: int = 500
    """Updates between evaluations; rounded up to whole chunks."""
    eval_samples: int = 8192
    """Sequences per evaluation, drawn once and apart from the training's; rounded up to whole
    batches."""
    checkpoint_every: int = 500
    """Updates between checkpoints; rounded up to whole chunks."""

    def __post_init__(self) -> None:
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
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(
                f"warmup_steps must lie between 0 and steps={self.steps}, got {self.warmup_steps}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if not 0 <= self.seed < 2**31 - self.num_seeds:
            raise ValueError(f"seed must be a non-negative int32, got {self.seed}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of this run."""
        return tuple(range(self.seed, self.seed + self.num_seeds))


def make_schedule(config: TrainConfig) -> optax.Schedule:
    """The learning rate of each update.

    >>> schedule = make_schedule(TrainConfig(steps=10, warmup_steps=2, schedule="cosine"))
    >>> [round(float(schedule(step)), 5) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.0005, 0.001, 0.0005, 0.0]
    """
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            config.learning_rate, max(config.steps - config.warmup_steps, 1)
        )
    else:
        after = optax.constant_schedule(config.learning_rate)
    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam, with clipping before it if asked for."""
    adam = optax.adam(make_schedule(config))
    if config.clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
