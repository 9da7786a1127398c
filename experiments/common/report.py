r"""Comparison of runs: seeds in pairs, at equal updates and at equal time.

The difference of two models is computed seed by seed, because the same seed means the same data.
Its interval is a bootstrap interval: the `n` seeds are resampled with replacement, and the interval
contains the middle of the means of their differences, from the quantile :math:`\alpha` to
:math:`1 - \alpha`,

.. math:: \frac{1}{n} \sum_{j=1}^{n} d_{i_j}, \quad i_j \sim U\{1, \dots, n\},
   \quad d_i = a_i - b_i, \qquad
   \alpha = \Phi\Big(\sqrt{\tfrac{n}{n - 1}} \; t_{0.025, n - 1}\Big).

The middle 95 %, :math:`\alpha = 0.025`, is too narrow for few seeds: of equal models it excludes
zero in 15 % of all comparisons with five seeds. These quantiles correct for that (Hesterberg, "What
Teachers Should Know About the Bootstrap", 2015): 7 % with five seeds and 5 % with ten if the
differences are normal, about 12 % and 11 % if they are as skewed as an exponential distribution.

A model counts as better only if that interval excludes zero and there are five seeds or more.
"""

import bisect
import csv
import io
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from experiments.common import markdown
from experiments.common.loop import TIMINGS_FILE
from experiments.common.metrics import first_step_at, read_curves
from experiments.common.problem import Score
from experiments.common.records import read_json, read_rows
from experiments.common.refused import RefusedError
from experiments.common.run_directory import SUMMARY_FILE

FEWEST_SEEDS = 5
"""With fewer seeds no model counts as better."""
_EXACT = 50_000
_DRAWS = 20_000

Verdict = Literal["better", "worse", "not told apart"]
Interval = tuple[float, float]


class SeedCurve(NamedTuple):
    """One seed of a run.

    Attributes:
      steps: the evaluated updates, ascending.
      values: the score of the stream "valid" at each of them.
      seconds: seconds of training until each, without compilation and evaluations, divided by the
        number of seeds trained together.
      test: the score of the stream "test" after the last update; None without one.
    """

    steps: list[int]
    values: list[float]
    seconds: list[float]
    test: float | None

    def reaches(self, score: float, goal: str) -> tuple[int, float] | None:
        """Update and time of the first evaluation as good as `score`; None if there is none."""
        step = first_step_at(self.steps, self.values, score, goal)
        return None if step is None else (step, self.seconds[self.steps.index(step)])

    def after(self, seconds: float) -> float:
        """The score of the last evaluation within a time."""
        return self.values[max(bisect.bisect_right(self.seconds, seconds) - 1, 0)]


class Run(NamedTuple):
    """A finished run of one model.

    Attributes:
      score: the score.
      seeds: the seeds by number.
      parameters: number of parameters; `core_parameters` of them in the recurrent core.
      core_parameters: None if the model has no core.
      seconds_per_update: seconds of training per update and seed.
    """

    score: Score
    seeds: dict[int, SeedCurve]
    parameters: int
    core_parameters: int | None
    seconds_per_update: float

    @property
    def seconds(self) -> float:
        """The mean time of a seed."""
        return statistics.fmean(seed.seconds[-1] for seed in self.seeds.values())


def read_run(run_dir: Path) -> Run:
    """Reads a finished run.

    Raises:
      FileNotFoundError: the run is not finished.
      RefusedError: evaluations or their times are missing.
    """
    if not (run_dir / SUMMARY_FILE).exists():
        raise FileNotFoundError(f"{run_dir} holds no finished run")
    summary = read_json(run_dir / SUMMARY_FILE)
    times = {row["step"]: row["seconds"] for row in read_rows(run_dir / TIMINGS_FILE)}
    curves = read_curves(run_dir, summary["score"]["name"], summary["seeds"])
    evaluated = {step for steps, _ in curves.values() for step in steps if step}
    if lost := sorted(evaluated - times.keys()):
        path = run_dir / TIMINGS_FILE
        raise RefusedError(f"{path} must hold the seconds of all evaluated updates, but lacks "
                           f"{len(lost)} of {len(evaluated)}, such as {lost[0]}")  # fmt: skip
    return _run(summary, curves, times)


def run_of(record: Mapping[str, Any]) -> Run:
    """A finished run from its record, see `experiments.common.results`; not from joined ones."""
    curves = record[record["summary"]["score"]["name"]]
    by_seed = {int(seed): (curve["step"], curve["value"]) for seed, curve in curves.items()}
    seconds = record["seconds"]
    times = dict(zip(seconds["step"], seconds["value"], strict=True))
    return _run(record["summary"], by_seed, times)


