"""Attention to the slot that an object was written to, against the steps since."""

import numpy as np
from matplotlib.figure import Figure

from rrnn_jax.visualize.attention_numbers import ShareByLag
from rrnn_jax.visualize.style import COLOURS, SMALL, new_figure, small_ticks


def attention_share_figure(
    share: ShareByLag, *, title: str = "Attention to the slot that the reference was written to"
) -> Figure:
    """Draws what `share_by_lag` measured, with both chance levels.

    >>> from rrnn_jax.visualize.attention_numbers import share_by_lag
    >>> weights = np.array([[[[0.2, 0.3, 0.5]] * 2, [[0.6, 0.3, 0.1]] * 2]])
    >>> share = share_by_lag(weights, slots=np.array([0]), steps=np.array([0]))
    >>> attention_share_figure(share).axes[0].get_ylabel()
    'share of attention (%)'

    Args:
      share: of one model, over as many sequences as one likes.
      title: of the figure.

    Returns:
      A figure that has not been shown or saved.
    """
    figure = new_figure(height=3.0)
    axes = figure.add_subplot()
    known = np.isfinite(share.share)
    lags = share.lags[known]
    axes.plot(
        lags,
        100 * share.share[known],
        "o-",
        markersize=4,
        color=COLOURS[0],
        label="the written slot",
    )
    others = 100 * share.others[known]
    axes.plot(
        lags, others, "s--", markersize=4, color=COLOURS[1], label="same slot, other sequences"
    )
    axes.axhline(
        100 * share.uniform, color="black", linestyle=":", linewidth=1, label="evenly spread"
    )
    axes.axvspan(lags[0] - 0.5, 0.5, color="0.93", linewidth=0, zorder=0)
    axes.text(
        *(0.4, 0.97),
        "not in memory yet ",
        transform=axes.get_xaxis_transform(),
        va="top",
        ha="right",
        fontsize=SMALL,
        color="0.35",
    )
    axes.set_xlim(lags[0] - 0.5, lags[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps since the reference was shown", fontsize=SMALL + 1)
    axes.set_ylabel("share of attention (%)", fontsize=SMALL + 1)
    small_ticks(axes)
    axes.set_title(title, fontsize=SMALL + 2)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=SMALL + 1, framealpha=0.9)
    return figure
