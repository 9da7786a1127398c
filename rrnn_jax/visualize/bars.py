"""Bar charts of variants: the mean over seeds, and each seed as a dot."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrnn_jax.visualize.style import ACCENT, COLOURS, SMALL, WIDTH, new_figure, small_ticks


def bars_figure(
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str = "",
    x_label: str = "accuracy (%)",
    intervals: Mapping[tuple[str, str], tuple[float, float]] | None = None,
    reference: tuple[str, str] | None = None,
    trivial: float | None = None,
    x_limits: tuple[float, float] | None = None,
) -> Figure:
    """Draws a bar for each variant, by group, with a dot for each seed.

    >>> groups = {"": {"base": [90.0, 92.0]}, "slots": {"1": [51.0, 50.0], "8": [93.0, 95.0]}}
    >>> figure = bars_figure(groups, reference=("", "base"), trivial=50.0)
    >>> [text.get_text() for text in figure.axes[0].get_yticklabels()]
    ['base', '1', '8']

    Args:
      groups: for each group (a factor), its variants by name, with their values by seed. The
        group '' has no heading and is drawn first.
      title: title of the figure.
      x_label: label of the values, with their unit.
      intervals: by group and name of a variant, an interval of its mean, drawn as a line.
      reference: group and name of the variant to compare with; its mean is drawn as a line.
      trivial: the trivial score, drawn as a labelled line.
      x_limits: limits of the values' axis.

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: no variant, a variant without values, or an unknown name in `intervals` or
        `reference`.
    """
    order = sorted(groups, key=bool)  # Without a heading '' would seem part of the one before.
    rows = [(group, name, values) for group in order for name, values in groups[group].items()]
    if not rows or not all(len(values) for _, _, values in rows):
        raise ValueError("groups must hold at least one variant, and each at least one value")
    keys = [(group, name) for group, name, _ in rows]
    if reference is not None and reference not in keys:
        raise ValueError(f"reference must name one of {keys}, got {reference}")
    intervals = intervals or {}
    if unknown := intervals.keys() - set(keys):
        raise ValueError(f"intervals must be of variants among {keys}, got {sorted(unknown)}")

    positions, headings, lines = _places([group for group, _, _ in rows])
    figure = new_figure(WIDTH, 0.85 + 0.185 * lines)
    axes = figure.add_subplot()
    for position, key, (_, _, values) in zip(positions, keys, rows, strict=True):
        _draw_bar(axes, position, values, ACCENT if key == reference else COLOURS[0])
        if key in intervals:
            axes.plot(intervals[key], [position, position], color="black", linewidth=1.2)
    if reference is not None:
        mean = float(np.mean(rows[keys.index(reference)][2]))
        axes.axvline(mean, color=ACCENT, linestyle="--", linewidth=0.9, zorder=0)
    if trivial is not None:
        _mark_trivial(axes, trivial)
    axes.set_yticks(positions, [name for _, name in keys])
    _write_headings(axes, headings)
    axes.set_ylim(lines - 0.4, -0.6)
    axes.set_xlabel(x_label, fontsize=SMALL + 1)
    if x_limits is not None:
        axes.set_xlim(*x_limits)
    axes.set_title(title, fontsize=SMALL + 2, pad=14 if trivial is not None else 6)
    axes.grid(alpha=0.25, axis="x")
    small_ticks(axes)
    return figure


def _places(groups: Sequence[str]) -> tuple[list[int], dict[str, int], int]:
    """The lines of bars and headings, one line each, and their number.

    >>> _places(["", "slots", "slots", "heads"])
    ([0, 2, 3, 5], {'slots': 1, 'heads': 4}, 6)
    """
    positions: list[int] = []
    headings: dict[str, int] = {}
    line = 0
    for group in groups:
        if group and group not in headings:
            headings[group] = line
            line += 1
        positions.append(line)
        line += 1
    return positions, headings, line


def _draw_bar(axes: Axes, position: int, values: Sequence[float], colour: str) -> None:
    """The seeds' mean as a bar with an end line, and a transparent dot for each seed."""
    mean = float(np.mean(values))
    axes.barh(position, mean, height=0.72, color=colour, alpha=0.4, linewidth=0)
    axes.plot([mean, mean], [position - 0.36, position + 0.36], color=colour, linewidth=1.5)
    dots = [position] * len(values)
    axes.plot(values, dots, "o", color=colour, markersize=4, mec="white", mew=0.5, alpha=0.6)


def _mark_trivial(axes: Axes, trivial: float) -> None:
    axes.axvline(trivial, color="black", linestyle=":", linewidth=1, zorder=0)
    axes.annotate(
        f"trivial {trivial:.3g}",
        xy=(trivial, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=SMALL,
    )


def _write_headings(axes: Axes, headings: Mapping[str, int]) -> None:
    """The groups' names on a white background, over the lines."""
    for group, position in headings.items():
        axes.annotate(
            group,
            xy=(0.0, position),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
