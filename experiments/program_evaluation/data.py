"""Batches of the tasks, without padding beyond the longest possible sample."""

from typing import NamedTuple

import jax

from experiments.program_evaluation.config import MEMORIZATION, Config
from rrnn_jax.tasks import learn_to_execute, memorization
from rrnn_jax.tasks.characters import Batch, constant_accuracy
from rrnn_jax.tasks.curriculum import CurriculumState

TaskConfig = learn_to_execute.Config | memorization.Config
TRIVIAL_SAMPLES = 12_800

# Characters of an operation beside its operands, and literals beside its first operand: "a+b",
# "aifb<celsed", "x=afor[3]x+=b".
_OPERATIONS = {"+": (1, 1), "-": (1, 1), "*": (1, 1), "if": (7, 3), "for": (11, 1)}


class Task(NamedTuple):
    """A task at a difficulty.

    Attributes:
      config: config of `rrnn_jax.tasks.learn_to_execute` or `rrnn_jax.tasks.memorization`.
      input_steps: characters of the longest input.
      output_steps: characters of the longest answer.
    """

    config: TaskConfig
    input_steps: int
    output_steps: int

    def sample(self, key: jax.Array, level: CurriculumState, batch_size: int) -> Batch:
        """Samples of the curriculum, for training."""
        return self._sample(self.config, key, batch_size, level)

    def sample_hardest(self, key: jax.Array, batch_size: int) -> Batch:
        """Samples at maximum difficulty, for evaluation."""
        return self._sample(self.config.hardest, key, batch_size, None)

    def trivial_accuracy(self) -> float:
        """The score of the best constant character for each position, at maximum difficulty."""

        @jax.jit  # Takes seconds without jit.
        def score() -> jax.Array:
            batch = self.sample_hardest(jax.random.key(0), TRIVIAL_SAMPLES)
            return constant_accuracy(batch.targets, batch.target_mask)

        return float(score())

    def _sample(
        self, config: TaskConfig, key: jax.Array, batch_size: int, level: CurriculumState | None
    ) -> Batch:
        if isinstance(config, memorization.Config):
            batch = memorization.sample(key, config, batch_size, level)
        else:
            batch = learn_to_execute.sample(key, config, batch_size, level)
        return batch._replace(
            inputs=batch.inputs[:, : self.input_steps],
            input_mask=batch.input_mask[:, : self.input_steps],
            targets=batch.targets[:, : self.output_steps],
            target_mask=batch.target_mask[:, : self.output_steps],
        )


def make_task(config: Config) -> Task:
    """The task of a config.

    >>> import dataclasses
    >>> from experiments.program_evaluation.config import PRESETS
    >>> make_task(dataclasses.replace(PRESETS["paper"], task="addition")).input_steps
    19
    """
    difficulty = config.difficulty
    curriculum = (
        difficulty.curriculum,
        difficulty.curriculum_window,
        difficulty.curriculum_threshold,
    )
    if config.task in MEMORIZATION:
        length = difficulty.memorization_length
        task = memorization.Config(config.task, length, *curriculum)
        outputs = 2 * length if config.task == "double" else length
        return Task(task, length, outputs)
    program = learn_to_execute.Config(
        config.task, difficulty.length, difficulty.nesting, *curriculum
    )
    return Task(program, _longest_program(program), program.length + 1)


def _longest_program(config: learn_to_execute.Config) -> int:
    """Characters of the longest program: each operation's first operand may be one in brackets."""
    sizes = [_OPERATIONS[symbol] for symbol in config.operators]
    operation = max(own + literals * config.length for own, literals in sizes)
    return config.length + config.nesting * operation + 2 * (config.nesting - 1)
