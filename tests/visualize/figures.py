"""Checks shared by all figures."""

import io
from collections.abc import Callable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """The picture, as bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, metadata={"Software": None})
    return buffer.getvalue()


def assert_nothing_cut(figure: Figure) -> None:
    """All that is drawn, texts included, lies within the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    slack = 0.01  # Inches.
    assert drawn.x0 >= -slack, drawn
    assert drawn.y0 >= -slack, drawn
    assert drawn.x1 <= width + slack, (drawn, width)
    assert drawn.y1 <= height + slack, (drawn, height)


def assert_same_twice(make: Callable[[], Figure]) -> None:
    """The same arguments give the same picture, to the byte."""
    first, second = png(make()), png(make())
    assert first.startswith(b"\x89PNG")
    assert first == second


def colour_bars(figure: Figure) -> list[str]:
    """The labels of the colour bars."""
    return [a.get_ylabel() for a in figure.axes if a.get_label() == "<colorbar>"]


def random_attention(*shape: int, seed: int = 0) -> np.ndarray:
    """Random rows that sum to one."""
    weights = np.exp(2 * np.random.default_rng(seed).normal(size=shape))
    return weights / weights.sum(-1, keepdims=True)
