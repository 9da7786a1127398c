r"""The attention to the slot that an object was written to, and to the input, in numbers.

According to the paper's Figure 3, once the reference m has been seen, "all the memory slots
preferentially focus attention on those particular memories to which the m was written". Here that
slot is the one that m changes most. Run the model again with another vector instead of m; with
:math:`M'` the memory of the second run,

.. math:: w_{t,s} \propto \lVert M_{t,s} - M'_{t,s} \rVert, \quad \sum_s w_{t,s} = 1,
    \qquad s^* = \arg\max_s w_{t,s}

at the step t that shows m (`change_shares`). A model may spread an object over all its slots:
:math:`\max_s w_{t,s}` is 1/S if it is spread evenly, and 1 if it is in a single slot. Without a
second run, `write_shares` uses each slot's attention to the input and its input gate, which do not
depend on the effect of the input's value.

A step attends to the memory before it, so the step that shows the object counts as before. The
attention to the input rows varies between steps; `memory_attention` excludes it, so that only
*slots* are compared. There are two chance levels: the uniform one, and the share of the same slot
in the *other* sequences at the same steps, which excludes slots that always get much attention.

`input_share` has the attention to the input when an object is shown, before, and afterwards.
"""

from typing import NamedTuple

import numpy as np


class AttentionShare(NamedTuple):
    """Mean attention to one slot per sequence, before and after an object was written to it.

    Attributes:
      before: ``[B]``, over the steps up to the one that writes; the memory that they attend to
        does not contain the object yet.
      after: ``[B]``, over the later steps; NaN if there are none.
      others_before: ``[B]``, the same slot at the same steps, mean over the other sequences.
      others_after: ``[B]``, likewise.
      uniform: the uniform share, 1/(S+R), or 1/S for `memory_attention`.
    """

    before: np.ndarray
    after: np.ndarray
    others_before: np.ndarray
    others_after: np.ndarray
    uniform: float


def change_shares(memories: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """The distribution over slots of the effect of a change of the inputs.

    >>> memories = np.zeros((1, 1, 2, 2))  # B = T = 1, S = F = 2
    >>> change_shares(memories, np.array([[[[3.0, 4.0], [0.0, 15.0]]]])).tolist()
    [[[0.25, 0.75]]]

    Args:
      memories: ``[B, T, S, F]``, after each step.
      changed: likewise, for the changed inputs.

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
    """The attention to the memory without the input, normalised so that rows sum to one.

    >>> memory_attention(np.array([[[[0.1, 0.3, 0.6]] * 2]])).round(2).tolist()
    [[[[0.25, 0.75], [0.25, 0.75]]]]

    Args:
      weights: ``[B, T, S, S+R]``, see `attention_of`.

    Returns:
      ``[B, T, S, S]``, for `attention_share` and `share_by_lag`.

    Raises:
      ValueError: wrong axes.
    """
    weights = _check_weights(weights)
    return _shares_of(weights[..., : weights.shape[2]])


def write_shares(weights: np.ndarray, input_gate: np.ndarray | None = None) -> np.ndarray:
    r"""The distribution of each step's input over the slots, by attention A and input gate i.

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
    weights = _check_weights(weights, has_inputs=True)
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
    return _shares_of(amounts)


def attention_share(weights: np.ndarray, slots: np.ndarray, steps: np.ndarray) -> AttentionShare:
    """The share of all slots' attention to one slot, before and after a step.

    >>> weights = np.array([[[[0.2, 0.3, 0.5]] * 2, [[0.6, 0.3, 0.1]] * 2]])  # B = 1, T = S = 2
    >>> share = attention_share(weights, slots=np.array([0]), steps=np.array([0]))
    >>> share.before.tolist(), share.after.tolist()
    ([0.2], [0.6])

    Args:
      weights: ``[B, T, S, S+R]``, or ``[B, T, S, S]`` from `memory_attention`.
      slots: ``[B]``, the slot that each sequence's object was written to, counted from 0.
      steps: ``[B]``, the step that showed the object, counted from 0.

    Returns:
      An `AttentionShare`, a mean over all attending slots, including the slot itself.

    Raises:
      ValueError: wrong axes, slot or step out of range.
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
    """Attention to the written slot by steps since the write, mean over sequences.

    Attributes:
      lags: ``[2T-1]``, -(T-1)..T-1; 0 is the step that shows the object.
      share: ``[2T-1]``, NaN if no sequence has such a step.
      others: ``[2T-1]``, the same slots at the same steps in the other sequences.
      uniform: the uniform share.
    """

    lags: np.ndarray
    share: np.ndarray
    others: np.ndarray
    uniform: float


def share_by_lag(weights: np.ndarray, slots: np.ndarray, steps: np.ndarray) -> ShareByLag:
    """As `attention_share`, for each distance in steps, with the same arguments.

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
      ValueError: wrong axes, or a step out of range.
    """
    weights = _check_weights(weights, has_inputs=True)
    batch, length, slots, sources = weights.shape
    _check_indices("steps", steps, batch, length)
    share = weights[..., slots:].sum(-1).mean(-1)  # [B, T]
    lag = np.arange(length) - np.asarray(steps)[:, None]
    return InputShare(
        *(_mean_where(share, chosen, axis=0) for chosen in (lag < 0, lag == 0, lag > 0)),
        uniform=(sources - slots) / sources,
    )


def _shares(
    weights: np.ndarray, slots: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The share of each sequence's slot at every step: in it, and the mean over the others."""
    weights = _check_weights(weights)
    batch, length, count, sources = weights.shape
    for name, given, limit in (("slots", slots, count), ("steps", steps, length)):
        _check_indices(name, given, batch, limit)
    to_slots = weights[..., :count].mean(axis=2)  # [B, T, S]: mean over the attending slots.
    own = to_slots[np.arange(batch), :, slots]
    if batch > 1:
        others = (to_slots.sum(axis=0)[:, slots].T - own) / (batch - 1)
    else:
        others = np.full_like(own, np.nan)
    return own, others, 1 / sources


def _check_weights(weights: np.ndarray, has_inputs: bool = False) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 4 or weights.shape[-1] < weights.shape[-2] + has_inputs:
        what = " with R > 0" if has_inputs else ""
        raise ValueError(f"weights must be [B, T, S, S+R]{what}, got shape {weights.shape}")
    return weights


def _check_indices(name: str, given: np.ndarray, batch: int, limit: int) -> None:
    given = np.asarray(given)
    if given.shape != (batch,) or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers of shape [B] = ({batch},), got {given.dtype} of shape "
            f"{given.shape}"
        )
    if ((given < 0) | (given >= limit)).any():
        raise ValueError(f"{name} must lie in 0..{limit - 1}, got {given.tolist()}")


def _shares_of(amounts: np.ndarray) -> np.ndarray:
    """Non-negative amounts, scaled to sum to one over the last axis."""
    return amounts / np.maximum(amounts.sum(-1, keepdims=True), np.finfo(np.float64).tiny)


def _mean_where(values: np.ndarray, where: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over an axis of the selected values; NaN without any."""
    count = where.sum(axis)
    total = np.where(where, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
