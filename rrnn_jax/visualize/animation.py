"""Attention over a sequence as an animation, and animations as GIF files."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from rrnn_jax.visualize.attention import draw_attention, label_attention
from rrnn_jax.visualize.style import ACCENT, SMALL, add_colour_bar, check_marked, new_figure


def attention_animation(
    weights: np.ndarray,
    *,
    step_titles: Sequence[str] = (),
    marked: int | None = None,
    title: str = "Attention",
) -> FuncAnimation:
    """The attention of one sequence, with a frame for each step.

    >>> import io
    >>> animation = attention_animation(np.full((3, 4, 5), 0.2), marked=1)
    >>> buffer = io.BytesIO()
    >>> save_gif(animation, buffer)
    >>> buffer.getvalue()[:6]
    b'GIF89a'

    Args:
      weights: ``[T, S, S+R]``.
      step_titles: a title for each step (default: 'step 1', ...).
      marked: a step to highlight, or None.
      title: title of the figure.

    Returns:
      An animation for `save_gif`. (Matplotlib warns if it is never drawn.)

    Raises:
      ValueError: `weights` has other axes, the number of titles is not that of steps, or `marked`
        is not a step.
    """
    weights = np.asarray(weights)
    if weights.ndim != 3 or weights.shape[-1] <= weights.shape[-2]:
        raise ValueError(f"weights must be [T, S, S+R], got shape {weights.shape}")
    steps, slots, sources = weights.shape
    titles = list(step_titles) or [f"step {i + 1}" for i in range(steps)]
    if len(titles) != steps:
        raise ValueError(f"step_titles must have {steps} entries, got {len(titles)}")
    check_marked(marked, steps)
    figure = new_figure(3.4, 2.95)
    axes = figure.add_subplot()
    images = draw_attention(axes, weights[0], float(weights.max()), titles[0])
    label_attention(axes, slots, sources - slots, at_most=8)
    axes.set_xlabel("attended to: slot, and input (in)", fontsize=SMALL + 1)
    axes.set_ylabel("attending slot", fontsize=SMALL + 1)
    add_colour_bar(figure, images[0], axes, "attention weight (rows sum to 1)", pad=0.02)
    figure.suptitle(title, fontsize=SMALL + 2)

    def draw(step: int) -> Any:
        is_marked = step == marked
        images[0].set_data(weights[step, :, :slots])
        images[1].set_data(weights[step, :, slots:])
        axes.set_title(
            f"{step + 1}/{steps}: {titles[step]}",
            fontsize=SMALL + 2,
            color=ACCENT if is_marked else "black",
            fontweight="bold" if is_marked else "normal",
        )
        for spine in axes.spines.values():
            spine.set(visible=is_marked, color=ACCENT, linewidth=2)
        return images

    # The layout is computed once: it depends on the previous one, so frames would shift.
    axes.set_title(max(titles, key=len), fontsize=SMALL + 2, fontweight="bold")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return FuncAnimation(figure, draw, frames=steps, blit=False)


def save_gif(
    animation: FuncAnimation,
    target: str | os.PathLike | BinaryIO,
    *,
    frame_seconds: float = 0.8,
    dpi: int = 110,
) -> None:
    """Writes an animation as a looping GIF.

    Args:
      animation: for example the result of `attention_animation`.
      target: a path, or a binary file that is open for writing.
      frame_seconds: duration of each frame.
      dpi: pixels per inch.

    Raises:
      ValueError: `frame_seconds` is not positive.
    """
    if not frame_seconds > 0:
        raise ValueError(f"frame_seconds must be positive, got {frame_seconds}")
    fps: Any = 1 / frame_seconds  # Annotated as int in Matplotlib, but any number works.
    writer = PillowWriter(fps=fps)
    if isinstance(target, str | os.PathLike):
        animation.save(os.fspath(target), writer=writer, dpi=dpi)
        return
    with tempfile.TemporaryDirectory() as directory:  # Matplotlib writes to paths only.
        path = Path(directory) / "animation.gif"
        animation.save(str(path), writer=writer, dpi=dpi)
        target.write(path.read_bytes())
