"""What the numbers of a grid say, in sentences made from the numbers."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from experiments.ablations.collect import RowNumbers
from experiments.ablations.config import Config
from experiments.ablations.grid import BASE
from experiments.ablations.problems import describe_task

NEAR_TRIVIAL = 0.02
"""A row none of whose seeds is further above the trivial score has not learned."""


def describe(config: Config, numbers: Mapping[str, RowNumbers], missing: Sequence[str]) -> str:
    """The findings of a grid.

    A row counts as better or worse than the base only if their seeds' ranges do not overlap; how
    often chance alone does that is said beside it, see `chance_of_apart`.

    Args:
      config: the grid's config.
      numbers: of the rows that are done, the base among them.
      missing: names of the rows that are not.

    Returns:
      Markdown.
    """
    base = numbers[BASE]
    others = [row for name, row in numbers.items() if name != BASE and row.accuracy]
    worse = sorted((row for row in others if is_below(row, base)), key=lambda row: row.mean)
    better = sorted((row for row in others if is_below(base, row)), key=lambda row: -row.mean)
    same = [row for row in others if row not in worse and row not in better]
    failed = [row for row in numbers.values() if not row.accuracy]
    train = config.train
    trivial = float(base.trivial_accuracy or 0)
    lines = [
        f"{describe_task(config)}; {train.steps:,} updates of {train.batch_size} samples for every "
        f"row; {train.num_seeds} seeds per row. Not learning scores {trivial:.1%}; the base "
        f"scores {_score(base)}.",
        "",
        "Better or worse is said only where the ranges of the seeds do not overlap. "
        f"{_caveat(train.num_seeds)}",
        "",
        f"- Worse than the base: {_list(worse, base)}.",
        f"- Better than the base: {_list(better, base)}.",
        f"- Not told apart from it: {_list(same, base)}.",
    ]
    stuck = [row for row in others if max(row.accuracy) <= trivial + NEAR_TRIVIAL]
    if stuck:
        lines.append(
            f"- Within {100 * NEAR_TRIVIAL:.0f} points of not learning, with every seed: "
            f"{', '.join(_name(row) for row in stuck)}."
        )
    lines += _initial_memory(numbers)
    lines += _largest(numbers)
    if failed:
        lines.append(f"- The loss became NaN: {', '.join(_name(row) for row in failed)}.")
    if missing:
        lines.append(f"- Not run: {', '.join(missing)}.")
    return "\n".join(lines) + "\n"


def is_below(row: RowNumbers, other: RowNumbers) -> bool:
    """Whether every seed of a row scores less than every seed of another."""
    return max(row.accuracy) < min(other.accuracy)


def chance_of_apart(num_seeds: int) -> Fraction:
    r"""How often the ranges of two rows that do not differ do not overlap.

    The scores of n seeds of each, sorted, may be mixed in :math:`\binom{2n}{n}` ways; in two of
    them all of one row's come first.

    >>> [str(chance_of_apart(seeds)) for seeds in (1, 2, 3, 5)]
    ['1', '1/3', '1/10', '1/126']
    """
    return Fraction(2, math.comb(2 * num_seeds, num_seeds))


def _caveat(num_seeds: int) -> str:
    if num_seeds == 1:
        return "With one seed per row that is so of any two rows, whether they differ or not."
    chance = chance_of_apart(num_seeds)
    return (
        f"With {num_seeds} seeds per row that happens by chance in {chance.numerator} of "
        f"{chance.denominator} rows that do not differ from the base."
    )


def _initial_memory(numbers: Mapping[str, RowNumbers]) -> list[str]:
    """Whether slots that start equal do as well as slots that start different."""
    zeros, one = numbers.get("initial_zeros"), numbers.get("slots_1")
    if zeros is None or not zeros.accuracy:
        return []
    base = numbers[BASE]
    if not is_below(zeros, base):
        return [
            "- Slots that all start as zeros, and so stay equal, are not told apart from slots "
            f"that start different here: {_score(zeros)} against {_score(base)}."
        ]
    text = (
        f"- Slots must start different: all zeros, they stay equal for ever and score "
        f"{_score(zeros)}, against {_score(base)} of identity rows"
    )
    if one is not None and one.accuracy:
        text += f" and {_score(one)} of a single slot"
    return [text + "."]


def _largest(numbers: Mapping[str, RowNumbers]) -> list[str]:
    """The factors by how much their values' means differ, the base's among them."""
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


def _list(rows: Sequence[RowNumbers], base: RowNumbers) -> str:
    if not rows:
        return "none"
    return "; ".join(
        f"{_name(row)} ({_score(row)}, {100 * (row.mean - base.mean):+.1f} points)" for row in rows
    )


def _name(row: RowNumbers) -> str:
    return row.row.value if row.row.factor == "model" else f"{row.row.factor} {row.row.value}"


def _score(row: RowNumbers) -> str:
    """Mean and range in percent."""
    if len(row.accuracy) == 1:
        return f"{row.mean:.1%}"
    low, high = min(row.accuracy), max(row.accuracy)
    return f"{row.mean:.1%} ({100 * low:.1f} to {100 * high:.1f})"
