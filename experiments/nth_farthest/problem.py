"""Nth Farthest as the training loop wants it, for any model."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.common.problem import Mean, Problem, accuracy
from experiments.common.supervised import supervised
from experiments.common.train_config import TrainConfig
from rrnn_jax.tasks import nth_farthest


def make_problem(task: nth_farthest.Config, model: nn.Module, train: TrainConfig) -> Problem:
    """The task, and a model that makes logits ``[B, N]`` of its inputs ``[B, N, I]``."""

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, task.num_objects, task.input_size), jnp.float32))

    def loss(params: Any, batch: nth_farthest.Batch) -> tuple[jax.Array, dict[str, Mean]]:
        logits = jnp.asarray(model.apply(params, batch.inputs))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        correct = jnp.argmax(logits, axis=-1) == batch.targets
        return jnp.mean(losses), {"accuracy": Mean.of(correct)}

    return supervised(
        train,
        init=init,
        sample=lambda key, level, batch_size: nth_farthest.sample(key, task, batch_size),
        loss=loss,
        sample_eval=lambda key, batch_size: nth_farthest.sample(key, task, batch_size),
        score=accuracy(task.trivial_accuracy, "accuracy on fresh sequences"),
    )
