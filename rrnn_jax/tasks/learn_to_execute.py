"""Learning to execute: read a program character by character, then write what it evaluates to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.checks import check_choice, check_positive
from rrnn_jax.tasks import characters, curriculum, decimals, programs
from rrnn_jax.tasks.characters import PAD as PAD
from rrnn_jax.tasks.characters import START as START
from rrnn_jax.tasks.characters import VOCABULARY as VOCABULARY
from rrnn_jax.tasks.characters import ZERO, make_batch
from rrnn_jax.tasks.characters import Batch as Batch
from rrnn_jax.tasks.characters import decode as decode
from rrnn_jax.tasks.curriculum import CurriculumState
from rrnn_jax.tasks.evaluator import evaluate as evaluate
from rrnn_jax.typing import Array

OPERATORS = ("+", "-", "*", "if", "for")
TASKS = {
    "addition": ("+",),
    "control": ("if", "for"),
    "program": OPERATORS,
    "algebra": ("+", "-", "*"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What programs are made of."""

    task: str | tuple[str, ...] = "program"
    length: int = 5
    nesting: int = 2
    curriculum: str = "mix"
    curriculum_window: int = 10
    curriculum_threshold: float = 0.1

    def __post_init__(self) -> None:
        curriculum.check_curriculum(self)
        if isinstance(self.task, str):
            check_choice("task", self.task, tuple(TASKS))

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that programs are made of."""
        return TASKS[self.task] if isinstance(self.task, str) else self.task

    @property
    def input_steps(self) -> int:
        """T_in."""
        return (3 * self.length + 12) * (self.nesting - 1) + 4 * self.length + 10

    @property
    def output_steps(self) -> int:
        """T_out."""
        return 2 * self.length

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(VOCABULARY)

    @property
    def hardest(self) -> "Config":
        """The same task at full length and nesting, which models are judged by."""
        return dataclasses.replace(self, curriculum="fixed")


def sample(
    key: Array, config: Config, batch_size: int, level: CurriculumState | None = None
) -> Batch:
    """Draws programs and their answers."""
    check_positive(batch_size=batch_size)
    count = programs.number_of_words(config.length, config.nesting, config.operators)
    bits = jax.random.bits(key, (1 + count, batch_size), jnp.uint32)
    length, nesting = curriculum.draw(bits[0], config, level)
    program = programs.draw_program(
        bits[1:], length, nesting, config.length, config.nesting, config.operators
    )
    inputs, input_lengths = programs.text(
        program, config.operators, config.length, config.input_steps
    )
    value = programs.value(program, config.operators, config.length)
    digits = decimals.to_digits(value)[: config.length + 1]
    if not isinstance(length, int):
        digits = [jnp.where(length >= i, digit, 0) for i, digit in enumerate(digits)]
    target_lengths = jnp.ones((batch_size,), jnp.int32)
    for i, digit in enumerate(digits):
        target_lengths = jnp.where(digit > 0, i + 1, target_lengths)
    stacked = jnp.stack(digits, axis=-1).astype(jnp.int32)
    step = jax.lax.broadcasted_iota(jnp.int32, (batch_size, config.output_steps), 1)
    place = jnp.maximum(target_lengths[:, None] - 1 - step, 0)
    targets = ZERO + jnp.take_along_axis(stacked, place, axis=1, mode="promise_in_bounds")
    return make_batch(inputs, input_lengths, targets, target_lengths)


def encode(program: str, config: Config) -> np.ndarray:
    """The tokens of a program, padded to T_in."""
    return characters.encode(program, config.input_steps)


def trivial_accuracy(config: Config, key: Array | None = None, samples: int = 12_800) -> float:
    """The score of the best constant character per position, at full difficulty."""
    key = jax.random.key(0) if key is None else key
    batch = sample(key, config.hardest, samples)
    return float(characters.constant_accuracy(batch.targets, batch.target_mask))
