r"""Curricula of the character-level tasks: how difficulty is drawn and increased.

Difficulty is the length of literals and the nesting of programs. Zaremba and Sutskever ("Learning
to Execute", section 4) and the authors' data set draw it for a sample in one of four ways, up to
the config's L and N:

============  ===========================================================================
curriculum    length, nesting of a sample
============  ===========================================================================
``fixed``     L, N: used for evaluation
``mix``       uniform over 1..L and 1..N, separately for each sample: the paper's training
``naive``     those of the current level
``combined``  uniform up to those of the current level, separately for each sample
============  ===========================================================================

The level of the last two begins at (1, 1). It is part of a `CurriculumState`, which belongs to the
training state and is restored when a run resumes. The authors' rule increases it, given the last w
losses, if

.. math:: \frac{\mathrm{mean}_i (l_{i+1} - l_i)}{\mathrm{mean}_i \, l_i} < \theta

Then the length increases by one, or the nesting once the length is L, and the window is cleared.
The authors use w = 10 and θ = 0.1. This accepts falling and **constant** losses, and losses that
rise by less than a tenth per update: if every step's loss is reported, (L, N) is reached after w
steps per level, whatever was learned. θ = 0 requires falling losses, a larger w more steps per
level.

Differences from Zaremba and Sutskever: they reset the length when the nesting increases, and in
their code one combined sample in five is drawn as in ``mix``. Difference from an earlier version of
the authors' script: its ``mix`` draws the nesting from 1..L as well.
"""

import dataclasses
import math
import numbers
from typing import Literal, NamedTuple, Self, TypeAlias, get_args

import jax
import jax.numpy as jnp

from rrnn_jax.checks import check_choice, check_positive, check_shape
from rrnn_jax.tasks.characters import VOCABULARY
from rrnn_jax.typing import Array

Curriculum: TypeAlias = Literal["mix", "fixed", "naive", "combined"]
"""How difficulty is drawn."""

LEVELLED = ("naive", "combined")
"""The curricula with levels."""


class Difficulty:
    """The base of the configs of the character-level tasks, which are frozen dataclasses.

    Attributes:
      length: L, the largest length.
      nesting: N, the largest nesting.
      curriculum: how difficulty is drawn.
      curriculum_window: w, the number of losses used for a decision.
      curriculum_threshold: θ, the relative change of the loss below which the level increases.
    """

    length: int
    nesting: int
    curriculum: Curriculum
    curriculum_window: int
    curriculum_threshold: float

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return len(VOCABULARY)

    @property
    def hardest(self) -> Self:
        """The same task at full length and nesting, for evaluation."""
        return dataclasses.replace(self, curriculum="fixed")  # type: ignore[type-var]


class CurriculumState(NamedTuple):
    """A level and its losses.

    Attributes:
      length: int32 scalar, the level's length.
      nesting: int32 scalar, its nesting.
      losses: ``[w]`` float32, the last losses, the newest last.
      count: int32 scalar, the number of losses at this level.
    """

    length: Array
    nesting: Array
    losses: Array
    count: Array


def check_curriculum(config: Difficulty) -> None:
    """Raises unless the fields of `Difficulty` are valid."""
    check_positive(length=config.length, nesting=config.nesting)
    check_choice("curriculum", config.curriculum, get_args(Curriculum))
    check_positive(least=2, curriculum_window=config.curriculum_window)
    threshold = config.curriculum_threshold
    if not isinstance(threshold, numbers.Real) or not math.isfinite(threshold):
        raise ValueError(f"curriculum_threshold must be a finite number, got {threshold!r}")


def initial_state(config: Difficulty) -> CurriculumState:
    """The first level: (1, 1), or (L, N) for the curricula without levels.

    >>> from rrnn_jax.tasks import learn_to_execute
    >>> state = initial_state(learn_to_execute.Config(curriculum="naive"))
    >>> int(state.length), int(state.nesting)
    (1, 1)
    """
    has_levels = config.curriculum in LEVELLED
    return CurriculumState(
        length=jnp.int32(1 if has_levels else config.length),
        nesting=jnp.int32(1 if has_levels else config.nesting),
        losses=jnp.zeros((config.curriculum_window,), jnp.float32),
        count=jnp.int32(0),
    )


def advance(state: CurriculumState, loss: Array, config: Difficulty) -> CurriculumState:
    """Adds a loss, and raises the level according to the rule in the module's description.

    Pure and jittable (`config` static). NaN never raises a level.

    >>> from rrnn_jax.tasks import learn_to_execute
    >>> config = learn_to_execute.Config(length=3, curriculum="naive")
    >>> state = initial_state(config)
    >>> for _ in range(30):
    ...     state = advance(state, jnp.float32(1.0), config)
    >>> int(state.length), int(state.nesting)
    (3, 2)

    Args:
      state: the state.
      loss: a scalar.
      config: the task's config.

    Returns:
      The next state.
    """
    if config.curriculum not in LEVELLED:
        return state
    window, loss = config.curriculum_window, jnp.asarray(loss, jnp.float32)
    check_shape("loss", loss, (), "[]")
    losses = jnp.concatenate([state.losses[1:], loss[None]])
    count = jnp.minimum(state.count + 1, window)
    # The mean change telescopes.
    change = (losses[-1] - losses[0]) / (window - 1)
    passed = (count == window) & (change < config.curriculum_threshold * jnp.mean(losses))
    longer = passed & (state.length < config.length)
    deeper = passed & ~longer & (state.nesting < config.nesting)
    return CurriculumState(
        length=state.length + longer.astype(jnp.int32),
        nesting=state.nesting + deeper.astype(jnp.int32),
        losses=losses,
        count=jnp.where(passed, 0, count),
    )


def draw(bits: Array, config: Difficulty, level: CurriculumState | None) -> tuple[Array, Array]:
    """Length and nesting of every sample.

    Args:
      bits: ``[B]`` uint32, random.
      config: the task's config.
      level: the curriculum's state; ignored by curricula without levels.

    Returns:
      Two arrays ``[B]`` int32.

    Raises:
      ValueError: a curriculum with levels and no `level`.
      TypeError: `level` is not a `CurriculumState`.
    """
    if level is not None and not isinstance(level, CurriculumState):
        raise TypeError(
            f"level must be a CurriculumState, got {level!r} of type {type(level).__name__}"
        )
    if config.curriculum not in LEVELLED:
        highest = (jnp.int32(config.length), jnp.int32(config.nesting))
    elif level is None:
        raise ValueError(
            f"level must be a CurriculumState for curriculum {config.curriculum!r}, got None"
        )
    else:
        highest = (level.length, level.nesting)
    length, nesting = (jnp.broadcast_to(x, bits.shape) for x in highest)
    if config.curriculum in ("fixed", "naive"):
        return length, nesting
    # One word for both: its remainder by the length, and the quotient's remainder by the nesting.
    length, nesting = length.astype(jnp.uint32), nesting.astype(jnp.uint32)
    draws = jax.lax.rem(bits, length), jax.lax.rem(jax.lax.div(bits, length), nesting)
    return draws[0].astype(jnp.int32) + 1, draws[1].astype(jnp.int32) + 1
