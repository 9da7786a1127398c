"""Windows of token files, as truncated backpropagation reads them: pure functions of the step."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.common.refused import RefusedError
from experiments.language_model.data.token_files import Split

Feed = Callable[[int, int], "Window"]


class Window(NamedTuple):
    """T steps of B rows.

    Attributes:
      inputs: ``[..., B, T]`` int32: the tokens before the targets.
      targets: ``[..., B, T]`` int32.
      resets: ``[..., B, T]`` bool: where the state starts anew, before the step.
      mask: ``[..., B, T]`` bool: which targets count.
    """

    inputs: np.ndarray
    targets: np.ndarray
    resets: np.ndarray
    mask: np.ndarray


def training_feed(split: Split, start: int, rows: int, window: int) -> Feed:
    """Rows of equal length side by side, read window by window, again from the start at their end.

    Row b holds the tokens from b*L on, L = n // B; update s reads steps s*T to s*T + T of each,
    modulo L, so that no token but the last n modulo B is left out, and a row that begins again in
    the midst of a window is reset there.

    Args:
      split: what is read.
      start: the token that stands before the first.
      rows: B.
      window: T.

    Returns:
      ``feed(step, num_steps)``, a `Window` of leading axis `num_steps`.

    Raises:
      RefusedError: rows are shorter than a window.
    """
    length = len(split.tokens) // rows
    if length < window:
        raise RefusedError(
            f"the {split.name} split has {len(split.tokens)} tokens, less than a window of "
            f"{window} in each of {rows} rows; choose fewer rows, a shorter window or a longer text"
        )

    def feed(step: int, num_steps: int) -> Window:
        position = np.arange(step * window, (step + num_steps) * window) % length
        position = position.reshape(num_steps, 1, window)
        index = position + (np.arange(rows) * length)[:, None]
        resets = np.broadcast_to(position == 0, index.shape).copy()
        return _window(split, start, index, resets, np.ones(index.shape, bool))

    return feed


def evaluation_feed(
    split: Split, start: int, rows: int, window: int, carried: bool = True
) -> tuple[Feed, int]:
    """Every token of a split once.

    Args:
      split: what is read.
      start: the token that stands before the first.
      rows: B, each of which starts without a state; 1 reads the split in one go.
      window: T.
      carried: whether the state is carried from a window to the next of its row. False: every
        window starts anew, as in the paper's Figure 12.

    Returns:
      The feed, and how many steps there are.

    Raises:
      RefusedError: there are more rows than tokens.
    """
    total = len(split.tokens)
    if rows > total:
        raise RefusedError(f"the {split.name} split has {total} tokens, fewer than {rows} rows")
    length = -(-total // rows)
    if not carried:
        # Whole windows, so that none is cut off at the end of a row.
        length = -(-length // window) * window

    def feed(step: int, num_steps: int) -> Window:
        position = np.arange(step * window, (step + num_steps) * window)
        position = position.reshape(num_steps, 1, window)
        index = position + (np.arange(rows) * length)[:, None]
        mask = np.broadcast_to(position < length, index.shape) & (index < total)
        fresh = position % window == 0 if not carried else position == 0
        resets = np.broadcast_to(fresh, index.shape).copy()
        return _window(split, start, np.minimum(index, total - 1), resets, mask)

    return feed, -(-length // window)


def _window(
    split: Split, start: int, index: np.ndarray, resets: np.ndarray, mask: np.ndarray
) -> Window:
    before = np.where(index == 0, start, split.tokens[np.maximum(index - 1, 0)])
    targets = split.tokens[index]
    return Window(before.astype(np.int32), targets.astype(np.int32), resets, mask)
