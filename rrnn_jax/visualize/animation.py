"""Attention over a sequence and episodes of games as animations, and animations as GIF files."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes

from rrnn_jax.visualize.attention import draw_attention, label_attention
from rrnn_jax.visualize.style import (
    ACCENT,
    SMALL,
    add_colour_bar,
    check_marked,
    labels_of,
    new_figure,
)


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
    if weights.ndim != 3 or weights.shape[-1] <= weights.shape[-2] or not len(weights):
        raise ValueError(f"weights must be [T, S, S+R], got shape {weights.shape}")
    steps = len(weights)
    titles = labels_of("step_titles", step_titles, steps, "step")
    check_marked(marked, steps)
    figure = new_figure(3.4, 2.95)
    axes = figure.add_subplot()
    show = _add_attention(axes, weights, titles[0])
    add_colour_bar(figure, axes.images[0], axes, "attention weight (rows sum to 1)", pad=0.02)
    figure.suptitle(title, fontsize=SMALL + 2)

    def draw(step: int) -> None:
        show(step)
        is_marked = step == marked
        axes.set_title(
            f"{step + 1}/{steps}: {titles[step]}",
            fontsize=SMALL + 2,
            color=ACCENT if is_marked else "black",
            fontweight="bold" if is_marked else "normal",
        )
        for spine in axes.spines.values():
            spine.set(visible=is_marked, color=ACCENT, linewidth=2)

    axes.set_title(max(titles, key=len), fontsize=SMALL + 2, fontweight="bold")
    return _animate(axes, draw, steps)


def episode_animation(
    frames: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    captions: Sequence[str] = (),
    title: str = "",
) -> FuncAnimation:
    """An episode as an animation with a frame for each step; save it with `save_gif`.

    >>> import io
    >>> animation = episode_animation(np.zeros((2, 7, 7, 3), np.uint8), np.full((2, 4, 5), 0.2))
    >>> buffer = io.BytesIO()
    >>> save_gif(animation, buffer, frame_seconds=0.2)
    >>> buffer.getvalue()[:6]
    b'GIF89a'

    Args:
      frames: ``[T, height, width, 3]`` uint8, from an environment's `render`.
      weights: ``[T, S, S+R]``, the attention of each step (see `attention_of`), or None.
      captions: a caption for each frame (default: 'step 1', ...).
      title: title of the figure.

    Returns:
      An animation. (Matplotlib warns if it is never drawn.)

    Raises:
      ValueError: `frames` or `weights` have other axes, or the numbers of weights or captions are
        not that of frames.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames must be [T, height, width, 3] with T > 0, got {frames.shape}")
    steps = len(frames)
    if weights is not None:
        weights = np.asarray(weights)
        if weights.ndim != 3 or weights.shape[-1] <= weights.shape[-2] or len(weights) != steps:
            raise ValueError(f"weights must be [{steps}, S, S+R], got shape {weights.shape}")
    captions = labels_of("captions", captions, steps, "step")

    figure = new_figure(2.8 if weights is None else 5.4, 3.0)
    axes = figure.subplots(1, 1 if weights is None else 2, squeeze=False)[0]
    picture = axes[0].imshow(frames[0], interpolation="nearest")
    axes[0].set(xticks=[], yticks=[])
    show = None if weights is None else _add_attention(axes[1], weights, "attention")
    figure.suptitle(title, fontsize=SMALL + 2)

    def draw(step: int) -> None:
        picture.set_data(frames[step])
        axes[0].set_title(captions[step], fontsize=SMALL + 2)
        if show is not None:
            show(step)

    axes[0].set_title(max(captions, key=len), fontsize=SMALL + 2)
    return _animate(axes[0], draw, steps)


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
    with tempfile.TemporaryDirectory() as directory:  # Matplotlib writes to paths named *.gif only.
        path = Path(directory) / "animation.gif"
        animation.save(str(path), writer=writer, dpi=dpi)
        content = path.read_bytes()
    if isinstance(target, str | os.PathLike):
        Path(target).write_bytes(content)
    else:
        target.write(content)


def _add_attention(axes: Axes, weights: np.ndarray, title: str) -> Callable[[int], None]:
    """Draws the first of ``[T, S, S+R]`` with labels; returns what shows another step."""
    slots, sources = weights.shape[1:]
    images = draw_attention(axes, weights[0], float(weights.max()), title)
    label_attention(axes, slots, sources - slots, at_most=8)
    axes.set_xlabel("attended to: slot, and input (in)", fontsize=SMALL + 1)
    axes.set_ylabel("attending slot", fontsize=SMALL + 1)

    def show(step: int) -> None:
        images[0].set_data(weights[step, :, :slots])
        images[1].set_data(weights[step, :, slots:])

    return show


def _animate(axes: Axes, draw: Callable[[int], None], steps: int) -> FuncAnimation:
    """Animates a figure with the layout that it has with the longest title, which is there now."""
    figure: Any = axes.figure
    # The layout is computed once: it depends on the previous one, so frames would shift.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return FuncAnimation(figure, draw, frames=steps, blit=False)
