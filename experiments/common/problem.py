r"""The interface between the training loop and a task with a model: state, update, evaluations.

The state of a *problem* is one pytree with everything that changes in training: the parameters, the
optimiser's state, and for example a curriculum's level, carries of a stream, or environments. The
loop (`experiments.common.loop`) scans its `update` over chunks of updates, maps it over seeds,
divides it over devices, saves and restores the state bit-exactly, and writes metrics. The loop does
not depend on losses or on "accuracy".

`experiments.common.supervised.supervised` builds problems from batches (drawn from a key, sliced on
the host, or drawn from data on the device), `experiments.common.streaming.streaming` from a file
with a carry between batches. You can also define one directly:

>>> import jax, jax.numpy as jnp
>>> class State(NamedTuple):
...     params: jax.Array
>>> def update(state, key, batch):
...     params = state.params + jax.random.normal(key)
...     return State(params), {"loss": Mean.of(params**2)}
>>> def judge(state, carry, key, batch):
...     return carry, {"distance": Mean.of(jnp.abs(state.params))}
>>> walk = Problem(
...     init=lambda key: State(jnp.zeros(())),
...     update=update,
...     evaluations={"valid": Evaluation(step=judge, num_steps=1)},
...     score=Score("distance", "max"),
... )
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Params = Any
State = Any
Batch = Any


class Mean(NamedTuple):
    """A mean that can be pooled: totals and counts are summed separately.

    A mean with count 0 is undefined, for example the return of episodes in a chunk in which no
    episode ends; rows of metrics omit it.

    >>> pooled = Mean.of(jnp.array([1.0, 0.0])) + Mean.of(jnp.array([1.0, 1.0, 1.0, 0.0]))
    >>> round(float(pooled.value()), 4)
    0.6667
    """

    total: jax.Array
    count: jax.Array

    @staticmethod
    def of(values: jax.Array, weights: jax.Array | None = None) -> "Mean":
        """The mean of `values`, weighted by `weights` (bool or float, same shape)."""
        values = values.astype(jnp.float32)
        if weights is None:
            return Mean(jnp.sum(values), jnp.float32(values.size))
        weights = weights.astype(jnp.float32)
        # `where` instead of a product: values with zero weight may be NaN.
        return Mean(jnp.sum(jnp.where(weights > 0, values, 0.0) * weights), jnp.sum(weights))

    def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> jax.Array:
        """The mean; 0 if the count is 0."""
        return self.total / jnp.maximum(self.count, 1e-9)


Metrics = Mapping[str, Mean]


class Score(NamedTuple):
    """The main metric of a problem's evaluations.

    Curves, the progress bar, the best checkpoint, `TrainConfig.target` and tables use it.

    Attributes:
      name: name of the metric.
      goal: whether higher ("max") or lower ("min") values are better.
      trivial: the trivial score, drawn into plots; None if there is none.
      label: axis label in plots (default: the name).
      limits: limits of that axis (default: those of the values).
      text: format of a value, for example ``"{:.1%}"``.
    """

    name: str
    goal: Literal["max", "min"] = "max"
    trivial: float | None = None
    label: str | None = None
    limits: tuple[float, float] | None = None
    text: str = "{:.4g}"

    def write(self, values: Sequence[float | None]) -> str:
        """The mean of the seeds that have a value, formatted.

        >>> Score("accuracy", text="{:.1%}").write([0.5, None, 0.25])
        '37.5%'
        """
        mean = self.mean(values)
        return "none" if mean is None else self.text.format(mean)

    def mean(self, values: Sequence[float | None]) -> float | None:
        """The mean of the seeds that have a value; None if none has."""
        found = [value for value in values if value is not None]
        return sum(found) / len(found) if found else None

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value is better than another, or than none.

        >>> Score("perplexity", "min").is_better(9.0, than=10.0)
        True
        """
        return than is None or (value > than if self.goal == "max" else value < than)

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is as good as a target."""
        return value >= target if self.goal == "max" else value <= target


def accuracy(trivial: float | None = None, label: str = "accuracy on fresh samples") -> Score:
    """The score of tasks whose answers are right or wrong, metric ``accuracy``."""
    limits = (0.0, 1.02)  # Otherwise a curve at 1 would be on the frame.
    return Score("accuracy", "max", trivial, label, limits, "{:.1%}")


Feed = Callable[[int, int], Any]
"""``feed(step, num_steps) -> batches``: NumPy arrays, ``[num_steps, ...]`` in every leaf.

The batches of updates (or of evaluation steps) `step`, `step + 1`, ... A pure function: a step
always has the same batch, so a resumed run needs no position in the data. It is called for the next
chunk while the device computes the current one. The second axis is the batch axis, which is divided
over devices. Seeds share the batches. With several processes each calls it for the whole batch and
keeps its own rows.
"""


def no_carry(state: State) -> tuple[()]:
    """An empty carry for evaluations."""
    del state
    return ()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation on one stream of data.

    Attributes:
      step: ``step(state, carry, key, batch) -> (carry, metrics)``, scanned; the key depends on the
        seed, the evaluation's name and the step's number, so every evaluation uses the same keys.
      num_steps: number of steps.
      init: ``init(state) -> carry`` before the first step (default: no carry).
      feed: the batches, see `Feed`; without one `batch` is None.
      samples: the number of samples if an option that may change sets it, other than
        `TrainConfig.eval_samples`: a recorded test on another number is not used again.
    """

    step: Callable[..., tuple[Any, Metrics]]
    num_steps: int
    init: Callable[..., Any] = no_carry
    feed: Feed | None = None
    samples: int | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task and a model; see the module's description.

    With `data`, it is an additional last argument of `init`, `update` and the functions of
    evaluations: large arrays are arguments of the compiled program, not constants.

    Attributes:
      init: ``init(key) -> state``, a pytree with an attribute ``params``. No leaf may be a typed
        key (`jax.random.key`); use `jax.random.key_data`.
      update: ``update(state, key, batch) -> (state, metrics)``, pure; the key is
        ``fold_in(key of the seed, step)``. Use `experiments.common.parallel.split_rows` to divide a
        batch, or other arrays with a row for each sequence or environment, over devices.
      evaluations: by name. "valid" is computed at intervals and used for curves and the best
        checkpoint; "test", if it exists, only for a finished run and by ``--eval-only``.
      score: the problem's score, a metric of "valid".
      feed: the batches, see `Feed`; without one `batch` is None.
      data: arrays that stay on the device; one copy on each.
      rows: names of the state's fields whose leaves begin with the batch axis; they are divided
        over devices, and all others are copied to each.
      show: ``show(state) -> text``: a few examples with the model's answers, printed and appended
        to ``samples.txt`` at every evaluation, for the first seed (default: none). It runs on the
        host and must jit its device code.
    """

    init: Callable[..., State]
    update: Callable[..., tuple[State, Metrics]]
    evaluations: Mapping[str, Evaluation]
    score: Score
    feed: Feed | None = None
    data: Any = None
    rows: tuple[str, ...] = ()
    show: Callable[[State], str] | None = None

    def __post_init__(self) -> None:
        if "valid" not in self.evaluations:
            raise ValueError(f"evaluations must have 'valid', got {sorted(self.evaluations)}")
