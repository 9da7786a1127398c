"""Cosine similarity between slots, at several steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rrnn_jax.visualize.memory_numbers import slot_similarity
from rrnn_jax.visualize.style import (
    SIGNED,
    SMALL,
    WIDTH,
    add_colour_bar,
    count_ticks,
    labels_of,
    new_figure,
    small_ticks,
)


def similarity_figure(
    memories: np.ndarray,
    *,
    panel_titles: Sequence[str] = (),
    title: str = "Similarity of the memory slots",
) -> Figure:
    """Draws the cosine similarity between the slots of each memory.

    >>> figure = similarity_figure(np.ones((3, 4, 8)), panel_titles=["start", "half", "end"])
    >>> [axes.get_title() for axes in figure.axes[:3]]
    ['start', 'half', 'end']

    Args:
      memories: ``[P, S, F]``, a memory for each panel, five at most.
      panel_titles: a title for each (default: 'memory 1', ...).
      title: title of the figure.

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: wrong axes, no or too many memories, or another number of titles.
    """
    memories = np.asarray(memories)
    if memories.ndim != 3 or not 1 <= len(memories) <= 5:
        raise ValueError(f"memories must be [P, S, F] with P in 1..5, got shape {memories.shape}")
    count, slots, _ = memories.shape
    titles = labels_of("panel_titles", panel_titles, count, "memory")
    side = min((WIDTH - 1.1) / count, 2.2)
    figure = new_figure(1.1 + count * side, 0.85 + side)
    panels = figure.subplots(1, count, squeeze=False)[0]
    numbers = count_ticks(slots)
    for i, (axes, cosines) in enumerate(zip(panels, slot_similarity(memories), strict=True)):
        image = axes.imshow(
            cosines,
            cmap=SIGNED,
            vmin=-1.0,
            vmax=1.0,
            interpolation="nearest",
            extent=(0.5, slots + 0.5, slots + 0.5, 0.5),
        )
        axes.set_title(titles[i], fontsize=SMALL + 1)
        axes.set_xticks([n + 1 for n in numbers])
        axes.set_yticks([n + 1 for n in numbers])
        axes.set_xlabel("slot", fontsize=SMALL + 1)
        small_ticks(axes)
    panels[0].set_ylabel("slot", fontsize=SMALL + 1)
    add_colour_bar(figure, image, panels, "cosine (-1 to 1)", shrink=0.9, pad=0.01)
    figure.suptitle(title, fontsize=SMALL + 2)
    return figure
