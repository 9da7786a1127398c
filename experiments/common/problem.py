r"""What the training loop knows of a task and a model: a state, its update, and its evaluations.

A *problem* owns all that changes in training: one pytree with the parameters, the optimiser's state
and whatever else lives on from update to update (a curriculum's level, carries of a stream,
environments). The loop (`experiments.common.loop`) scans its `update` over chunks of updates, maps
it over seeds, divides it over devices, saves and restores the state to the bit, and writes metrics;
it knows neither losses nor "accuracy".

Problems are built by `experiments.common.supervised.supervised` (batches drawn from a key, sliced
on the host or drawn from data on the device), by `experiments.common.streaming.streaming` (a carry
that passes from batch to batch of a file), or by hand:

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
    """A mean that can be pooled: the total and the count are summed over batches apart.

    A mean of nothing (count 0) is not defined, as the return of episodes is in a chunk in which no
    episode ends; rows of metrics leave it out.

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
        # Where, not times: what stands under a zero weight may be NaN.
        return Mean(jnp.sum(jnp.where(weights > 0, values, 0.0) * weights), jnp.sum(weights))

    def __add__(self, other: "Mean") -> "Mean":  # type: ignore[override]
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> jax.Array:
        """The mean, to be computed with; 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1e-9)


Metrics = Mapping[str, Mean]


class Score(NamedTuple):
    """The metric of the evaluations that a problem is judged by.

    Curves, the progress bar, the best checkpoint, `TrainConfig.target` and tables use it.

    Attributes:
      name: of the metric.
      goal: whether more is better ("max") or less ("min").
      trivial: the score of not learning, drawn into plots; None where there is no such thing.
      label: what plots write at its axis (default: the name).
      limits: of that axis (default: those of the values).
      text: how a value is written, a format such as ``"{:.1%}"``.
    """

    name: str
    goal: Literal["max", "min"] = "max"
    trivial: float | None = None
    label: str | None = None
    limits: tuple[float, float] | None = None
    text: str = "{:.4g}"

    @property
    def best(self) -> Callable[..., Any]:
        """`max` or `min`."""
        return max if self.goal == "max" else min

    def write(self, values: Sequence[float | None]) -> str:
        """The mean of the seeds that have a value, for people.

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
    limits = (0.0, 1.02)  # A curve at 1 would lie on the frame.
    return Score("accuracy", "max", trivial, label, limits, "{:.1%}")


Feed = Callable[[int, int], Any]
"""``feed(step, num_steps) -> batches``: NumPy arrays, ``[num_steps, ...]`` in every leaf.

The batches of updates (or of evaluation steps) `step`, `step + 1`, ... A pure function: the same
step gives the same batch always, so that a resumed run needs no position in the data. Called for
the next chunk while the device computes the present one. The axis after the first is the batch's,
which is divided over devices. Seeds share the batches. With several processes every one calls it,
for the whole batch, and keeps its own rows.
"""


def no_carry(state: State) -> tuple[()]:
    """Nothing is carried from step to step of an evaluation."""
    del state
    return ()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One named stream that a state is judged on.

    Attributes:
      step: ``step(state, carry, key, batch) -> (carry, metrics)``, scanned; the key is a function
        of the seed, the evaluation's name and the step's number, so every evaluation is the same.
      num_steps: how often.
      init: ``init(state) -> carry`` before the first step (default: nothing is carried).
      feed: the batches, see `Feed`; without one `batch` is None.
    """

    step: Callable[..., tuple[Any, Metrics]]
    num_steps: int
    init: Callable[..., Any] = no_carry
    feed: Feed | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task and a model; see the module's text.

    With `data`, `init`, `update` and the functions of evaluations take it as one more, last
    argument: large arrays are an argument of the compiled program, never constants in it.

    Attributes:
      init: ``init(key) -> state``, a pytree with an attribute ``params``. No leaf is a key of a new
        style (`jax.random.key`); use `jax.random.key_data`.
      update: ``update(state, key, batch) -> (state, metrics)``, pure; the key is
        ``fold_in(key of the seed, step)``. A batch, or whatever has one row for each sequence or
        environment, is divided over devices by `experiments.common.parallel.split_rows`.
      evaluations: by name. "valid" is made at intervals and steers (curves, best checkpoint);
        "test", if there is one, is made of a finished run and by ``--eval-only`` only.
      score: what the problem is judged by, a metric of "valid".
      feed: the batches, see `Feed`; without one `batch` is None.
      data: arrays that stay on the device; one copy on each.
      rows: names of the state's fields whose leaves begin with the batch axis; they are divided
        over devices, all else is on each.
      show: ``show(state) -> text``: a few examples with the model's answers, printed and kept in
        ``samples.txt`` at every evaluation, for the first seed (default: none). It runs on the
        host, and jits what it runs on the device.
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
