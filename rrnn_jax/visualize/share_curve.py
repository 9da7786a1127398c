"""Curves of the attention to the slot that an object was written to, and to the input."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrnn_jax.visualize.attention_numbers import InputShare, ShareByLag
from rrnn_jax.visualize.style import (
    COLOURS,
    SMALL,
    WIDTH,
    count_ticks,
    new_figure,
    small_ticks,
)


def attention_share_figure(
    shares: Mapping[str, ShareByLag],
    *,
    title: str = "Attention to the slot that the reference was written to",
    y_label: str = "share of attention (%)",
) -> Figure:
    """Draws the results of `share_by_lag` with both chance levels, a panel for each head.

    >>> from rrnn_jax.visualize.attention_numbers import share_by_lag
    >>> weights = np.array([[[[0.2, 0.3, 0.5]] * 2, [[0.6, 0.3, 0.1]] * 2]])
    >>> share = share_by_lag(weights, slots=np.array([0]), steps=np.array([0]))
    >>> attention_share_figure({"head 1": share}).axes[0].get_title()
    'head 1'

    Args:
      shares: the shares of one model by panel title.
      title: title of the figure.
      y_label: label of the y axis.

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: nothing to draw.
    """
    return _figure(shares, title, _draw_lags, "steps since the reference was shown", y_label)


def input_share_figure(
    shares: Mapping[str, InputShare], *, title: str = "Attention to the input"
) -> Figure:
    """Draws the results of `input_share` by step, a panel for each head.

    >>> from rrnn_jax.visualize.attention_numbers import input_share
    >>> weights = np.array([[[[0.2, 0.8]], [[0.5, 0.5]]], [[[0.6, 0.4]], [[0.1, 0.9]]]])
    >>> figure = input_share_figure({"head 1": input_share(weights, np.array([0, 1]))})
    >>> [line.get_label() for line in figure.axes[0].lines][:3]
    ['m is shown', 'm was seen before', 'm comes later']

    Args:
      shares: the shares by panel title.
      title: title of the figure.

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: nothing to draw.
    """
    return _figure(shares, title, _draw_steps, "step", "share of attention (%)")


def _draw_lags(axes: Axes, share: ShareByLag) -> None:
    """One head's curves by lag, and the part before the write."""
    known = np.isfinite(share.share)
    if not known.any():
        raise ValueError("shares must have finite values, got NaN or infinity only")
    lags = share.lags[known]
    _line(axes, lags, share.share[known], 0, "the written slot")
    _line(axes, lags, share.others[known], 1, "same slot, other sequences")
    _chance(axes, share.uniform)
    axes.axvspan(lags[0] - 0.5, 0.5, color="0.93", linewidth=0, zorder=0)
    axes.text(
        *(0.4, 0.03),
        "not in memory yet ",
        transform=axes.get_xaxis_transform(),
        va="bottom",
        ha="right",
        fontsize=SMALL,
        color="0.35",
    )
    axes.set_xlim(lags[0] - 0.5, lags[-1] + 0.5)


def _draw_steps(axes: Axes, share: InputShare) -> None:
    """One head's curves by step."""
    steps = np.arange(1, len(share.shown) + 1)
    curves = {
        "m is shown": share.shown,
        "m was seen before": share.after,
        "m comes later": share.before,
    }
    for i, (name, values) in enumerate(curves.items()):
        known = np.isfinite(values)
        _line(axes, steps[known], values[known], i, name)
    _chance(axes, share.uniform)
    axes.set_xticks([i + 1 for i in count_ticks(len(steps), 12)])
    axes.set_xlim(0.7, len(steps) + 0.3)


def _figure(
    shares: Mapping[str, Any],
    title: str,
    draw: Callable[[Axes, Any], None],
    x_label: str,
    y_label: str,
) -> Figure:
    """A panel for each head, drawn by ``draw(axes, share)``, two in a line, and one legend below.

    The vertical axis is common to all. The legend covers no curve.
    """
    if not shares:
        raise ValueError("shares must hold at least one panel, got none")
    across = min(2, len(shares))
    lines = -(-len(shares) // across)
    figure = new_figure(WIDTH, 0.9 + 2.0 * lines)
    grid: Any = figure.subplots(lines, across, squeeze=False, sharey=True)
    panels = list(grid.flat)
    for axes in panels[len(shares) :]:
        axes.remove()
    for axes, (name, share) in zip(panels, shares.items(), strict=False):
        axes.set_title(name, fontsize=SMALL + 1)
        draw(axes, share)
        axes.grid(alpha=0.25)
        small_ticks(axes)
        axes.set_xlabel(x_label, fontsize=SMALL + 1)
    top = max(axes.dataLim.ymax for axes in panels[: len(shares)])
    panels[0].set_ylim(0, 1.08 * top)
    figure.suptitle(title, fontsize=SMALL + 2)
    figure.supylabel(y_label, fontsize=SMALL + 1)
    handles, labels = panels[0].get_legend_handles_labels()
    options: dict[str, Any] = {"ncols": len(labels), "fontsize": SMALL, "frameon": False}
    figure.legend(handles, labels, loc="outside lower center", **options)
    return figure


_MARKERS, _STYLES = "os^", ("-", "--", "-.")


def _line(axes: Axes, x: np.ndarray, shares: np.ndarray, index: int, label: str) -> None:
    (line,) = axes.plot(x, 100 * shares, marker=_MARKERS[index], markersize=4, label=label)
    line.set(color=COLOURS[index], linestyle=_STYLES[index])


def _chance(axes: Axes, uniform: float) -> None:
    axes.axhline(100 * uniform, color="black", linestyle=":", linewidth=1, label="evenly spread")
