"""How much attention goes to the input: when an object comes in, before, and afterwards."""

from typing import NamedTuple

import numpy as np


class InputShare(NamedTuple):
    """The share of all slots' attention that goes to the input rows, mean of sequences.

    Comparing within a step rules out what depends on the step alone: early in a sequence there is
    little in memory to attend to.

    Attributes:
      before: ``[T]``, where the object comes later; NaN where no sequence is like this.
      shown: ``[T]``, where this very step shows the object.
      after: ``[T]``, where the object has come before.
      uniform: R/(S+R).
    """

    before: np.ndarray
    shown: np.ndarray
    after: np.ndarray
    uniform: float

    def in_common(self) -> tuple[float, float, float]:
        """Means of `before`, `shown` and `after` over the steps that have all three.

        The first step has no sequence that saw the object before, and the last none in which it
        comes later: means over whatever is there would compare different steps.

        >>> nan = np.nan
        >>> share = InputShare(*np.array([[0.1, 0.2, nan], [0.9, 0.8, 0.7], [nan, 0.3, 0.4]]), 0.5)
        >>> share.in_common()
        (0.2, 0.8, 0.3)

        Returns:
          Three shares; NaN if no step has all three.
        """
        values = np.array(self[:3], np.float64)
        chosen = np.isfinite(values).all(axis=0)
        if not chosen.any():
            return (np.nan, np.nan, np.nan)
        before, shown, after = values[:, chosen].mean(axis=1).tolist()
        return before, shown, after


def input_share(weights: np.ndarray, steps: np.ndarray) -> InputShare:
    """The share of attention that goes to the input, by step and by whether an object was seen.

    >>> weights = np.array([[[[0.2, 0.8]], [[0.5, 0.5]]], [[[0.6, 0.4]], [[0.1, 0.9]]]])
    >>> share = input_share(weights, steps=np.array([0, 1]))  # B = T = 2, S = R = 1
    >>> [x.round(2).tolist() for x in share[:3]]
    [[0.4, nan], [0.8, 0.9], [nan, 0.5]]

    Args:
      weights: ``[B, T, S, S+R]``, see `attention_of`.
      steps: ``[B]`` integers, the step that shows each sequence's object, counted from 0.

    Returns:
      An `InputShare`.

    Raises:
      ValueError: wrong axes.
    """
    weights, steps = np.asarray(weights, np.float64), np.asarray(steps)
    if weights.ndim != 4 or weights.shape[-1] <= weights.shape[-2]:
        raise ValueError(f"weights must be [B, T, S, S+R], got shape {weights.shape}")
    batch, length, slots, sources = weights.shape
    if steps.shape != (batch,) or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(
            f"steps must be integers of shape [B] = ({batch},), got {steps.dtype} of shape "
            f"{steps.shape}"
        )
    share = weights[..., slots:].sum(-1).mean(-1)  # [B, T]
    lag = np.arange(length) - steps[:, None]
    return InputShare(
        *(_mean_of(share, chosen) for chosen in (lag < 0, lag == 0, lag > 0)),
        uniform=(sources - slots) / sources,
    )


def _mean_of(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is chosen; NaN where nothing is."""
    count = chosen.sum(0)
    total = np.where(chosen, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
