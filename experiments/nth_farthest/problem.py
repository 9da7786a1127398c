"""Nth Farthest as a training problem, for any model."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.common.problem import Mean, Problem, accuracy
from experiments.common.supervised import supervised
from experiments.common.train_config import TrainConfig
from experiments.nth_farthest.curriculum import Batch, CurriculumConfig, make_curriculum, sample
from rrnn_jax.tasks import nth_farthest

Found = tuple[jax.Array, dict[str, Mean]]


def make_problem(
    task: nth_farthest.Config,
    model: nn.Module,
    train: TrainConfig,
    stages: CurriculumConfig | None = None,
) -> Problem:
    """The problem of the task with a model that maps inputs ``[B, N, I]`` to logits ``[B, N]``.

    Args:
      task: the evaluated task: uniform vectors, all ranks, the last step's answer.
      model: with ``every_step=True`` its logits are ``[B, N, N]``, for every step.
      train: the training config.
      stages: the stages of training (default: the evaluated task).
    """

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, task.num_objects, task.input_size), jnp.float32))

    def loss(params: Any, batch: nth_farthest.Batch) -> Found:
        logits = jnp.asarray(model.apply(params, batch.inputs))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        correct = jnp.argmax(logits, axis=-1) == batch.targets
        return jnp.mean(losses), {"accuracy": Mean.of(correct)}

    def staged_loss(params: Any, batch: Batch) -> Found:
        last = nth_farthest.Batch(batch.inputs, batch.targets[:, -1])
        if stages is None or not stages.asks_earlier:
            return loss(params, last)
        logits = jnp.asarray(model.apply(params, batch.inputs, every_step=True))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        total = jnp.sum(losses * batch.weights) / jnp.float32(losses.shape[0])
        correct = jnp.argmax(logits[:, -1], axis=-1) == last.targets
        return total, {"accuracy": Mean.of(correct), "last_loss": Mean.of(losses[:, -1])}

    shared = {
        "init": init,
        "sample_eval": lambda key, batch_size: nth_farthest.sample(key, task, batch_size),
        "score": accuracy(task.trivial_accuracy, "accuracy on fresh sequences"),
    }
    if stages is None:
        return supervised(
            train,
            sample=lambda key, level, batch_size: nth_farthest.sample(key, task, batch_size),
            loss=loss,
            **shared,
        )
    return supervised(
        train,
        sample=lambda key, level, rows: sample(key, stages, task, level.stage, rows),
        loss=staged_loss,
        eval_loss=loss,
        curriculum=make_curriculum(stages),
        **shared,
    )
