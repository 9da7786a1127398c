"""Measures of the memory over a sequence: movement, similarity, principal components."""

from typing import NamedTuple

import numpy as np


def slot_movement(memories: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """The Euclidean distance that each slot moves in each step.

    >>> memories = np.array([[[3.0, 4.0]], [[3.0, 4.0]]])  # T = 2, S = 1, F = 2
    >>> slot_movement(memories, np.zeros((1, 2))).tolist()
    [[5.0], [0.0]]

    Args:
      memories: ``[*B, T, S, F]``, after each step (`return_all_carries`).
      initial: ``[*B, S, F]``, before the first step.

    Returns:
      ``[*B, T, S]``.

    Raises:
      ValueError: incompatible shapes.
    """
    memories, initial = np.asarray(memories, np.float64), np.asarray(initial, np.float64)
    if memories.ndim < 3 or initial.shape != memories.shape[:-3] + memories.shape[-2:]:
        raise ValueError(
            "memories must be [*B, T, S, F] and initial [*B, S, F], got shapes "
            f"{memories.shape} and {initial.shape}"
        )
    before = np.concatenate([initial[..., None, :, :], memories[..., :-1, :, :]], axis=-3)
    return np.linalg.norm(memories - before, axis=-1)


def slot_similarity(memory: np.ndarray) -> np.ndarray:
    """Cosine similarity between slots.

    >>> slot_similarity(np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])).tolist()
    [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]

    Args:
      memory: ``[..., S, F]``.

    Returns:
      ``[..., S, S]``; 0 for a slot of zeros, also on the diagonal.

    Raises:
      ValueError: fewer than two axes.
    """
    memory = np.asarray(memory, np.float64)
    if memory.ndim < 2:
        raise ValueError(f"memory must be [..., S, F], got shape {memory.shape}")
    length = np.linalg.norm(memory, axis=-1, keepdims=True)
    unit = memory / np.where(length > 0, length, 1.0)
    # Rounding may exceed one. Adding zero converts -0 to 0.
    return np.clip(unit @ np.swapaxes(unit, -1, -2), -1.0, 1.0) + 0.0


class Projection(NamedTuple):
    """Slots in the plane of their first two principal components.

    Attributes:
      points: ``[..., 2]`` for slots ``[..., F]``.
      explained: ``[2]``, the share of variance of each component.
    """

    points: np.ndarray
    explained: np.ndarray


def project_slots(memories: np.ndarray) -> Projection:
    """The first two principal components of all slots at all steps, by an SVD.

    The sign of a component is arbitrary; here its entry of largest magnitude is positive, so the
    same memories give the same picture.

    >>> points, explained = project_slots(np.array([[[0.0, 1.0], [2.0, 1.0]]]))
    >>> points[..., 0].round(6).tolist(), explained.round(6).tolist()
    ([[-1.0, 1.0]], [1.0, 0.0])

    Args:
      memories: ``[..., F]``; a single slot lies at the origin.

    Returns:
      A `Projection`.

    Raises:
      ValueError: no axis of slots, no slots, or NaN or infinity.
    """
    memories = np.asarray(memories, np.float64)
    if memories.ndim < 2 or memories.size == 0:
        raise ValueError(f"memories must be [..., F] with slots, got shape {memories.shape}")
    if not np.isfinite(memories).all():
        raise ValueError("memories must be finite, got NaN or infinity")
    rows = memories.reshape(-1, memories.shape[-1])
    rows = rows - rows.mean(axis=0)
    _, values, components = np.linalg.svd(rows, full_matrices=False)
    values, components = _two(values), _two(components)
    largest = np.argmax(np.abs(components), axis=1)
    components = components * np.where(components[np.arange(2), largest] < 0, -1.0, 1.0)[:, None]
    total = np.square(rows).sum()
    explained = np.square(values) / total if total > 0 else np.zeros(2)
    return Projection((rows @ components.T).reshape(*memories.shape[:-1], 2), explained)


def _two(array: np.ndarray) -> np.ndarray:
    """The first two entries of the first axis, padded with zeros."""
    missing = max(0, 2 - len(array))
    return np.concatenate([array[:2], np.zeros((missing, *array.shape[1:]))])
