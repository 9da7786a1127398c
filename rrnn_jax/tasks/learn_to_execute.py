r"""Learning to execute: reading a program character by character, and writing its value.

The task is Zaremba and Sutskever's ("Learning to Execute", 2014) in the variant that the authors of
the Relational Memory Core trained on (paper section 4.2 and appendix A.2; data set in
google-deepmind/sonnet, branch v1, ``sonnet/examples/learn_to_execute.py``).

A program of nesting n consists of n operations, drawn uniformly from those of the task. The first
operand of an operation is the previous operation in parentheses; all other operands are literals,
uniform over the numbers with exactly `length` digits:

========  ====================  ================================================
operator  text                  value
========  ====================  ================================================
``+``     ``a+b``               a + b
``-``     ``a-b``               a - b
``*``     ``a*b``               a b
``if``    ``aifb>celsed``       a if b > c, else d (``<`` likewise, half of them)
``for``   ``x=afor[k]x+=b``     a + k b, with k uniform over 1..9
========  ====================  ================================================

The answer is the value modulo :math:`10^{\mathrm{length} + 1}`, never negative. ``control`` and
``program`` are the paper's "control" and "full program".

With L and N the config's length and nesting, inputs have
:math:`T_\mathrm{in} = (3L + 12)(N - 1) + 4L + 10` characters and targets
:math:`T_\mathrm{out} = 2L`, the authors' sizes; the rest is padding. There is no end token, so
models get the lengths.

**The trivial score**, of one constant digit per position, is not zero: see `trivial_accuracy`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.checks import check_choice, check_config, check_positive
from rrnn_jax.tasks import characters, curriculum, decimals, program_text, programs
from rrnn_jax.tasks.characters import PAD as PAD
from rrnn_jax.tasks.characters import START as START
from rrnn_jax.tasks.characters import VOCABULARY as VOCABULARY
from rrnn_jax.tasks.characters import Batch as Batch
from rrnn_jax.tasks.characters import decode as decode
from rrnn_jax.tasks.characters import make_batch, write_digits
from rrnn_jax.tasks.curriculum import Curriculum as Curriculum
from rrnn_jax.tasks.curriculum import CurriculumState as CurriculumState
from rrnn_jax.tasks.curriculum import advance as advance
from rrnn_jax.tasks.curriculum import initial_state as initial_state
from rrnn_jax.tasks.evaluator import evaluate as evaluate
from rrnn_jax.typing import Array

OPERATORS = ("+", "-", "*", "if", "for")
"""All operators."""

TASKS = {
    "addition": ("+",),
    "control": ("if", "for"),
    "program": OPERATORS,
    "algebra": ("+", "-", "*"),
}
"""Operators of the named tasks."""

MAX_LENGTH = decimals.MAX_LIMBS * decimals.DIGITS - 1
"""The most digits of literals for which answers are exact."""


@dataclasses.dataclass(frozen=True)
class Config(curriculum.Difficulty):
    """The form of programs; the defaults are those of the paper's table 1.

    >>> config = Config("control")
    >>> config.operators, config.input_steps, config.output_steps, config.vocab_size
    (('if', 'for'), 57, 10, 45)

    Attributes:
      task: "addition", "control", "program", "algebra", or a tuple of operators out of
        ``("+", "-", "*", "if", "for")`` (default: "program").
      length: L, digits of the longest literals, up to `MAX_LENGTH` (default: 5).
      nesting: N, operations of the deepest programs (default: 2).
      curriculum: "mix", "fixed", "naive" or "combined", see `rrnn_jax.tasks.curriculum` (default:
        "mix").
      curriculum_window: number of losses used to decide on the level (default: 10).
      curriculum_threshold: relative change of the loss below which the level increases (default:
        0.1).

    Raises:
      ValueError: a value out of range, an unknown name, or operators that repeat.
      TypeError: a size that is not an integer, or a task that is neither a name nor a tuple.
    """

    task: str | tuple[str, ...] = "program"
    length: int = 5
    nesting: int = 2
    curriculum: Curriculum = "mix"
    curriculum_window: int = 10
    curriculum_threshold: float = 0.1

    def __post_init__(self) -> None:
        curriculum.check_curriculum(self)
        if self.length > MAX_LENGTH:
            raise ValueError(f"length must be at most {MAX_LENGTH}, got {self.length}")
        if isinstance(self.task, str):
            check_choice("task", self.task, tuple(TASKS))
            return
        if not isinstance(self.task, tuple):
            raise TypeError(
                f"task must be a name or a tuple of operators, got {self.task!r} of type "
                f"{type(self.task).__name__}"
            )
        if not self.task or len(set(self.task)) < len(self.task):
            raise ValueError(
                f"task must hold at least one operator, and each once; got {self.task}"
            )
        for name in self.task:
            check_choice("operators in task", name, OPERATORS)

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators to draw from."""
        return TASKS[self.task] if isinstance(self.task, str) else self.task

    @property
    def input_steps(self) -> int:
        """T_in, the characters of an input, including padding."""
        return (3 * self.length + 12) * (self.nesting - 1) + 4 * self.length + 10

    @property
    def output_steps(self) -> int:
        """T_out, the characters of a target, including padding."""
        return 2 * self.length


def sample(
    key: Array, config: Config, batch_size: int, level: CurriculumState | None = None
) -> Batch:
    """Draws programs and their answers.

    >>> import jax
    >>> config = Config("addition", curriculum="fixed")
    >>> batch = jax.jit(sample, static_argnums=(1, 2))(jax.random.key(0), config, 32)
    >>> batch.inputs.shape, batch.targets.shape
    ((32, 57), (32, 10))
    >>> program = decode(batch.inputs[0])  # Such as "(98475+92741)+82456".
    >>> decode(batch.targets[0]) == evaluate(program, length=5)
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
    bits = jax.random.bits(key, (1 + programs.number_of_words(config), batch_size), jnp.uint32)
    bits = jax.lax.optimization_barrier(bits)
    length, nesting = curriculum.draw(bits[0], config, level)
    drawn = programs.draw(bits[1:], length, nesting, config)
    inputs, input_lengths = program_text.write(drawn, config, config.input_steps)
    digits, target_lengths = programs.answers(drawn, config)
    targets = write_digits(digits, target_lengths, config.output_steps)
    return make_batch(inputs, input_lengths, targets, target_lengths)


def encode(program: str, config: Config) -> np.ndarray:
    """The tokens of a program, padded like a batch's inputs.

    >>> encode("5+7", Config("addition", length=1, nesting=1))[:5]
    array([18,  9, 20, 11, 11], dtype=int32)

    Args:
      program: a program.
      config: determines T_in.

    Returns:
      ``[T_in]`` int32.

    Raises:
      ValueError: a character outside the vocabulary, or too many characters.
      TypeError: not a string.
    """
    return characters.encode(program, config.input_steps, "program")


def trivial_accuracy(config: Config, key: Array | None = None, samples: int = 12_800) -> float:
    """The score of the best constant character for every position, without reading programs.

    It is measured at full difficulty, whatever the curriculum. About 20 % for "addition", 12 % for
    "control" and 13 % for "program" at the default sizes.

    Args:
      config: the task.
      key: a PRNG key (default: ``jax.random.key(0)``).
      samples: number of programs to measure it on (default: the paper's number of test programs).

    Returns:
      The share of correct characters of the targets.
    """
    key = jax.random.key(0) if key is None else key
    check_positive(samples=samples)
    batch = jax.jit(sample, static_argnums=(1, 2))(key, config.hardest, samples)
    return float(characters.constant_accuracy(batch.targets, batch.target_mask))
