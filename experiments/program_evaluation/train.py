"""Training of one or all models on one or all tasks."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.cells import TITLES as TITLES
from experiments.common.cells import recipe
from experiments.common.plots import plot_score
from experiments.common.problem import Problem, Score
from experiments.common.runs import evaluate_runs, train_each
from experiments.program_evaluation import problem
from experiments.program_evaluation.config import PRESETS, Config
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

    def finish(summary: Any, directory: Path, one: Config, outcome: Any) -> dict[str, Any]:
        return {"trivial_accuracy": problems[one.task, one.model].score.trivial}

    problems = {names: make_problem(one) for names, (_, one) in runs.items()}
    found = train_each(runs, problems, finish, plot, resume=resume, progress=progress)
    for task in config.tasks if not config.is_single else ():
        of_task = {names: directory for names, (directory, _) in runs.items() if names[0] == task}
        plot(of_task, run_dir, problems[next(iter(of_task))].score, prefix=f"{task}_")
    return {task: {model: found[task, model] for model in config.models} for task in config.tasks}


def check(config: Config) -> None:
    """Checks that the tasks and models of a config can be made, and its options of difficulty.

    Raises:
      ValueError: one cannot be made, or an option has no effect; the message names the field.
    """
    for _, one in list_runs(config, Path()).values():
        task = make_task(one)
        make_model(one, task.config.vocab_size, task.output_steps)
    config.difficulty.check(config.tasks, PRESETS[config.preset].difficulty)


def evaluate(config: Config, run_dir: Path) -> dict[str, Any]:
    """Evaluates a run's newest checkpoints on both streams; writes ``evaluation.json``."""
    found = evaluate_runs(list_runs(config, run_dir), make_problem)
    return {task: {model: found[task, model] for model in config.models} for task in config.tasks}


def list_runs(config: Config, run_dir: Path) -> Runs:
    """The run's directory and config for each task and model of a config."""
    if config.is_single:
        return {(config.task, config.model): (run_dir, config)}
    return {
        (task, model): (
            run_dir / task / model,
            dataclasses.replace(config, task=task, model=model),
        )
        for task in config.tasks
        for model in config.models
    }


def plot(
    directories: Mapping[tuple[str, str], Path], run_dir: Path, score: Score, prefix: str = ""
) -> None:
    """Draws accuracy and loss of all models and seeds on a task from their metrics files."""
    task, _ = next(iter(directories))
    plot_score(
        score,
        {model: directory for (_, model), directory in directories.items()},
        run_dir,
        title=f"Program evaluation: {task}",
        loss=("loss", "training loss (nats per character)"),
        prefix=prefix,
    )
