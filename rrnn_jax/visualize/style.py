"""Colours, sizes and small marks shared by all figures."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

# Okabe & Ito, distinguishable for colour-blind readers. Black is for reference lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_STYLES = ("-", "--", ":", "-.")

ACCENT = "#D55E00"
"""For highlights: the reference object, the row that others are compared with."""

AMOUNTS = "viridis"
"""Colour map of amounts from zero, ordered also for colour-blind readers and in grey."""

SIGNED = "PuOr"
"""Colour map of values of both signs; zero is white."""

WIDTH = 5.5
"""Inches: the text width of a paper."""

SMALL = 7
"""Points: labels of panels and ticks, the smallest text in a figure."""


def new_figure(width: float = WIDTH, height: float = 3.4) -> Figure:
    """An empty figure without a window or global registration, with a constrained layout."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr]
    return figure


def line_look(index: int) -> dict[str, Any]:
    """Colour and style of the index-th line; there are 24.

    >>> line_look(0) == line_look(6)
    False
    """
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)],
    }


def add_colour_bar(figure: Figure, image: Any, axes: Any, label: str, **options: Any) -> Colorbar:
    """Adds a colour bar with its unit beside the axes."""
    bar = figure.colorbar(image, ax=axes, **options)
    bar.set_label(label, fontsize=SMALL + 1)
    bar.ax.tick_params(labelsize=SMALL)
    return bar


def small_ticks(axes: Axes) -> None:
    """Tick labels in the smallest text, close to the axes."""
    axes.tick_params(labelsize=SMALL, length=2, pad=1.5)


def check_marked(marked: int | None, steps: int) -> None:
    """Raises ValueError unless `marked` is one of the steps, or None."""
    if marked is not None and not 0 <= marked < steps:
        raise ValueError(f"marked must lie in 0..{steps - 1} or be None, got {marked}")


def labels_of(name: str, given: Sequence[str], count: int, default: str) -> list[str]:
    """The given labels, one for each of `count`, or numbered ones.

    >>> labels_of("captions", (), 2, "step")
    ['step 1', 'step 2']
    """
    labels = list(given) or [f"{default} {i + 1}" for i in range(count)]
    if len(labels) != count:
        raise ValueError(f"{name} must have {count} entries, got {len(labels)}")
    return labels


def count_ticks(count: int, most: int = 8) -> list[int]:
    """Numbers 0..count-1 for an axis: all, or evenly spaced ones if there are many.

    >>> count_ticks(4), count_ticks(16)
    ([0, 1, 2, 3], [0, 2, 4, 6, 8, 10, 12, 14])
    """
    return list(range(0, count, -(-count // most)))