def _run(
    summary: Mapping[str, Any],
    curves: Mapping[int, tuple[list[int], list[float]]],
    times: Mapping[int, float],
) -> Run:
    """A run from its summary, its curves by seed, and the seconds by update."""
    score, seeds = summary["score"], summary["seeds"]
    count = len(seeds)
    tests = summary.get("test", {}).get(score["name"]) or [None] * count
    return Run(
        Score(score["name"], score["goal"]),
        {
            s: SeedCurve(*curves[s], [times[x] / count if x else 0.0 for x in curves[s][0]], test)
            for s, test in zip(seeds, tests, strict=True)
        },
        summary["parameters"],
        summary.get("core_parameters"),
        summary["train_seconds"] / max(summary["steps"] * count, 1),
    )


def joined(runs: Sequence[Run]) -> Run:
    """Joins runs of the same model with different seeds; the time per update is their mean."""
    seeds = {number: seed for run in runs for number, seed in sorted(run.seeds.items())}
    weights = [len(run.seeds) for run in runs]
    times = [run.seconds_per_update for run in runs]
    seconds = sum(w * x for w, x in zip(weights, times, strict=True)) / sum(weights)
    return runs[0]._replace(seeds=dict(sorted(seeds.items())), seconds_per_update=seconds)


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval | None:
    """The bootstrap interval of the mean of ``a - b``, in pairs; None with fewer than two pairs.

    All resamples are enumerated for up to six pairs; otherwise there are 20,000 random ones, always
    the same.

    >>> paired_interval([0.9, 0.8], [0.5, 0.7])  # Two differences: from one to the other.
    (0.1, 0.4)

    Args:
      a: scores by seed.
      b: scores of the same seeds.
      level: level of the interval.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    count = len(differences)
    if count < 2:
        return None
    if count**count <= _EXACT:
        picks = np.array(list(itertools.product(range(count), repeat=count)))
    else:
        picks = np.random.default_rng(0).integers(0, count, (_DRAWS, count))
    narrow = math.sqrt(count / (count - 1)) * stats.t.ppf((1 - level) / 2, count - 1)
    tail = stats.norm.cdf(narrow)
    means = differences[picks].mean(axis=1)
    low, high = np.quantile(means, [tail, 1 - tail], method="inverted_cdf")
    return round(float(low), 12), round(float(high), 12)


def verdict(interval: Interval | None, num_seeds: int, goal: str = "max") -> Verdict:
    """The verdict for the interval of a difference.

    >>> verdict((0.1, 0.4), 5), verdict((-0.1, 0.4), 5), verdict((0.1, 0.4), 2)
    ('better', 'not told apart', 'not told apart')
    >>> verdict((0.1, 0.4), 5, goal="min")
    'worse'
    """
    if interval is None or num_seeds < FEWEST_SEEDS or interval[0] <= 0 <= interval[1]:
        return "not told apart"
    return "better" if (interval[0] > 0) == (goal == "max") else "worse"


class Difference(NamedTuple):
    """The difference of two models, over their common seeds.

    Attributes:
      mean: mean of ``a - b``.
      interval: its bootstrap interval, see `paired_interval`.
      verdict: the verdict on a, see `verdict`.
    """

    mean: float
    interval: Interval | None
    verdict: Verdict


def difference(a: Sequence[float], b: Sequence[float], goal: str = "max") -> Difference:
    """The difference of two models' scores, in pairs.

    >>> difference([0.9, 0.8], [0.5, 0.7]).verdict  # Two seeds are too few.
    'not told apart'

    Args:
      a: scores by seed.
      b: scores of the same seeds.
      goal: 'max' if higher scores are better, otherwise 'min'.
    """
    interval = paired_interval(a, b)
    mean = statistics.fmean(a) - statistics.fmean(b)
    return Difference(mean, interval, verdict(interval, len(a), goal))


def points(found: Difference, digits: int = 1) -> str:
    """A difference in percent, with its interval.

    >>> points(Difference(0.25, (0.1, 0.4), "better"))
    '+25.0 (+10.0 to +40.0)'
    """
    mean = f"{100 * found.mean:+.{digits}f}"
    if found.interval is None:
        return mean
    low, high = (100 * bound for bound in found.interval)
    return f"{mean} ({low:+.{digits}f} to {high:+.{digits}f})"


def spread(shares: Sequence[float], sign: str = "") -> str:
    """The mean of several seeds in percent, and their range.

    >>> spread([0.9, 0.94], " %"), spread([0.9])
    ('92.0 % (90.0 to 94.0)', '90.0')
    """
    low, mean, high = (100 * f(shares) for f in (min, statistics.fmean, max))
    return f"{mean:.1f}{sign}" + (f" ({low:.1f} to {high:.1f})" if len(shares) > 1 else "")


def compare(runs: Mapping[str, Run]) -> list[dict[str, Any]]:
    """A row for each model compared with the first: after equal updates, and after equal time.

    After equal updates the score is that of the test stream at the end, if all have a test stream
    and the same last update; otherwise of the validation stream at the last common update. After
    equal time it is that of the validation stream after the time of the fastest run, as a share of
    each run's own time: seeds that trained on their own may have been slower than others.

    Args:
      runs: by model; only common seeds are compared.

    Raises:
      RefusedError: they have no seed or, but for the start, no evaluated update in common.
    """
    seeds = sorted(set.intersection(*({*run.seeds} for run in runs.values())))
    if not seeds:
        raise RefusedError("the runs have no seed in common")
    ends = {seed.steps[-1] for run in runs.values() for seed in run.seeds.values()}
    has_test = all(seed.test is not None for run in runs.values() for seed in run.seeds.values())
    by_test = len(ends) == 1 and has_test
    budget = min(run.seconds for run in runs.values())
    steps = set.intersection(*({*run.seeds[s].steps} for run in runs.values() for s in run.seeds))
    if not (step := max(steps, default=0)):
        raise RefusedError("the runs were not evaluated after any update in common")

    def at_updates(seed: SeedCurve, run: Run) -> float:
        del run
        value = seed.test if by_test else seed.values[seed.steps.index(step)]
        assert value is not None
        return value

    rows: list[dict[str, Any]] = []

    def at_time(seed: SeedCurve, run: Run) -> float:
        return seed.after(budget / run.seconds * seed.seconds[-1])

    for at, value in (("updates", at_updates), ("time", at_time)):
        found = {name: [value(run.seeds[s], run) for s in seeds] for name, run in runs.items()}
        first = next(iter(found))
        for name, values in found.items():
            run, base = runs[name], found[first]
            row: dict[str, Any] = {"at": at, "model": name, "score": run.score.name}
            row |= {"stream": "test" if by_test and at == "updates" else "valid"}
            row |= {"update": step} if at == "updates" else {"seconds": round(budget, 1)}
            row |= {"seeds": seeds, "values": values, "mean": statistics.fmean(values)}
            if name != first:
                found_difference = difference(values, base, run.score.goal)
                row["difference"], row["interval"], row["verdict"] = found_difference
            row |= {"parameters": run.parameters, "core_parameters": run.core_parameters}
            rows.append({**row, "seconds_per_update": run.seconds_per_update})
    return rows


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compare` as two tables."""
    blocks = []
    for at in dict.fromkeys(row["at"] for row in rows):
        some = [row for row in rows if row["at"] == at]
        first = some[0]
        when = f"after {first['update']:,} updates" if at == "updates" else (
            f"after {first['seconds']:,} seconds of each seed")  # fmt: skip
        head = [
            *("model", f"{first['score']} ({first['stream']})", "seeds"),
            *(f"difference from {first['model']}, 95 %", "verdict"),
            *("parameters (core)", "ms/update"),
        ]
        text = markdown.table(head, map(_cells, some))
        blocks.append(f"At equal {at}, {when}:\n\n{text}\n")
    return "\n".join(blocks)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compare`; lists are joined by spaces."""
    buffer = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            name: " ".join(map(str, value)) if isinstance(value, list | tuple) else value
            for name, value in row.items()
        })  # fmt: skip
    return buffer.getvalue()


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = row.get("interval")
    difference = "-"
    if "difference" in row:
        difference = f"{row['difference']:+.4g}"
        difference += f" ({interval[0]:+.4g} to {interval[1]:+.4g})" if interval else " (one seed)"
    core = "" if row["core_parameters"] is None else f" ({row['core_parameters']:,})"
    return [
        *(row["model"], text_of(row["values"]), str(len(row["seeds"]))),
        *(difference, row.get("verdict", "-"), f"{row['parameters']:,}{core}"),
        f"{1e3 * row['seconds_per_update']:.3g}",
    ]


def text_of(values: Sequence[float]) -> str:
    """Mean and range of the seeds.

    >>> text_of([1.0, 2.0])
    '1.5 (1 to 2)'
    """
    mean = f"{statistics.fmean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4g} to {max(values):.4g})"
