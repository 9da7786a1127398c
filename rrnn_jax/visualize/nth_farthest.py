"""Attention on Nth Farthest, in the three cases of the paper's Figure 3."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from rrnn_jax.tasks.nth_farthest import Question
from rrnn_jax.visualize.attention import attention_figure


def case_steps(count: int) -> dict[str, int]:
    """The step, counted from 0, at which each of the three cases shows the reference.

    >>> case_steps(8)
    {'last': 7, 'first': 0, 'middle': 4}

    Args:
      count: N, the objects in a sequence.
    """
    return {"last": count - 1, "first": 0, "middle": count // 2}


def reference_steps(question: Question) -> np.ndarray:
    """The step at which each sequence shows the object that the question refers to.

    >>> labels, m = np.array([[2, 0, 1], [0, 1, 2]]), np.array([1, 0])
    >>> reference_steps(Question(None, labels, None, m)).tolist()
    [2, 0]

    Args:
      question: decoded inputs of B sequences.

    Returns:
      ``[B]`` integers, counted from 0.

    Raises:
      ValueError: the shapes are not ``[B, T]`` and ``[B]``, or a sequence does not show its
        reference once.
    """
    labels, reference = np.asarray(question.labels), np.asarray(question.reference)
    if labels.ndim != 2:
        raise ValueError(f"question.labels must have shape [B, T], got {labels.shape}")
    if reference.shape != labels.shape[:1]:
        raise ValueError(
            f"question.reference must have shape [B] = {labels.shape[:1]}, got {reference.shape}"
        )
    shown = labels == reference[:, None]
    if (wrong := np.flatnonzero(shown.sum(axis=1) != 1)).size:
        b = wrong[0]
        raise ValueError(
            f"question.labels must hold the reference of each sequence once, got reference "
            f"{reference[b]} and labels {labels[b].tolist()} in sequence {b}"
        )
    return np.argmax(shown, axis=1)


def reference_cases(question: Question) -> list[int]:
    """The first sequences of a batch that show the reference last, first, and in the middle.

    >>> labels = np.array([[2, 0, 1], [0, 1, 2], [1, 2, 0], [0, 2, 1]])
    >>> reference_cases(Question(None, labels, None, np.array([0, 0, 0, 1])))
    [2, 1, 0]

    Args:
      question: decoded inputs of B sequences.

    Returns:
      Three indices of sequences, in the order of `case_steps`.

    Raises:
      ValueError: the batch has no sequence of one of the cases; see also `reference_steps`.
    """
    steps = reference_steps(question)
    count = np.asarray(question.labels).shape[1]
    found = []
    for case, step in case_steps(count).items():
        (fitting,) = np.nonzero(steps == step)
        if not len(fitting):
            raise ValueError(
                f"question must hold a sequence that shows the reference {case} (step {step + 1} "
                f"of {count}), got {len(steps)} sequences without one"
            )
        found.append(int(fitting[0]))
    return found


def nth_farthest_figure(
    weights: np.ndarray,
    question: Question,
    *,
    sequences: Sequence[int] | None = None,
    title: str = "Nth Farthest: attention, head mean",
) -> Figure:
    """Draws attention over sequences of Nth Farthest; the reference's step is framed.

    After ``question = nth_farthest.decode(batch.inputs, config)``, or with your own question:

    >>> labels = np.array([[2, 0, 1], [0, 1, 2], [1, 2, 0]])
    >>> question = Question(None, labels, None, reference=np.array([1, 0, 2]))
    >>> figure = nth_farthest_figure(np.full((3, 3, 4, 5), 0.2), question)
    >>> figure.axes[0].get_ylabel(), figure.axes[2].get_title()
    ('seen last', 'm = 2')

    Args:
      weights: ``[B, T, S, S+R]``, see `attention_of`.
      question: the same sequences, decoded.
      sequences: the sequences to draw (default: `reference_cases`).
      title: title of the figure.

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: `weights` and `question` have different batch sizes or lengths, or the
        batch lacks one of `sequences`; see also `reference_steps`.
    """
    weights, labels = np.asarray(weights), np.asarray(question.labels)
    steps = reference_steps(question)
    if weights.shape[:2] != labels.shape:
        raise ValueError(
            f"weights must be of the question's [B, T] = {labels.shape}, got shape {weights.shape}"
        )
    if sequences is None:
        sequences = reference_cases(question)
        row_labels = [f"seen {case}" for case in case_steps(labels.shape[1])]
    else:
        if outside := [b for b in sequences if not -len(labels) <= b < len(labels)]:
            raise ValueError(f"sequences must be of the batch of {len(labels)}, got {outside}")
        row_labels = [f"seen at step {steps[b] + 1}" for b in sequences]
    return attention_figure(
        weights[list(sequences)],
        title=f"{title}\n(framed: the step that shows m, to which distances are asked)",
        row_labels=row_labels,
        panel_titles=[object_titles(labels[b], int(steps[b])) for b in sequences],
        marked=[int(steps[b]) for b in sequences],
    )


def object_titles(labels: np.ndarray, reference_step: int) -> list[str]:
    """A panel title for each step: the object's label, counted from 1, and whether it is m.

    >>> object_titles(np.array([2, 0, 1]), 1)
    ['object 3', 'm = 1', 'object 2']
    """
    return [
        f"m = {label + 1}" if step == reference_step else f"object {label + 1}"
        for step, label in enumerate(labels)
    ]
