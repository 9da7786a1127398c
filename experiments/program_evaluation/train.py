"""Training of one or all models on one or all tasks."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.common import loop
from experiments.common.cells import TITLES as TITLES
from experiments.common.cells import recipe
from experiments.common.metrics import read_curves
from experiments.common.plots import plot_metric
from experiments.common.problem import Mean, Problem, accuracy
from experiments.common.records import write_json
from experiments.common.run_directory import SUMMARY_FILE, open_run
from experiments.common.runs import evaluate_runs
from experiments.common.supervised import Curriculum, supervised
from experiments.program_evaluation.config import Config
from experiments.program_evaluation.data import Task, make_task
from experiments.program_evaluation.metrics import answer_loss
from experiments.program_evaluation.model import Model, make_model
from rrnn_jax.tasks import curriculum, learn_to_execute
from rrnn_jax.tasks.characters import Batch

SHOWN = 4
"""Number of samples printed at every evaluation."""

Runs = dict[tuple[str, str], tuple[Path, Config]]
"""By task and model, the directory and the config of a run."""


def make_problem(config: Config) -> Problem:
    """The training problem of a config."""
    task = make_task(config)
    model = make_model(config, task.config.vocab_size, task.output_steps)
    teaches = config.decoding == "teacher_forced"

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
        if config.difficulty.curriculum not in curriculum.LEVELLED:
            return {}
        return {"length": Mean.of(level.length), "nesting": Mean.of(level.nesting)}

    return supervised(
        recipe(config, config.model, config.train),
        init=init,
        sample=task.sample,
        loss=taught_loss if teaches else eval_loss,
        sample_eval=task.sample_hardest,
        eval_loss=eval_loss,
        score=accuracy(task.trivial_accuracy(), "characters right, at full difficulty"),
        curriculum=Curriculum(curriculum.initial_state(task.config), next_level, level_metrics),
        show=_make_show(model, task),
    )


def _make_show(model: Model, task: Task) -> Any:
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


def train(
    config: Config, run_dir: Path, *, resume: bool | None = None, progress: bool = True
) -> dict[str, Any]:
    """Trains the tasks and models of a config, draws the plots, and returns the summaries.

    One run is in `run_dir`, several in subdirectories ``<task>/<model>``.

    Args:
      config: the config of the run or runs.
      run_dir: the directory; unfinished runs resume.
      resume: see `experiments.common.run_directory.open_run`.
      progress: whether to draw a progress bar.

    Returns:
      For each task, for each model: steps, parameters, evaluations, training time; also written to
      ``summary.json`` of each run.
    """
    runs = list_runs(config, run_dir)
    check(config)  # Errors come before a directory is created.
    for directory, one in runs.values():
        open_run(directory, one, resume)
    summaries: dict[str, Any] = {task: {} for task in config.tasks}
    for (task, model), (directory, one) in runs.items():
        problem = make_problem(one)
        name = f"{task}, {model}"
        outcome = loop.train(problem, one.train, directory, name, progress)
        summary = summarise(outcome, one, directory, float(problem.score.trivial or 0))
        plot(task, {model: directory}, directory, float(problem.score.trivial or 0))
        write_json(directory / SUMMARY_FILE, summary)
        summaries[task][model] = summary
    if not config.is_single:
        for task in config.tasks:
            trivial = next(iter(summaries[task].values()))["trivial_accuracy"]
            directories = {model: runs[task, model][0] for model in config.models}
            plot(task, directories, run_dir, trivial, prefix=f"{task}_")
    return summaries


def check(config: Config) -> None:
    """Checks that the tasks and models of a config can be made.

    Raises:
      ValueError: one cannot be made; the message names the field of the config.
    """
    for _, one in list_runs(config, Path()).values():
        task = make_task(one)
        make_model(one, task.config.vocab_size, task.output_steps)


def evaluate(config: Config, run_dir: Path) -> dict[str, Any]:
    """Evaluates a run's newest checkpoints on both streams; writes ``evaluation.json``."""
    found = evaluate_runs(list_runs(config, run_dir), make_problem)
    return {task: {model: found[task, model] for model in config.models} for task in config.tasks}


def list_runs(config: Config, run_dir: Path) -> Runs:
    """The run's directory and config for each task and model of a config."""
    if config.is_single:
        return {(config.task, config.model): (run_dir, config)}
    return nested_runs(config, run_dir)


def nested_runs(config: Config, run_dir: Path) -> Runs:
    """As `list_runs`, but a single run is also in ``<task>/<model>``."""
    return {
        (task, model): (
            run_dir / task / model,
            dataclasses.replace(config, task=task, model=model),
        )
        for task in config.tasks
        for model in config.models
    }


def summarise(
    outcome: loop.Outcome, config: Config, run_dir: Path, trivial_accuracy: float
) -> dict[str, Any]:
    """The numbers of a finished run for tables."""
    curves = read_curves(run_dir, "accuracy", config.train.seeds)
    summary = loop.summarise(outcome, config.train)
    summary["best_accuracy"] = [max(curves[seed][1]) for seed in config.train.seeds]
    summary["trivial_accuracy"] = trivial_accuracy
    return summary


def plot(
    task: str, directories: dict[str, Path], run_dir: Path, trivial: float, prefix: str = ""
) -> list[Path]:
    """Draws accuracy and loss of all models and seeds from their metrics files."""
    start, title = run_dir / "plots", f"Program evaluation: {task}"
    return [
        plot_metric(
            *(start / f"{prefix}accuracy.png", directories, "valid", "accuracy"),
            title=title,
            y_label="characters right, at full difficulty",
            trivial=trivial,
            y_limits=(0.0, 1.02),  # Otherwise a curve at 1 would be on the frame.
        ),
        plot_metric(
            *(start / f"{prefix}loss.png", directories, "train", "loss"),
            title=title,
            y_label="training loss (nats per character)",
        ),
    ]
