"""Attention over a sequence, as in the paper's Figure 3: a panel for each step."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from rrnn_jax.checks import check_positive
from rrnn_jax.visualize.style import (
    ACCENT,
    AMOUNTS,
    SMALL,
    WIDTH,
    add_colour_bar,
    count_ticks,
    new_figure,
    small_ticks,
)

GAP = 0.075
"""Gap between the slots and the input as a share of the slots, as in the paper."""

COLUMNS = 8
"""Panels in a line; longer sequences continue in the next line."""


def attention_figure(
    weights: np.ndarray,
    *,
    title: str = "",
    row_labels: Sequence[str] = (),
    panel_titles: Sequence[Sequence[str]] = (),
    marked: Sequence[int | None] = (),
    largest: float | None = None,
    columns: int = COLUMNS,
) -> Figure:
    """Draws attention matrices: a panel for each step, a row of panels for each sequence or head.

    In a panel, row y is the attending slot and column x the attended row: the slots, and after a
    gap the input. Rows sum to one.

    >>> weights = np.full((2, 8, 4, 5), 0.2)  # Two sequences of eight steps, four slots.
    >>> figure = attention_figure(weights, row_labels=["first", "second"], marked=[0, 3])
    >>> len(figure.axes)  # And the colour bar.
    17

    Args:
      weights: ``[rows, T, S, S+R]``: sequences (`attention_of`), or one sequence's heads:
        ``np.moveaxis(weights[b, :, block], 1, 0)`` of captured ``[B, T, blocks, H, S, S+R]``.
      title: title of the figure.
      row_labels: a label for each row of panels.
      panel_titles: a title for each step of each row (default: 'step 1', ...).
      marked: for each row a step whose panel is framed, or None.
      largest: the weight at the colour bar's upper end (default: the largest weight).
      columns: panels in a line (default: 8).

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: `weights` has other axes, the numbers of labels are not those of rows and steps,
        `marked` is not a step, or `columns` is below 1.
    """
    check_positive(columns=columns)
    weights = np.asarray(weights)
    _check(weights, row_labels, panel_titles, marked)
    rows, steps = weights.shape[:2]
    lines = math.ceil(steps / columns)
    across = min(steps, columns)
    largest = float(weights.max()) if largest is None else largest

    figure = new_figure(WIDTH, _height(weights.shape, rows * lines, across))
    grid: Any = figure.subplots(rows * lines, across, squeeze=False)
    image = None
    for row in range(rows):
        for place in range(lines * across):
            axes = grid[row * lines + place // across, place % across]
            if place >= steps:
                axes.set_axis_off()
                continue
            name = panel_titles[row][place] if len(panel_titles) else f"step {place + 1}"
            is_marked = len(marked) > 0 and marked[row] == place
            image, _ = draw_attention(axes, weights[row, place], largest, name, is_marked)
            is_bottom = row == rows - 1 and place + across >= steps
            _label_outside(axes, weights[row, place], place % across == 0, is_bottom)
        if len(row_labels):
            first = grid[row * lines, 0]
            first.set_ylabel(row_labels[row], fontsize=SMALL)
    add_colour_bar(
        figure, image, grid, "attention weight (rows sum to 1)", shrink=0.9, aspect=30, pad=0.01
    )
    figure.supxlabel("attended to: slot, and input (in)", fontsize=SMALL + 1)
    figure.supylabel("attending slot", fontsize=SMALL + 1)
    if title:
        figure.suptitle(title, fontsize=SMALL + 2)
    return figure


def _height(shape: tuple[int, ...], down: int, across: int) -> float:
    """The height in inches of panels that fill the width with their proportions."""
    slots, sources = shape[2:]
    width_each = (WIDTH - 1.05) / across - 0.05
    height_each = width_each * slots / (sources + GAP * slots)
    return max(0.7 + down * (height_each + 0.2), 2.1)  # The least height of the colour bar.


def draw_attention(
    axes: Axes, weights: np.ndarray, largest: float, title: str = "", is_marked: bool = False
) -> tuple[AxesImage, AxesImage]:
    """Draws one attention matrix ``[S, S+R]`` into `axes`, with a gap before the inputs' columns.

    Returns:
      The images of the slots' and of the inputs' columns.
    """
    slots, sources = weights.shape
    inputs = sources - slots
    options = {
        "cmap": AMOUNTS,
        "vmin": 0.0,
        "vmax": largest,
        "interpolation": "nearest",
        "aspect": "equal",
    }
    start = slots * (1 + GAP)
    to_slots = axes.imshow(weights[:, :slots], extent=(0, slots, slots, 0), **options)
    to_inputs = axes.imshow(weights[:, slots:], extent=(start, start + inputs, slots, 0), **options)
    axes.set(xlim=(0, start + inputs), ylim=(slots, 0))
    for spine in axes.spines.values():
        spine.set_visible(is_marked)
        spine.set(color=ACCENT, linewidth=1.6)
    axes.set_title(
        title,
        fontsize=SMALL,
        pad=2.5,
        color=ACCENT if is_marked else "black",
        fontweight="bold" if is_marked else "normal",
    )
    return to_slots, to_inputs


def label_attention(axes: Axes, slots: int, inputs: int, at_most: int = 4) -> None:
    """Labels the slots on both axes with numbers from 1, and the inputs' columns."""
    numbers = count_ticks(slots, at_most)
    start = slots * (1 + GAP)
    axes.set_xticks(
        [*(i + 0.5 for i in numbers), start + inputs / 2], [*(str(i + 1) for i in numbers), "in"]
    )
    axes.set_yticks([i + 0.5 for i in numbers], [str(i + 1) for i in numbers])
    small_ticks(axes)


def _label_outside(axes: Axes, weights: np.ndarray, is_left: bool, is_bottom: bool) -> None:
    """Labels the panels at the left and at the bottom only."""
    slots, sources = weights.shape
    label_attention(axes, slots, sources - slots)
    axes.tick_params(left=is_left, labelleft=is_left, bottom=is_bottom, labelbottom=is_bottom)


def _check(
    weights: np.ndarray,
    row_labels: Sequence[str],
    panel_titles: Sequence[Sequence[str]],
    marked: Sequence[int | None],
) -> None:
    if weights.ndim != 4 or weights.shape[-1] <= weights.shape[-2] or 0 in weights.shape:
        raise ValueError(f"weights must be [rows, T, S, S+R], got shape {weights.shape}")
    rows, steps = weights.shape[:2]
    for name, given in (
        ("row_labels", row_labels),
        ("panel_titles", panel_titles),
        ("marked", marked),
    ):
        if len(given) not in (0, rows):
            raise ValueError(f"{name} must have an entry for each of {rows} rows, got {len(given)}")
    for titles in panel_titles:
        if len(titles) != steps:
            raise ValueError(
                f"panel_titles must have {steps} titles (steps) in each row, got {len(titles)}"
            )
    for step in marked:
        if step is not None and not 0 <= step < steps:
            raise ValueError(f"marked must hold steps in 0..{steps - 1} or None, got {step}")
