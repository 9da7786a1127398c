"""An episode as an animation: the game and the agent's attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation

from rrnn_jax.visualize.attention import draw_attention, label_attention
from rrnn_jax.visualize.style import SMALL, new_figure


def episode_animation(
    frames: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    captions: Sequence[str] = (),
    title: str = "",
) -> FuncAnimation:
    """An episode as an animation with a frame for each step; save it with `save_gif`.

    >>> import io
    >>> from rrnn_jax.visualize import save_gif
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
    captions = list(captions) or [f"step {i + 1}" for i in range(steps)]
    if len(captions) != steps:
        raise ValueError(f"captions must have {steps} entries, got {len(captions)}")

    figure = new_figure(2.8 if weights is None else 5.4, 3.0)
    axes = figure.subplots(1, 1 if weights is None else 2, squeeze=False)[0]
    picture = axes[0].imshow(frames[0], interpolation="nearest")
    axes[0].set(xticks=[], yticks=[])
    images: Any = ()
    slots = 0
    if weights is not None:
        slots = weights.shape[1]
        images = draw_attention(axes[1], weights[0], float(weights.max()), "attention")
        label_attention(axes[1], slots, weights.shape[2] - slots, at_most=8)
        axes[1].set_xlabel("attended to: slot, and input (in)", fontsize=SMALL + 1)
        axes[1].set_ylabel("attending slot", fontsize=SMALL + 1)
    figure.suptitle(title, fontsize=SMALL + 2)

    def draw(step: int) -> Any:
        picture.set_data(frames[step])
        axes[0].set_title(captions[step], fontsize=SMALL + 2)
        if weights is not None:
            images[0].set_data(weights[step, :, :slots])
            images[1].set_data(weights[step, :, slots:])
        return [picture, *images]

    # The layout is computed once: it depends on the previous one, so frames would shift.
    axes[0].set_title(max(captions, key=len), fontsize=SMALL + 2)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return FuncAnimation(figure, draw, frames=steps, blit=False)
