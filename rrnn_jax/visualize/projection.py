"""The slots' paths through a sequence, in the plane of their first two principal components."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from rrnn_jax.visualize.memory_numbers import project_slots
from rrnn_jax.visualize.style import SMALL, check_marked, line_look, new_figure, small_ticks


def projection_figure(
    memories: np.ndarray,
    *,
    marked: int | None = None,
    marked_label: str = "marked",
    title: str = "Paths of the memory slots (dots grow with time)",
) -> Figure:
    """Draws each slot's path: dots that grow with time, and the slot's number at the end.

    >>> rng = np.random.default_rng(0)
    >>> figure = projection_figure(rng.normal(size=(6, 4, 8)))
    >>> len(figure.axes[0].get_legend().get_texts())
    4

    Args:
      memories: ``[T, S, F]``, one sequence's memories in order, optionally with the initial one.
      marked: index of a memory whose dots get a black rim, or None.
      marked_label: its label in the legend.
      title: title of the figure.

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: wrong axes, or index out of range.
    """
    memories = np.asarray(memories)
    if memories.ndim != 3:
        raise ValueError(f"memories must be [T, S, F], got shape {memories.shape}")
    steps, slots, _ = memories.shape
    check_marked(marked, steps)
    points, explained = project_slots(memories)
    figure = new_figure(height=3.6)
    axes = figure.add_subplot()
    sizes = np.linspace(6.0, 46.0, steps)
    for slot in range(slots):
        _draw_path(axes, slot, points, sizes)
    if marked is not None:
        axes.scatter(
            *points[marked].T,
            s=sizes[marked] + 8,
            facecolors="none",
            edgecolors="black",
            label=marked_label,
            zorder=5,
        )
    for name, axis, share in zip("xy", ("first", "second"), explained, strict=True):
        label = f"{axis} component ({share:.0%} of variance)"
        getattr(axes, f"set_{name}label")(label, fontsize=SMALL + 1)
    axes.margins(0.08)
    axes.grid(alpha=0.25)
    small_ticks(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=SMALL, frameon=False)
    axes.set_title(title, fontsize=SMALL + 2)
    return figure


def _draw_path(axes: Axes, slot: int, points: np.ndarray, sizes: np.ndarray) -> None:
    """One slot's line and dots, and its number at the end of the path."""
    look = line_look(slot)
    path = points[:, slot]
    axes.plot(*path.T, linewidth=1.0, label=f"slot {slot + 1}", **look)
    axes.scatter(*path.T, s=sizes, color=look["color"], linewidths=0, zorder=3)
    axes.annotate(
        str(slot + 1),
        path[-1],
        xytext=_ahead(path, points),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=SMALL + 1,
        fontweight="bold",
        color=look["color"],
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=4,
    )


def _ahead(path: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """An offset in points from the end of a path, in its direction and clear of the path."""
    spread = np.ptp(points.reshape(-1, 2), axis=0)
    direction = (path[-1] - path[-2 if len(path) > 1 else -1]) / np.where(spread > 0, spread, 1.0)
    length = np.linalg.norm(direction)
    x, y = 9 * direction / length if length > 0 else (7.0, 7.0)
    return float(x), float(y)
