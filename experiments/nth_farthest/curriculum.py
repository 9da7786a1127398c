r"""The stages of training (presets: `config.STAGES`). Evaluation always uses the paper's task.

Stages differ in the correlation of objects with the reference (see the equation in
`rrnn_jax.tasks.nth_farthest`), in the ranks, in the share of sequences that show the reference
first, and in the weight w of answers before the last step:

.. math:: \mathrm{loss} = \mathrm{CE}_T + w \sum_{t<T,\ \mathrm{valid}} \mathrm{CE}_t

where the answer at step t is that of the same question for the objects shown so far, so a sequence
also contains questions about fewer objects.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.problem import Mean, Metrics
from experiments.common.supervised import Curriculum
from rrnn_jax.checks import check_positive
from rrnn_jax.tasks import nth_farthest


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """The stages: a value of every option for each, or one value for all."""

    correlation: tuple[float, ...] = (0.0,)
    """Largest correlation of objects with the reference, from 0 (uniform vectors) to 1."""
    least_correlation: tuple[float, ...] = (0.0,)
    """Smallest correlation; each sequence draws its own between the two."""
    ranks: tuple[int, ...] = (0,)
    """Number of ranks to ask for, from the farthest; 0, or more than there are objects: all."""
    reference_first: tuple[float, ...] = (0.0,)
    """Share of sequences whose reference is the first object; in the others it is random."""
    earlier_weight: tuple[float, ...] = (0.0,)
    """Weight of the loss at each step before the last that has an answer."""
    until_accuracy: tuple[float, ...] = ()
    """Training accuracy at which each stage but the last is left."""
    max_updates: tuple[int, ...] = ()
    """Updates after which each stage but the last is left in any case; 0: never."""
    accuracy_updates: int = 50
    """Updates that the training accuracy is averaged over (a stage lasts at least as many)."""

    def __post_init__(self) -> None:
        check_positive(accuracy_updates=self.accuracy_updates)
        for name in _STAGED:
            values = getattr(self, name)
            if len(values) not in (1, self.num_stages):
                raise ValueError(
                    f"{name} must have 1 value or one for each of {self.num_stages} stages, "
                    f"got {values}"
                )
        for name in _LEAVING:
            values = getattr(self, name)
            if len(values) not in (0, self.num_stages - 1):
                raise ValueError(
                    f"{name} must have a value for each of {self.num_stages} stages but the last, "
                    f"got {values}"
                )
        if self.num_stages > 1 and not (self.until_accuracy or all(self.max_updates or (0,))):
            raise ValueError("max_updates must be positive without until_accuracy, "
                             f"got {self.max_updates}")  # fmt: skip
        for name in ("correlation", "least_correlation", "reference_first", "until_accuracy"):
            if not all(0 <= value <= 1 for value in getattr(self, name)):
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for low, high in zip(
            self.by_stage("least_correlation"), self.by_stage("correlation"), strict=True
        ):
            if low > high:
                raise ValueError(
                    f"least_correlation must be at most correlation={self.correlation}, "
                    f"got {self.least_correlation}"
                )
        for name in ("ranks", "earlier_weight", "max_updates"):
            if not all(value >= 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def check(self, staged: bool, usual: "CurriculumConfig") -> None:
        """Checks the stages of an experiment.

        Args:
          staged: whether they are used.
          usual: those of the preset.

        Raises:
          ValueError: there are none, or they have no effect.
        """
        if staged and self == CurriculumConfig():
            raise ValueError("staged must be False without options of the curriculum, got True")
        if not staged and self not in (usual, CurriculumConfig()):
            raise ValueError("staged must be True with options of the curriculum, got False")

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        return max(len(getattr(self, name)) for name in _STAGED)

    def by_stage(self, name: str) -> tuple[Any, ...]:
        """An option's value in each stage.

        >>> CurriculumConfig((1.0, 0.5), until_accuracy=(0.7,), ranks=(0,)).by_stage("ranks")
        (0, 0)
        """
        values = getattr(self, name)
        return values * self.num_stages if len(values) == 1 else values

    @property
    def asks_earlier(self) -> bool:
        """Whether any stage has a loss before the last step."""
        return any(self.earlier_weight)


_STAGED = ("correlation", "least_correlation", "ranks", "reference_first", "earlier_weight")
_LEAVING = ("until_accuracy", "max_updates")


class Level(NamedTuple):
    """A seed's state in the curriculum, part of the training state.

    Attributes:
      stage: int32, from 0.
      updates: int32, updates in this stage.
      accuracy: float32, training accuracy in this stage over about `accuracy_updates` updates: an
        exponential average that begins as the plain mean.
    """

    stage: jax.Array
    updates: jax.Array
    accuracy: jax.Array


class Batch(NamedTuple):
    """Sequences, the answers at every step and the weights of their losses.

    Attributes:
      inputs: ``[B, T, I]`` float32.
      targets: ``[B, T]`` int32.
      weights: ``[B, T]`` float32, 0 where there is no answer.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


def make_curriculum(config: CurriculumConfig) -> Curriculum:
    """The stages as a `Curriculum` of the training loop."""
    until, limits = (_leaving(config, name) for name in _LEAVING)

    def advance(level: Level, metrics: Metrics) -> Level:
        stage, updates, mean = level
        updates = updates + 1
        count = jnp.minimum(updates, config.accuracy_updates).astype(jnp.float32)
        mean = mean + (metrics["accuracy"].value() - mean) / count
        has_learned = (mean >= until[stage]) & (updates >= config.accuracy_updates)
        leaves = has_learned | (updates >= limits[stage])
        return Level(
            stage + leaves.astype(jnp.int32),
            jnp.where(leaves, 0, updates),
            jnp.where(leaves, jnp.float32(0), mean),
        )

    first = Level(jnp.int32(0), jnp.int32(0), jnp.float32(0))
    return Curriculum(first, advance, lambda level: {"stage": Mean.of(level.stage)})


def sample(
    key: jax.Array,
    config: CurriculumConfig,
    task: nth_farthest.Config,
    stage: jax.Array,
    batch_size: int,
) -> Batch:
    """A batch of a stage."""

    def now(name: str, dtype: Any) -> jax.Array:
        return jnp.asarray(config.by_stage(name), dtype)[stage]

    ranks = now("ranks", jnp.int32)
    question = nth_farthest.sample_questions(
        key,
        task,
        batch_size,
        num_ranks=jnp.where(ranks == 0, task.num_objects, ranks),
        correlation=(now("least_correlation", jnp.float32), now("correlation", jnp.float32))
        if any(config.correlation)
        else None,
        reference_first=now("reference_first", jnp.float32)
        if any(config.reference_first)
        else None,
    )
    answers, valid = nth_farthest.answers_by_step(question)
    is_last = jnp.arange(task.num_objects, dtype=jnp.int32) == task.num_objects - 1
    weights = jnp.where(is_last, jnp.float32(1), now("earlier_weight", jnp.float32))
    weights = jnp.where(valid, jnp.broadcast_to(weights, valid.shape), 0.0)
    return Batch(nth_farthest.encode(question, task), answers, weights)


def _leaving(config: CurriculumConfig, name: str) -> jax.Array:
    """The bounds of one kind for each stage; infinite if there are none."""
    if name == "until_accuracy":
        values = config.until_accuracy or (2.0,) * (config.num_stages - 1)
        return jnp.asarray([*values, 2.0], jnp.float32)
    never = 2**31 - 1
    values = config.max_updates or (0,) * (config.num_stages - 1)
    return jnp.asarray([*(value or never for value in values), never], jnp.int32)
