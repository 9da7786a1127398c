"""Training of one or all models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.cells import TITLES as TITLES
from experiments.common.cells import recipe
from experiments.common.metrics import curve, first_step_at, read_metrics
from experiments.common.plots import plot_score
from experiments.common.problem import Problem, Score
from experiments.common.runs import evaluate_runs, list_runs, train_runs
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
    """Trains the models of `config.model`, see `experiments.common.runs.train_runs`."""
    return train_runs(
        list_runs(config, MODELS, run_dir),
        run_dir,
        make_problem,
        lambda summary, directory, *_: {"steps_to": steps_to_thresholds(directory)},
        lambda directories, to, score: plot(config, directories, to, score),
        resume=resume,
        progress=progress,
    )


def evaluate(config: Config, run_dir: Path) -> dict[str, Any]:
    """Evaluates the newest checkpoints of a run on both streams; writes ``evaluation.json``."""
    return evaluate_runs(list_runs(config, MODELS, run_dir), make_problem)


def plot(config: Config, directories: Mapping[str, Path], run_dir: Path, score: Score) -> None:
    """Draws accuracy and loss of all models and seeds from their metrics files.

    The shaded stages are those of the first model and seed.
    """
    task = config.task
    first, directory = next(iter(directories.items()))
    bands = stage_bands(read_metrics(directory))
    title = f"Nth Farthest, {task.num_objects} objects of {task.num_features} features"
    if bands and len(directories) > 1:
        title += f"\nnumbers: stages of the {TITLES[first]}, seed {config.train.seed}"
    plot_score(score, directories, run_dir, title=title, bands=bands)


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
