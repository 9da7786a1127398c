"""Plots of runs, made from their metrics."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.actor_critic.config import TITLES
from experiments.common.metrics import METRICS_FILE, curve, read_metrics
from experiments.common.problem import Score
from experiments.common.records import replacing, writes
from experiments.common.refused import RefusedError
from rrnn_jax.visualize import learning_curves_figure
from rrnn_jax.visualize.style import COLOURS, line_look

Curve = tuple[Sequence[int], Sequence[float]]
MODELS = ("rmc", "lstm", "conv_lstm", "none", "entnet", "dnc")
"""The models in the order of `COLOURS`; those drawn together differ most."""


def looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Color and linestyle for each label: a model has one colour in all figures.

    A label belongs to the first model whose name or title begins it, or a part of a path in it.
    Lines of one model differ in style. Other labels get the colours that are free.

    >>> found = looks(["GRU", "LSTM", "runs/rmc, valid", "runs/rmc, train"])
    >>> [COLOURS.index(look["color"]) for look in found.values()]
    [2, 1, 0, 0]
    """
    places = {name: i for i, model in enumerate(MODELS) for name in (model, TITLES[model])}
    model = re.compile(rf"(?:^|/)({'|'.join(places)})(?![a-zA-Z])")
    found: dict[str, int] = {}
    # Models first, so that others do not take their colours.
    for label in sorted(labels := list(labels), key=lambda label: model.search(label) is None):
        known = model.search(label)
        wanted = itertools.count(places[known[1]], len(COLOURS)) if known else itertools.count()
        found[label] = next(place for place in wanted if place not in found.values())
    return {label: line_look(found[label]) for label in labels}


def plot_metric(
    path: Path,
    directories: Mapping[str, Path],
    split: str,
    metric: str,
    per_step: int = 1,
    **options: Any,
) -> Path:
    """Draws a metric of runs from their metrics files, see `plot_curves`.

    Args:
      path: the file.
      directories: the run's directory of each model.
      split: "train" or an evaluation.
      metric: the metric.
      per_step: factor of the steps, if the axis has another unit.
      options: those of `plot_curves`.

    Raises:
      RefusedError: a run's metrics are missing.
    """
    curves = {}
    for name, directory in directories.items():
        found = curve(read_metrics(directory), split, metric)
        if not found:
            raise RefusedError(f"{directory / METRICS_FILE} must hold {metric} of {split}")
        curves[TITLES.get(name, name)] = {
            seed: ([per_step * step for step in steps], values)
            for seed, (steps, values) in found.items()
        }
    return plot_curves(path, curves, **options)


def plot_score(
    score: Score,
    directories: Mapping[str, Path],
    run_dir: Path,
    *,
    name: str | None = None,
    loss: tuple[str, str] = ("loss", "training loss (nats)"),
    prefix: str = "",
    **options: Any,
) -> None:
    """Draws score and training loss of all models and seeds from their metrics files.

    Args:
      score: the score.
      directories: the run's directory of each model.
      run_dir: gets ``plots/<prefix><name>.png`` and ``plots/<prefix>loss.png``.
      name: name of the score's plot (default: the score's).
      loss: the metric of the loss, and its label.
      prefix: of the files' names.
      options: those of `plot_curves`, for both.
    """
    start, (metric, label) = run_dir / "plots", loss
    plot_metric(
        *(start / f"{prefix}{name or score.name}.png", directories, "valid", score.name),
        y_label=score.label or score.name,
        trivial=score.trivial,
        y_limits=score.limits,
        **options,
    )
    path = start / f"{prefix}loss.png"
    plot_metric(path, directories, "train", metric, y_label=label, **options)


def plot_curves(
    path: Path,
    curves: Mapping[str, Mapping[int, Curve]],
    *,
    title: str,
    y_label: str,
    trivial: float | Mapping[str, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    x_label: str = "updates",
    bands: Sequence[tuple[str, float, float]] = (),
    minutes_per_step: Mapping[str, float] | None = None,
) -> Path:
    """Draws learning curves of several models, with all seeds, into a PNG file.

    Args:
      path: the file; its directory is created.
      curves: for each model, steps and values by seed.
      title: title of the figure.
      y_label: label of the values.
      trivial: the trivial score, or scores of simple policies by label, drawn as lines.
      y_limits: limits of the values' axis.
      x_label: label of the steps.
      bands: parts of training to shade: a label, the first and the last step.
      minutes_per_step: by model; a second panel then has the same curves over minutes.

    Returns:
      The path.
    """
    figure = learning_curves_figure(
        {name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in curves.items()},
        title=title,
        x_label=x_label,
        y_label=y_label,
        trivial=trivial,
        y_limits=y_limits,
        bands=bands,
        minutes_per_step=minutes_per_step,
        looks=looks(curves),
    )
    if writes():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return path
