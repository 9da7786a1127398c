"""Memory dynamics: the movement of the slots and the values of their gates at each step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from rrnn_jax.visualize.memory_numbers import slot_movement
from rrnn_jax.visualize.style import (
    ACCENT,
    AMOUNTS,
    SMALL,
    WIDTH,
    add_colour_bar,
    check_marked,
    count_ticks,
    new_figure,
    small_ticks,
)


def dynamics_figure(
    memories: np.ndarray,
    initial: np.ndarray,
    *,
    input_gate: np.ndarray | None = None,
    forget_gate: np.ndarray | None = None,
    step_labels: Sequence[str] = (),
    marked: int | None = None,
    title: str = "Memory dynamics",
) -> Figure:
    """Draws each slot's movement and the mean of its gates at each step.

    >>> figure = dynamics_figure(np.ones((6, 4, 8)), np.zeros((4, 8)),
    ...                          forget_gate=np.full((6, 4, 8), 0.7))
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['distance moved (Euclidean)', 'forget gate (mean of units)']

    Args:
      memories: ``[T, S, F]``, one sequence's memory after each step.
      initial: ``[S, F]``, the memory before the first step.
      input_gate: ``[T, S, F]`` or ``[T, S, 1]``; None omits it.
      forget_gate: likewise.
      step_labels: a label for each step (default: its number, counted from 1).
      marked: a step to highlight, or None.
      title: title of the figure.

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: incompatible shapes, or `marked` is not a step.
    """
    moved = slot_movement(memories, initial)
    if moved.ndim != 2:
        raise ValueError(f"memories must be [T, S, F], got shape {np.shape(memories)}")
    maps = [_Map("distance moved (Euclidean)", moved, "distance", None)]
    for name, gate in (("input gate", input_gate), ("forget gate", forget_gate)):
        if gate is not None:
            maps.append(_gate_map(name, gate, moved.shape))
    steps, slots = moved.shape
    if len(step_labels) not in (0, steps):
        raise ValueError(f"step_labels must have {steps} entries, got {len(step_labels)}")
    check_marked(marked, steps)

    figure = new_figure(WIDTH, 0.75 + len(maps) * (0.35 + min(max(0.13 * slots, 0.75), 1.6)))
    panels = figure.subplots(len(maps), 1, squeeze=False, sharex=True)[:, 0]
    for axes, shown in zip(panels, maps, strict=True):
        image = _draw_map(axes, shown, marked)
        add_colour_bar(figure, image, axes, shown.unit, pad=0.01, aspect=12)
    _label_steps(panels[-1], steps, step_labels, marked)
    figure.suptitle(title, fontsize=SMALL + 2)
    return figure


class _Map(NamedTuple):
    """A panel: ``[T, S]`` values, and the colour bar's unit and upper end."""

    name: str
    values: np.ndarray
    unit: str
    largest: float | None


def _gate_map(name: str, gate: np.ndarray, shape: tuple[int, ...]) -> _Map:
    gate = np.asarray(gate, np.float64)
    if gate.ndim != 3 or gate.shape[:2] != shape:
        raise ValueError(
            f"{name.replace(' ', '_')} must be [T, S, F] or [T, S, 1] with [T, S] = "
            f"{shape}, got shape {gate.shape}"
        )
    return _Map(f"{name} (mean of units)", gate.mean(-1), "openness (0 to 1)", 1.0)


def _draw_map(axes: Axes, shown: _Map, marked: int | None) -> AxesImage:
    steps, slots = shown.values.shape
    image = axes.imshow(
        shown.values.T,
        cmap=AMOUNTS,
        vmin=0.0,
        vmax=shown.largest,
        interpolation="nearest",
        aspect="auto",
        extent=(0.5, steps + 0.5, slots + 0.5, 0.5),
    )
    axes.set_title(shown.name, fontsize=SMALL + 1, pad=3)
    axes.set_ylabel("slot", fontsize=SMALL + 1)
    axes.set_yticks([i + 1 for i in count_ticks(slots)])
    small_ticks(axes)
    if marked is not None:
        axes.axvspan(marked + 0.5, marked + 1.5, fill=False, edgecolor=ACCENT, linewidth=1.6)
    return image


def _label_steps(axes: Axes, steps: int, labels: Sequence[str], marked: int | None) -> None:
    """Labels the steps at the bottom: all given labels, or as many numbers as fit."""
    has_labels = len(labels) > 0
    shown = range(steps) if has_labels else count_ticks(steps, 20)
    names = [labels[i] if has_labels else str(i + 1) for i in shown]
    axes.set_xticks([i + 1 for i in shown], names)
    axes.set_xlabel("what the step shows" if has_labels else "step", fontsize=SMALL + 1)
    for i, text in zip(shown, axes.get_xticklabels(), strict=True):
        if i == marked:
            text.set(color=ACCENT, fontweight="bold")
