r"""How much attention goes to the slot that an object was written to, in numbers.

The paper says of its Figure 3 that, once the reference m has been seen, "all the memory slots
preferentially focus attention on those particular memories to which the m was written". To measure
it one has to say which slot that is: here, the one that m makes the largest difference to. Run the
model again with another vector in m's place; with :math:`M'` the memory of that second run,

.. math:: w_{t,s} \propto \lVert M_{t,s} - M'_{t,s} \rVert, \quad \sum_s w_{t,s} = 1,
    \qquad s^* = \arg\max_s w_{t,s}

at the step t that shows m (`change_shares`). A model may spread an object over all its slots;
:math:`\max_s w_{t,s}` tells how far it did: 1/S is evenly, 1 is into one slot alone. Without a
second run, `write_shares` goes by how far each slot attends to the input and opens its gate, which
says nothing of what the input's value does there.

A step attends to the memory before it, so the step that shows the object counts as before. Much of
the attention goes to the input rows, more at some steps than at others; to see which *slot* is
attended to, `memory_attention` leaves them out. Two chance levels stand beside the share: the
uniform one, and the share that the very slot gets in the *other* sequences at the same steps, which
rules out a slot that is always popular.
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
      uniform: one over what can be attended to: 1/(S+R), 1/S of `memory_attention`.
    """

    before: np.ndarray
    after: np.ndarray
    others_before: np.ndarray
    others_after: np.ndarray
    uniform: float


def change_shares(memories: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """How the difference that some change of the inputs makes is spread over the slots.

    >>> memories = np.zeros((1, 1, 2, 2))  # B = T = 1, S = F = 2
    >>> change_shares(memories, np.array([[[[3.0, 4.0], [0.0, 15.0]]]])).tolist()
    [[[0.25, 0.75]]]

    Args:
      memories: ``[B, T, S, F]``, after each step.
      changed: likewise, of the run on the changed inputs.

    Returns:
      ``[B, T, S]``, summing to one; zeros where nothing differs.

    Raises:
      ValueError: wrong axes.
    """
    memories, changed = np.asarray(memories, np.float64), np.asarray(changed, np.float64)
    if memories.ndim != 4 or memories.shape != changed.shape:
        raise ValueError(
            "memories and changed must be [B, T, S, F] both, got shapes "
            f"{memories.shape} and {changed.shape}"
        )
    return _shares_of(np.linalg.norm(memories - changed, axis=-1))


def memory_attention(weights: np.ndarray) -> np.ndarray:
    """The attention that goes to the memory, without the input's: rows sum to one again.

    >>> memory_attention(np.array([[[[0.1, 0.3, 0.6]] * 2]])).round(2).tolist()
    [[[[0.25, 0.75], [0.25, 0.75]]]]

    Args:
      weights: ``[B, T, S, S+R]``, see `attention_of`.

    Returns:
      ``[B, T, S, S]``, which `attention_share` and `share_by_lag` take too.

    Raises:
      ValueError: wrong axes.
    """
    weights = _check_weights(weights)
    return _shares_of(weights[..., : weights.shape[2]])


def write_shares(weights: np.ndarray, input_gate: np.ndarray | None = None) -> np.ndarray:
    r"""How each step's input is spread over the slots, by attention A and input gate i alone.

    .. math:: w_{t,s} \propto \sum_{r=1}^{R} A_{t,s,S+r} \cdot \frac{1}{F} \sum_f i_{t,s,f}

    >>> weights = np.array([[[[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]]])  # B = T = 1, S = 2, R = 1
    >>> write_shares(weights).round(2).tolist()
    [[[0.25, 0.75]]]

    Args:
      weights: ``[B, T, S, S+R]``, see `attention_of`.
      input_gate: ``[B, T, S, F]`` or ``[B, T, S, 1]``, as captured; None for a cell without gates.

    Returns:
      ``[B, T, S]``, summing to one.

    Raises:
      ValueError: wrong axes.
    """
    weights = _check_weights(weights)
    slots = weights.shape[2]
    if weights.shape[3] == slots:
        raise ValueError(f"weights must be [B, T, S, S+R] with R > 0, got shape {weights.shape}")
    amounts = weights[..., slots:].sum(-1)
    if input_gate is not None:
        gate = np.asarray(input_gate)
        if gate.shape[:-1] != weights.shape[:3]:
            raise ValueError(
                f"input_gate must be [B, T, S, F] or [B, T, S, 1] with [B, T, S] = "
                f"{weights.shape[:3]}, got shape {gate.shape}"
            )
        amounts = amounts * gate.astype(np.float64).mean(-1)
    return _shares_of(amounts)


def attention_share(weights: np.ndarray, slots: np.ndarray, steps: np.ndarray) -> AttentionShare:
    """The share of all slots' attention that goes to one slot, before and after a step.

    >>> weights = np.array([[[[0.2, 0.3, 0.5]] * 2, [[0.6, 0.3, 0.1]] * 2]])  # B = 1, T = S = 2
    >>> share = attention_share(weights, slots=np.array([0]), steps=np.array([0]))
    >>> share.before.tolist(), share.after.tolist()
    ([0.2], [0.6])

    Args:
      weights: ``[B, T, S, S+R]``, or ``[B, T, S, S]`` from `memory_attention`.
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
      uniform: one over what can be attended to.
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
    if weights.ndim != 4 or weights.shape[-1] < weights.shape[-2]:
        raise ValueError(f"weights must be [B, T, S, S+R], got shape {weights.shape}")
    return weights


def _shares_of(amounts: np.ndarray) -> np.ndarray:
    """Amounts that are not negative, scaled to sum to one over the last axis."""
    return amounts / np.maximum(amounts.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


def _mean_where(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is selected; NaN where nothing is."""
    count = where.sum(-1)
    total = np.where(where, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
