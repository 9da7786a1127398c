r"""Memorization: copying, reversing or doubling a number read digit by digit.

The memory tasks of Zaremba and Sutskever ("Learning to Execute", section 3.3) in the authors' data
set (paper appendix A.2, figure 7; google-deepmind/sonnet, branch v1,
``sonnet/examples/learn_to_execute.py``). The number is uniform over those with exactly `length`
digits:

===========  =========  =====================
task         input      target
===========  =========  =====================
``copy``     ``1820``   ``1820``
``reverse``  ``1820``   ``0281``
``double``   ``1820``   ``18201820``
===========  =========  =====================

With L the config's length, inputs have :math:`L + 1` characters, targets :math:`L + 1`, or
:math:`2L + 1` for ``double``; the rest is padding.

**The trivial score**, of one constant digit per position, is about 10 %: see `trivial_accuracy`.
"""

import dataclasses
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.checks import check_choice, check_config, check_positive
from rrnn_jax.tasks import characters, curriculum, programs
from rrnn_jax.tasks.characters import PAD as PAD
from rrnn_jax.tasks.characters import START as START
from rrnn_jax.tasks.characters import VOCABULARY as VOCABULARY
from rrnn_jax.tasks.characters import Batch as Batch
from rrnn_jax.tasks.characters import check_text, make_batch, write_digits
from rrnn_jax.tasks.characters import decode as decode
from rrnn_jax.tasks.curriculum import Curriculum as Curriculum
from rrnn_jax.tasks.curriculum import CurriculumState as CurriculumState
from rrnn_jax.tasks.curriculum import advance as advance
from rrnn_jax.tasks.curriculum import initial_state as initial_state
from rrnn_jax.typing import Array

Task: TypeAlias = Literal["copy", "reverse", "double"]
"""The operation on a number."""


@dataclasses.dataclass(frozen=True)
class Config(curriculum.Difficulty):
    """The operation on numbers, and their length.

    >>> config = Config("double", length=5)
    >>> config.input_steps, config.output_steps, config.vocab_size
    (6, 11, 45)

    Attributes:
      task: "copy", "reverse" or "double" (default: "copy").
      length: L, digits of the longest numbers (default: 10).
      curriculum: "mix", "fixed", "naive" or "combined", see `rrnn_jax.tasks.curriculum` (default:
        "mix").
      curriculum_window: number of losses used to decide on the level (default: 10).
      curriculum_threshold: relative change of the loss below which the level increases (default:
        0.1).

    Raises:
      ValueError: a value out of range, or an unknown name.
      TypeError: a size that is not an integer.
    """

    task: Task = "copy"
    length: int = 10
    curriculum: Curriculum = "mix"
    curriculum_window: int = 10
    curriculum_threshold: float = 0.1

    def __post_init__(self) -> None:
        check_choice("task", self.task, get_args(Task))
        curriculum.check_curriculum(self)

    @property
    def nesting(self) -> int:  # type: ignore[override]
        """Always 1: numbers do not nest."""
        return 1

    @property
    def input_steps(self) -> int:
        """T_in, the characters of an input, including padding."""
        return self.length + 1

    @property
    def output_steps(self) -> int:
        """T_out, the characters of a target, including padding."""
        return (2 if self.task == "double" else 1) * self.length + 1


def sample(
    key: Array, config: Config, batch_size: int, level: CurriculumState | None = None
) -> Batch:
    """Draws numbers and their answers.

    >>> import jax
    >>> config = Config("reverse", length=4, curriculum="fixed")
    >>> batch = jax.jit(sample, static_argnums=(1, 2))(jax.random.key(0), config, 32)
    >>> batch.inputs.shape, batch.targets.shape
    ((32, 5), (32, 5))
    >>> decode(batch.targets[0]) == evaluate(decode(batch.inputs[0]), "reverse")
    True

    Args:
      key: a PRNG key.
      config: the task (static under jit).
      batch_size: B (static under jit).
      level: the curriculum's state; required by "naive" and "combined", ignored by the others.

    Returns:
      A `Batch`.

    Raises:
      ValueError: `batch_size` below 1, or a missing level.
      TypeError: `config` is of another task, `batch_size` is not an integer, or `level` not a
        `CurriculumState`.
    """
    check_config(config, Config)
    check_positive(batch_size=batch_size)
    words = programs.words_per_literal(config.length)
    bits = jax.random.bits(key, (1 + words, batch_size), jnp.uint32)
    lengths, _ = curriculum.draw(bits[0], config, level)
    digits = programs.draw_literals(bits[1:], lengths, config.length)
    number = write_digits(digits, lengths, config.input_steps)
    step = jax.lax.broadcasted_iota(jnp.int32, (batch_size, config.output_steps), 1)
    length = lengths[:, None]
    if config.task == "reverse":
        place = length - 1 - step
    elif config.task == "double":
        place = jnp.where(step < length, step, step - length)
    else:
        place = step
    place = jnp.clip(place, 0, config.length)
    targets = jnp.take_along_axis(number, place, axis=1, mode="promise_in_bounds")
    target_lengths = 2 * lengths if config.task == "double" else lengths
    return make_batch(number, lengths, targets, target_lengths)


def evaluate(number: str, task: Task) -> str:
    """The answer to a number.

    >>> [evaluate("1820", task) for task in ("copy", "reverse", "double")]
    ['1820', '0281', '18201820']

    Args:
      number: its digits.
      task: the operation.

    Returns:
      The target.

    Raises:
      ValueError: `number` contains anything but digits, or `task` is unknown.
      TypeError: `number` is not a string.
    """
    check_text("number", number)
    check_choice("task", task, get_args(Task))
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"number must consist of digits, got {number!r}")
    if task == "reverse":
        return number[::-1]
    return number * 2 if task == "double" else number


def encode(number: str, config: Config) -> np.ndarray:
    """The tokens of a number, padded like a batch's inputs.

    >>> encode("57", Config(length=3))
    array([18, 20, 11, 11], dtype=int32)

    Args:
      number: its digits.
      config: determines T_in.

    Returns:
      ``[T_in]`` int32.

    Raises:
      ValueError: a character outside the vocabulary, or too many characters.
      TypeError: not a string.
    """
    return characters.encode(number, config.input_steps, "number")


def trivial_accuracy(config: Config, key: Array | None = None, samples: int = 12_800) -> float:
    """The score of the best constant character for every position, without reading numbers.

    It is measured at full length, whatever the curriculum. About 10 %.

    Args:
      config: the task.
      key: a PRNG key (default: ``jax.random.key(0)``).
      samples: how many numbers to measure it on (default: the paper's number of test samples).

    Returns:
      The share of correct characters of the targets.
    """
    key = jax.random.key(0) if key is None else key
    check_positive(samples=samples)
    batch = jax.jit(sample, static_argnums=(1, 2))(key, config.hardest, samples)
    return float(characters.constant_accuracy(batch.targets, batch.target_mask))
