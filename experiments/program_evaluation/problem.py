"""Program evaluation as a training problem, for any core."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.problem import Mean, Params, Problem, accuracy
from experiments.common.supervised import Curriculum, supervised
from experiments.common.train_config import TrainConfig
from experiments.program_evaluation.data import Task
from experiments.program_evaluation.metrics import answer_loss
from experiments.program_evaluation.model import Model
from rrnn_jax.tasks import curriculum, learn_to_execute
from rrnn_jax.tasks.characters import Batch

SHOWN = 4
"""Number of samples printed at every evaluation."""


def make_problem(task: Task, model: Model, train: TrainConfig) -> Problem:
    """The problem of a task and a model.

    Args:
      task: the task; the level of its curriculum is part of the training state.
      model: the model; with ``decoding="teacher_forced"`` it is given the targets in training.
      train: the training config.
    """

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.bool_))

    def eval_loss(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Mean]]:
        logits = jnp.asarray(model.apply(params, batch.inputs, batch.input_mask))
        return answer_loss(logits, batch.targets, batch.target_mask)

    def taught_loss(params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Mean]]:
        logits = model.apply(params, batch.inputs, batch.input_mask, batch.targets)
        return answer_loss(jnp.asarray(logits), batch.targets, batch.target_mask)

    def next_level(level: Any, metrics: Mapping[str, Mean]) -> Any:
        return curriculum.advance(level, metrics["loss"].value(), task.config)

    def level_metrics(level: curriculum.CurriculumState) -> dict[str, Mean]:
        if task.config.curriculum not in curriculum.LEVELLED:
            return {}
        return {"length": Mean.of(level.length), "nesting": Mean.of(level.nesting)}

    return supervised(
        train,
        init=init,
        sample=task.sample,
        loss=taught_loss if model.decoding == "teacher_forced" else eval_loss,
        sample_eval=task.sample_hardest,
        eval_loss=eval_loss,
        score=accuracy(task.trivial_accuracy(), "characters right, at full difficulty"),
        curriculum=Curriculum(curriculum.initial_state(task.config), next_level, level_metrics),
        show=_make_show(model, task),
    )


def _make_show(model: Model, task: Task) -> Callable[[Params], str]:
    """``show(params) -> text``: questions, targets and the model's answers."""

    @jax.jit
    def answer(params: Any) -> tuple[Batch, jax.Array]:
        batch = task.sample_hardest(jax.random.key(0), SHOWN)
        logits = jnp.asarray(model.apply(params, batch.inputs, batch.input_mask))
        return batch, jnp.argmax(logits, axis=-1)

    def show(params: Any) -> str:
        batch, answers = jax.device_get(answer(params))
        lines = []
        for i in range(SHOWN):
            question = learn_to_execute.decode(batch.inputs[i])
            length = int(batch.target_lengths[i])
            target = learn_to_execute.decode(batch.targets[i, :length])
            answered = learn_to_execute.decode(answers[i, :length])
            mark = "right" if answered == target else "wrong"
            lines.append(f"{question} = {target}, answered {answered}: {mark}")
        return "\n".join(lines)

    return show
