"""The attention to the input: when an object is shown, before, and afterwards."""

from typing import NamedTuple

import numpy as np


class InputShare(NamedTuple):
    """The share of all slots' attention to the input rows, mean over sequences.

    Compare values at the same step, because the attention also depends on the step: early in a
    sequence the memory contains little.

    Attributes:
      before: ``[T]``, sequences that show the object later; NaN if there are none.
      shown: ``[T]``, sequences that show the object at this step.
      after: ``[T]``, sequences that showed the object before.
      uniform: R/(S+R).
    """

    before: np.ndarray
    shown: np.ndarray
    after: np.ndarray
    uniform: float

    def in_common(self) -> tuple[float, float, float]:
        """Means of `before`, `shown` and `after` over the steps that have all three.

        At the first step no sequence has shown the object before, and at the last none shows it
        later. Means over all available steps would therefore compare different steps.

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
    """The share of attention to the input, by step and by whether an object was shown.

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
    """Mean over the first axis of the chosen values; NaN without any."""
    count = chosen.sum(0)
    total = np.where(chosen, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
