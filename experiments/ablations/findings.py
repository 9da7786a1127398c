"""The findings of a grid: sentences generated from its numbers."""

from collections.abc import Mapping, Sequence

from experiments.ablations.collect import RowNumbers
from experiments.ablations.config import Config
from experiments.ablations.grid import BASE, base_values
from experiments.ablations.problems import describe_task
from experiments.common.report import FEWEST_SEEDS, Verdict, points, spread

NEAR_TRIVIAL = 0.02
"""A row has not learned if no seed exceeds the trivial score by more."""


def describe(config: Config, numbers: Mapping[str, RowNumbers], missing: Sequence[str]) -> str:
    """The findings of a grid.

    A row counts as better or worse than the base only if the bootstrap interval of its difference,
    in pairs of seeds, excludes zero, and there are enough seeds, see `experiments.common.report`.

    Args:
      config: the grid's config.
      numbers: the numbers of the finished rows, including the base.
      missing: names of the other rows.

    Returns:
      Markdown.
    """
    base = numbers[BASE]
    others = [row for name, row in numbers.items() if name != BASE and row.accuracy]
    found: dict[Verdict, list[RowNumbers]] = {"worse": [], "better": [], "not told apart": []}
    for row in others:
        found[row.against(base).verdict].append(row)
    found["worse"].sort(key=lambda row: row.mean)
    found["better"].sort(key=lambda row: -row.mean)
    failed = [row for row in numbers.values() if not row.accuracy]
    train = config.train
    trivial = float(base.trivial_accuracy or 0)
    lines = [
        f"{describe_task(config)}; {train.steps:,} updates of {train.batch_size} samples for every "
        f"row; {train.num_seeds} seeds per row. Not learning scores {trivial:.1%}; the base "
        f"scores {spread(base.accuracy, '%')}.",
        "",
        describe_base(config),
        "",
        _rule(train.num_seeds),
        "",
        f"- Worse than the base: {_list(found['worse'])}.",
        f"- Better than the base: {_list(found['better'])}.",
        f"- Not told apart from it: {_list(found['not told apart'])}.",
    ]
    stuck = [row for row in others if max(row.accuracy) <= trivial + NEAR_TRIVIAL]
    if stuck:
        lines.append(
            f"- Within {100 * NEAR_TRIVIAL:.0f} points of not learning, with every seed: "
            f"{_list(stuck)}."
        )
    lines += _largest(numbers)
    if failed:
        lines.append(f"- The loss became NaN: {_list(failed)}.")
    if missing:
        lines.append(f"- Not run: {', '.join(missing)}.")
    lines += ["", "Row by row:", ""]
    lines += [_sentence(row, base) for name, row in numbers.items() if name != BASE]
    return "\n".join(lines) + "\n"


def describe_base(config: Config) -> str:
    """The base's values of all factors, in one line."""
    values = [f"{factor} {value}" for factor, value in base_values(config).items()]
    return f"Base: {'; '.join(values)}."


def _rule(num_seeds: int) -> str:
    """When a row counts as better or worse."""
    rule = (
        "A row is better or worse only if the 95% bootstrap interval of its difference from the "
        f"base, in pairs of seeds, excludes zero, and there are {FEWEST_SEEDS} seeds or more."
    )
    if num_seeds < FEWEST_SEEDS:
        return f"{rule} There are too few here."
    return (
        f"{rule} Of rows that do not differ, 5 to 12 in a hundred are called so by chance: most "
        "with few seeds and skewed differences (experiments/common/report.py)."
    )


def _sentence(row: RowNumbers, base: RowNumbers) -> str:
    """The finding for a row, as a bullet."""
    if not row.accuracy:
        return f"- {row.row.name}: the loss became NaN."
    found = row.against(base)
    return (
        f"- {row.row.name}: {spread(row.accuracy, '%')}, {points(found)} points: {found.verdict}."
    )


def _largest(numbers: Mapping[str, RowNumbers]) -> list[str]:
    """The factors ordered by the range of their values' means, including the base's."""
    base = numbers[BASE]
    spans: dict[str, tuple[float, float]] = {}
    for row in numbers.values():
        if row.row.factor and row.accuracy:
            low, high = spans.get(row.row.factor, (base.mean, base.mean))
            spans[row.row.factor] = (min(low, row.mean), max(high, row.mean))
    if not spans:
        return []
    ordered = sorted(spans.items(), key=lambda item: item[1][0] - item[1][1])
    parts = [f"{factor} {100 * (high - low):.1f}" for factor, (low, high) in ordered]
    return [f"- Points between the best and the worst mean of a factor: {', '.join(parts)}."]


def _list(rows: Sequence[RowNumbers]) -> str:
    """Names separated by semicolons, because some contain commas."""
    return "; ".join(row.row.name for row in rows) or "none"
