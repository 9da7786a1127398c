r"""How much attention goes to the slot that an object was written to, in numbers.

The paper says of its Figure 3 that, once the reference m has been seen, "all the memory slots
preferentially focus attention on those particular memories to which the m was written". To measure
it one has to say which slot that is. Here, an object is written to the slot that takes up most of
it at the step that shows it: with attention A from slot s to the R input rows and the input gate i,

.. math:: w_{t,s} \propto \sum_{r=1}^{R} A_{t,s,S+r} \cdot \frac{1}{F} \sum_f i_{t,s,f},
    \qquad s^*_t = \arg\max_s w_{t,s}

(without the gate's factor for a cell that has none). A cell may spread an object over several
slots; :math:`\max_s w_{t,s}` tells how far it did: 1/S is evenly, 1 is into one slot alone.

What a step attends to is the memory before it, so the step that shows the object counts as before.
Two chance levels stand beside the share: the uniform one, 1/(S+R), and the share that the very slot
gets in the *other* sequences at the same steps, which rules out a slot that is always popular.
"""

from typing import NamedTuple

import numpy as np


class AttentionShare(NamedTuple):
    """Mean attention to one slot per sequence, before and after something was written to it.

    Attributes:
      before: ``[B]``, over the steps up to the one that writes; what they attend to has not seen
        the object yet.
      after: ``[B]``, over the steps behind it; NaN where it was the last.
      others_before: ``[B]``, the same slot at the same steps, mean over the other sequences.
      others_after: ``[B]``, likewise.
      uniform: 1/(S+R).
    """

    before: np.ndarray
    after: np.ndarray
    others_before: np.ndarray
    others_after: np.ndarray
    uniform: float


def write_shares(weights: np.ndarray, input_gate: np.ndarray | None = None) -> np.ndarray:
    """How each step's input is spread over the slots; sums to one.

    >>> weights = np.array([[[[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]]])  # B = T = 1, S = 2, R = 1
    >>> write_shares(weights).round(2).tolist()
    [[[0.25, 0.75]]]

    Args:
      weights: ``[B, T, S, S+R]``, see `attention_of`.
      input_gate: ``[B, T, S, F]`` or ``[B, T, S, 1]``, as captured; None for a cell without gates.

    Returns:
      ``[B, T, S]``. Its argmax over the slots is the slot written to; ties go to the lower slot.

    Raises:
      ValueError: wrong axes.
    """
    weights = _check_weights(weights)
    slots = weights.shape[2]
    amounts = weights[..., slots:].sum(-1)
    if input_gate is not None:
        gate = np.asarray(input_gate)
        if gate.shape[:-1] != weights.shape[:3]:
            raise ValueError(
                f"input_gate must be [B, T, S, F] or [B, T, S, 1] with [B, T, S] = "
                f"{weights.shape[:3]}, got shape {gate.shape}"
            )
        amounts = amounts * gate.astype(np.float64).mean(-1)
    return amounts / np.maximum(amounts.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


def attention_share(weights: np.ndarray, slots: np.ndarray, steps: np.ndarray) -> AttentionShare:
    """The share of all slots' attention that goes to one slot, before and after a step.

    >>> weights = np.array([[[[0.2, 0.3, 0.5]] * 2, [[0.6, 0.3, 0.1]] * 2]])  # B = 1, T = S = 2
    >>> share = attention_share(weights, slots=np.array([0]), steps=np.array([0]))
    >>> share.before.tolist(), share.after.tolist()
    ([0.2], [0.6])

    Args:
      weights: ``[B, T, S, S+R]``.
      slots: ``[B]``, the slot that each sequence's object was written to, counted from 0.
      steps: ``[B]``, the step that showed the object, counted from 0.

    Returns:
      An `AttentionShare`; a mean over all slots that attend, the slot itself among them.

    Raises:
      ValueError: wrong axes, no such slot, no such step.
    """
    own, others, uniform = _shares(weights, slots, steps)
    is_after = np.arange(own.shape[1]) > np.asarray(steps)[:, None]
    return AttentionShare(
        _mean_where(own, ~is_after),
        _mean_where(own, is_after),
        _mean_where(others, ~is_after),
        _mean_where(others, is_after),
        uniform,
    )


class ShareByLag(NamedTuple):
    """Attention to the written slot against the steps since it was written, mean of sequences.

    Attributes:
      lags: ``[2T-1]``, -(T-1)..T-1; 0 is the step that shows the object.
      share: ``[2T-1]``, NaN where no sequence has such a step.
      others: ``[2T-1]``, the same slots at the same steps in the other sequences.
      uniform: 1/(S+R).
    """

    lags: np.ndarray
    share: np.ndarray
    others: np.ndarray
    uniform: float


def share_by_lag(weights: np.ndarray, slots: np.ndarray, steps: np.ndarray) -> ShareByLag:
    """As `attention_share`, for each distance in steps; the arguments are the same.

    >>> weights = np.array([[[[0.2, 0.3, 0.5]] * 2, [[0.6, 0.3, 0.1]] * 2]])
    >>> share_by_lag(weights, slots=np.array([0]), steps=np.array([0])).share.tolist()
    [nan, 0.2, 0.6]
    """
    own, others, uniform = _shares(weights, slots, steps)
    length = own.shape[1]
    lags = np.arange(1 - length, length)
    lag_of = np.arange(length) - np.asarray(steps)[:, None]
    share, other = (
        np.array([_mean_where(x.ravel(), (lag_of == lag).ravel()) for lag in lags])
        for x in (own, others)
    )
    return ShareByLag(lags, share, other, uniform)


def _shares(
    weights: np.ndarray, slots: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Share of each sequence's slot at every step: its own, and the other sequences' mean."""
    weights = _check_weights(weights)
    batch, length, count, sources = weights.shape
    for name, given, limit in (("slots", slots, count), ("steps", steps, length)):
        given = np.asarray(given)
        if given.shape != (batch,) or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"{name} must be integers of shape [B] = ({batch},), got {given.dtype} of shape "
                f"{given.shape}"
            )
        if ((given < 0) | (given >= limit)).any():
            raise ValueError(f"{name} must lie in 0..{limit - 1}, got {given.tolist()}")
    to_slots = weights[..., :count].mean(axis=2)  # [B, T, S]: the mean of the slots that attend.
    own = to_slots[np.arange(batch), :, slots]
    if batch > 1:
        others = (to_slots.sum(axis=0)[:, slots].T - own) / (batch - 1)
    else:
        others = np.full_like(own, np.nan)
    return own, others, 1 / sources


def _check_weights(weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 4 or weights.shape[-1] <= weights.shape[-2]:
        raise ValueError(f"weights must be [B, T, S, S+R], got shape {weights.shape}")
    return weights


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is selected; NaN where nothing is."""
    count = where.sum(-1)
    total = np.where(where, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
