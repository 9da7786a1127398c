"""Training of one or all models on one or all tasks."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.common import loop
from experiments.common.cells import TITLES as TITLES
from experiments.common.cells import recipe
from experiments.common.metrics import read_curves
from experiments.common.plots import plot_metric
from experiments.common.problem import Problem
from experiments.common.records import write_json
from experiments.common.run_directory import SUMMARY_FILE, open_run
from experiments.common.runs import evaluate_runs
from experiments.program_evaluation import problem
from experiments.program_evaluation.config import Config
from experiments.program_evaluation.data import make_task
from experiments.program_evaluation.model import make_model

Runs = dict[tuple[str, str], tuple[Path, Config]]
"""By task and model, the directory and the config of a run."""


def make_problem(config: Config) -> Problem:
    """The training problem of a config."""
    task = make_task(config)
    model = make_model(config, task.config.vocab_size, task.output_steps)
    return problem.make_problem(task, model, recipe(config, config.model, config.train))


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
        made = make_problem(one)
        name = f"{task}, {model}"
        outcome = loop.train(made, one.train, directory, name, progress)
        summary = summarise(outcome, one, directory, float(made.score.trivial or 0))
        plot(task, {model: directory}, directory, float(made.score.trivial or 0))
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
