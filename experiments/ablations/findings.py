"""The findings of a grid: sentences generated from its numbers."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal

from experiments.ablations.collect import RowNumbers
from experiments.ablations.config import Config
from experiments.ablations.grid import BASE, base_values
from experiments.ablations.problems import describe_task

NEAR_TRIVIAL = 0.02
"""A row has not learned if no seed exceeds the trivial score by more."""

Verdict = Literal["better", "worse", "not told apart"]


def describe(config: Config, numbers: Mapping[str, RowNumbers], missing: Sequence[str]) -> str:
    """The findings of a grid.

    A row counts as better or worse than the base only if their seeds' ranges do not overlap, see
    `verdict`. The findings state how often this happens by chance, see `chance_of_below`.

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
        found[verdict(row.accuracy, base.accuracy)].append(row)
    found["worse"].sort(key=lambda row: row.mean)
    found["better"].sort(key=lambda row: -row.mean)
    failed = [row for row in numbers.values() if not row.accuracy]
    train = config.train
    trivial = float(base.trivial_accuracy or 0)
    lines = [
        f"{describe_task(config)}; {train.steps:,} updates of {train.batch_size} samples for every "
        f"row; {train.num_seeds} seeds per row. Not learning scores {trivial:.1%}; the base "
        f"scores {_score(base)}.",
        "",
        describe_base(config),
        "",
        "Better or worse is said only where the ranges of the seeds do not overlap. "
        f"{_caveat(train.num_seeds, len(others))}",
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
    lines += _initial_memory(numbers)
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


def verdict(accuracy: Sequence[float], base: Sequence[float]) -> Verdict:
    """Compares the scores of a row's seeds with those of the base.

    >>> verdict([0.7, 0.8], [0.9, 0.95]), verdict([0.7, 0.92], [0.9, 0.95])
    ('worse', 'not told apart')

    Args:
      accuracy: accuracy of the row, by seed.
      base: accuracy of the base, by seed.

    Returns:
      Better or worse only if the ranges of the seeds do not overlap.
    """
    if min(accuracy) > max(base):
        return "better"
    return "worse" if max(accuracy) < min(base) else "not told apart"


def chance_of_below(num_seeds: int) -> Fraction:
    r"""The probability that all scores of a row are below another's, if the rows are equal.

    There are :math:`\binom{2n}{n}` orders of the sorted scores of n independent seeds each; in one
    of them all of the row's scores come first.

    >>> [str(chance_of_below(seeds)) for seeds in (1, 2, 3, 5)]
    ['1/2', '1/6', '1/20', '1/252']
    """
    return Fraction(1, math.comb(2 * num_seeds, num_seeds))


def _caveat(num_seeds: int, num_rows: int) -> str:
    if num_seeds == 1:
        return "With one seed per row that is so of any two rows, whether they differ or not."
    chance = chance_of_below(num_seeds)
    return (
        f"With {num_seeds} seeds per row, were they independent from row to row, a row that does "
        f"not differ from the base would be called worse in {chance.numerator} of "
        f"{chance.denominator} cases, and better as often: were none of {num_rows} rows different, "
        f"{float(num_rows * chance):.1f} would be called worse by chance. They are not "
        "independent: rows share their seeds, and with them the samples and the initial weights "
        "of equal shapes; and one base stands against them all. Chance may call fewer rows worse, "
        "or more."
    )


def _sentence(row: RowNumbers, base: RowNumbers) -> str:
    """The finding for a row, as a bullet."""
    if not row.accuracy:
        return f"- {row.row.name}: the loss became NaN."
    points = round(100 * (row.mean - base.mean), 1)
    where = f"{abs(points):.1f} points {'below' if points < 0 else 'above'} the base"
    said = verdict(row.accuracy, base.accuracy)
    ranges = "overlap" if said == "not told apart" else "do not overlap"
    return (
        f"- {row.row.name}: {_score(row)}, {where if points else 'level with the base'}, ranges "
        f"{ranges}: {said}."
    )


def _initial_memory(numbers: Mapping[str, RowNumbers]) -> list[str]:
    """Compares slots that start equal with slots that start different."""
    zeros, one = numbers.get("initial_zeros"), numbers.get("slots_1")
    if zeros is None or not zeros.accuracy:
        return []
    base = numbers[BASE]
    if verdict(zeros.accuracy, base.accuracy) != "worse":
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


def _score(row: RowNumbers) -> str:
    """Mean and range in percent."""
    if len(row.accuracy) == 1:
        return f"{row.mean:.1%}"
    low, high = min(row.accuracy), max(row.accuracy)
    return f"{row.mean:.1%} ({100 * low:.1f} to {100 * high:.1f})"
