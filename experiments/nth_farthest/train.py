"""Training of one or all models."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.common import loop
from experiments.common.cells import TITLES as TITLES
from experiments.common.cells import recipe
from experiments.common.metrics import curve, first_step_at, read_metrics
from experiments.common.plots import plot_curves
from experiments.common.problem import Problem
from experiments.common.records import write_json
from experiments.common.run_directory import check_run, open_run, write_evaluation
from experiments.nth_farthest import problem
from experiments.nth_farthest.config import Config
from experiments.nth_farthest.model import make_model
from rrnn_jax.tasks import nth_farthest

MODELS = ("rmc", "lstm")


def make_problem(config: Config) -> Problem:
    """The training problem of a config."""
    task = nth_farthest.Config(config.task.num_objects, config.task.num_features)
    stages = config.curriculum if config.staged else None
    train = recipe(config, config.model, config.train)
    return problem.make_problem(task, make_model(config), train, stages)


def train(
    config: Config, run_dir: Path, *, resume: bool | None = None, progress: bool = True
) -> dict[str, Any]:
    """Trains the models of `config.model`, draws the plots, and returns the summary.

    One model is trained in `run_dir`, several in subdirectories with their names.

    Args:
      config: the run's config.
      run_dir: the run's directory; an unfinished run resumes.
      resume: see `experiments.common.run_directory.open_run`.
      progress: whether to draw a progress bar.

    Returns:
      For each model: steps, parameters, accuracy by seed, training time; also written to
      ``summary.json``.
    """
    names = MODELS if config.model == "all" else (config.model,)
    configs = {name: dataclasses.replace(config, model=name) for name in names}
    directories = {name: run_dir if len(names) == 1 else run_dir / name for name in names}
    # Errors come before a directory is created.
    problems = {name: make_problem(configs[name]) for name in names}
    for name in names:
        open_run(directories[name], configs[name], resume)
    summary: dict[str, Any] = {}
    for name in names:
        outcome = loop.train(problems[name], config.train, directories[name], name, progress)
        summary[name] = loop.summarise(outcome, config.train)
        summary[name]["steps_to"] = steps_to_thresholds(directories[name])
        plot(config, {name: directories[name]}, directories[name])
        write_json(directories[name] / "summary.json", summary[name])
    if len(names) > 1:
        plot(config, directories, run_dir)
        write_json(run_dir / "summary.json", summary)
    return summary


def evaluate(config: Config, run_dir: Path) -> dict[str, Any]:
    """Evaluates the newest checkpoints of a run on its test set; writes ``evaluation.json``."""
    names = MODELS if config.model == "all" else (config.model,)
    result: dict[str, Any] = {}
    for name in names:
        directory = run_dir if len(names) == 1 else run_dir / name
        one = dataclasses.replace(config, model=name)
        check_run(directory, one)
        of_one = make_problem(one)
        step, means = loop.evaluate_run(of_one, config.train, directory)
        _, test = loop.evaluate_run(of_one, config.train, directory, "test")
        result[name] = {"step": step, "seeds": list(config.train.seeds), "evaluation": means}
        result[name]["test"] = test
        write_evaluation(directory, result[name])
    return result


def plot(config: Config, directories: dict[str, Path], run_dir: Path) -> list[Path]:
    """Draws accuracy and loss of all models and seeds from their metrics files.

    The shaded stages are those of the first model and seed.
    """
    rows = {TITLES[name]: read_metrics(directory) for name, directory in directories.items()}
    bands = stage_bands(next(iter(rows.values())))
    title = (
        f"Nth Farthest, {config.task.num_objects} objects of {config.task.num_features} features"
    )
    if bands and len(directories) > 1:
        title += f"\nnumbers: stages of the {next(iter(rows))}, seed {config.train.seed}"
    trivial = nth_farthest.Config(
        config.task.num_objects, config.task.num_features
    ).trivial_accuracy
    return [
        plot_curves(
            run_dir / "plots" / "accuracy.png",
            {name: curve(r, "valid", "accuracy") for name, r in rows.items()},
            title=title,
            y_label="accuracy on fresh sequences",
            trivial=trivial,
            y_limits=(0.0, 1.02),  # Otherwise a curve at 1 would be on the frame.
            bands=bands,
        ),
        plot_curves(
            run_dir / "plots" / "loss.png",
            {name: curve(r, "train", "loss") for name, r in rows.items()},
            title=title,
            y_label="training loss (nats)",
            bands=bands,
        ),
    ]


def stage_bands(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """The stages of a run's first seed: number, first and last step; none without a curriculum.

    >>> row = {"split": "train", "seed": 0}
    >>> stage_bands([row | {"step": s, "stage": float(s > 200)} for s in (100, 200, 300)])
    [('1', 0, 200), ('2', 200, 300)]
    """
    curves = curve(rows, "train", "stage")
    if not curves:
        return []
    bands: list[tuple[str, float, float]] = []
    before = 0
    for step, value in zip(*curves[min(curves)], strict=True):
        label = f"{round(value) + 1}"
        start = bands.pop()[1] if bands and bands[-1][0] == label else before
        bands.append((label, start, step))
        before = step
    return bands


def steps_to_thresholds(run_dir: Path) -> dict[str, list[int | None]]:
    """For each accuracy, the first evaluated step that reaches it, by seed."""
    curves = curve(read_metrics(run_dir), "valid", "accuracy")
    return {
        f"{threshold:.0%}": [first_step_at(*curves[seed], threshold) for seed in sorted(curves)]
        for threshold in (0.3, 0.5, 0.65, 0.7, 0.8, 0.9, 0.91, 0.95)
    }
