"""Colours and sizes that all figures share."""

from matplotlib.figure import Figure

# Okabe & Ito: told apart by colour-blind readers. Black is kept for reference lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

WIDTH = 5.5
"""Inches: the text width of a paper."""


def new_figure(width: float = WIDTH, height: float = 3.4) -> Figure:
    """An empty figure that is in no window and in no global list, laid out so nothing is cut."""
    return Figure(figsize=(width, height), layout="constrained")
