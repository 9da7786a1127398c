"""The animation of an episode: as many frames as steps, and what it refuses."""

import io

import numpy as np
import pytest
from PIL import Image

from rrnn_jax.visualize import episode_animation, save_gif


@pytest.mark.parametrize("weights", [None, np.full((3, 2, 3), 1 / 3)])
def test_every_step_is_a_frame(weights):
    frames = np.zeros((3, 4, 5, 3), np.uint8)
    for step in range(3):
        frames[step, 1, step] = 255
    buffer = io.BytesIO()
    animation = episode_animation(frames, weights, captions=["a", "bb", "ccc"], title="game")
    save_gif(animation, buffer, frame_seconds=0.1, dpi=50)
    with Image.open(buffer) as gif:
        assert gif.n_frames == 3
        pictures = []
        for step in range(3):
            gif.seek(step)
            pictures.append(np.asarray(gif.convert("L")).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() > 100
    assert np.abs(pictures[1] - pictures[2]).max() > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": np.zeros((0, 4, 4, 3))}, "frames must be"),
        ({"frames": np.zeros((2, 4, 4))}, "frames must be"),
        ({"weights": np.zeros((3, 2, 3))}, r"weights must be \[2, S, S\+R\], got shape"),
        ({"captions": ["one"]}, "captions must have 2 entries, got 1"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"frames": np.zeros((2, 4, 4, 3), np.uint8), **arguments}
    with pytest.raises(ValueError, match=message):
        episode_animation(**given)
