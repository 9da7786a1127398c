"""Memorization: copy, reverse or double a number read digit by digit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.checks import check_choice, check_positive
from rrnn_jax.tasks import characters, curriculum, programs
from rrnn_jax.tasks.characters import VOCABULARY as VOCABULARY
from rrnn_jax.tasks.characters import ZERO, make_batch
from rrnn_jax.tasks.characters import Batch as Batch
from rrnn_jax.tasks.characters import decode as decode
from rrnn_jax.tasks.curriculum import CurriculumState
from rrnn_jax.typing import Array

TASKS = ("copy", "reverse", "double")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is to be done with numbers, and how long they are."""

    task: str = "copy"
    length: int = 10
    curriculum: str = "mix"
    curriculum_window: int = 10
    curriculum_threshold: float = 0.1

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        curriculum.check_curriculum(self)

    @property
    def nesting(self) -> int:
        """1: numbers do not nest."""
        return 1

    @property
    def input_steps(self) -> int:
        """T_in."""
        return self.length + 1

    @property
    def output_steps(self) -> int:
        """T_out."""
        return (2 if self.task == "double" else 1) * self.length + 1

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(VOCABULARY)

    @property
    def hardest(self) -> "Config":
        """The same task at full length, which models are judged by."""
        return dataclasses.replace(self, curriculum="fixed")


def sample(
    key: Array, config: Config, batch_size: int, level: CurriculumState | None = None
) -> Batch:
    """Draws numbers and their answers."""
    check_positive(batch_size=batch_size)
    per_literal = programs.words_per_literal(config.length)
    bits = jax.random.bits(key, (1 + per_literal, batch_size), jnp.uint32)
    length, _ = curriculum.draw(bits[0], config, level)
    digits = programs.draw_literal(bits[1:], length, config.length)
    stacked = ZERO + jnp.stack(digits, axis=-1).astype(jnp.int32)
    lengths = jnp.broadcast_to(jnp.asarray(length, jnp.int32), (batch_size,))

    def read(place: Array) -> Array:
        place = jnp.clip(place, 0, config.length - 1)
        return jnp.take_along_axis(stacked, place, axis=1, mode="promise_in_bounds")

    step = jax.lax.broadcasted_iota(jnp.int32, (batch_size, config.input_steps), 1)
    inputs = read(lengths[:, None] - 1 - step)
    step = jax.lax.broadcasted_iota(jnp.int32, (batch_size, config.output_steps), 1)
    if config.task == "reverse":
        place = step
    elif config.task == "copy":
        place = lengths[:, None] - 1 - step
    else:
        again = jnp.where(step >= lengths[:, None], step - lengths[:, None], step)
        place = lengths[:, None] - 1 - again
    target_lengths = 2 * lengths if config.task == "double" else lengths
    return make_batch(inputs, lengths, read(place), target_lengths)


def encode(number: str, config: Config) -> np.ndarray:
    """The tokens of a number, padded to T_in."""
    return characters.encode(number, config.input_steps)


def evaluate(number: str, config: Config) -> str:
    """The answer to a number."""
    if config.task == "reverse":
        return number[::-1]
    return number * 2 if config.task == "double" else number


def trivial_accuracy(config: Config, key: Array | None = None, samples: int = 12_800) -> float:
    """The score of the best constant character per position, at full length."""
    key = jax.random.key(0) if key is None else key
    batch = sample(key, config.hardest, samples)
    return float(characters.constant_accuracy(batch.targets, batch.target_mask))
