"""Loss and metrics of answers of different lengths, without padding."""

import jax
import jax.numpy as jnp
import optax

from experiments.common.problem import Mean
from rrnn_jax.typing import Array


def answer_loss(logits: Array, targets: Array, mask: Array) -> tuple[jax.Array, dict[str, Mean]]:
    """Cross-entropy per character, and the accuracy of characters and of whole answers.

    >>> logits = jnp.array([[[0.0, 9.0], [9.0, 0.0]], [[0.0, 9.0], [0.0, 9.0]]])
    >>> targets = jnp.array([[1, 1], [1, 0]])
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> _, metrics = answer_loss(logits, targets, mask)
    >>> round(float(metrics["accuracy"].value()), 3), float(metrics["sequence_accuracy"].value())
    (0.667, 0.5)

    Args:
      logits: ``[B, T_out, V]``.
      targets: ``[B, T_out]`` characters.
      mask: ``[B, T_out]`` bool: False at padding.

    Returns:
      The mean over all characters of the batch, and metrics to pool over batches: ``loss``,
      ``accuracy`` (of characters) and ``sequence_accuracy`` (of whole answers).
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    correct = jnp.argmax(logits, axis=-1) == targets
    loss = Mean.of(losses, mask)
    return loss.value(), {
        "loss": loss,
        "accuracy": Mean.of(correct, mask),
        "sequence_accuracy": Mean.of(jnp.all(correct | ~mask, axis=-1)),
    }
