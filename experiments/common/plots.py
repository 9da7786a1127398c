"""Plots of runs, made from their metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.common.records import writes
from rrnn_jax.visualize import learning_curves_figure

Curve = tuple[Sequence[int], Sequence[float]]


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
    )
    if writes():
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    return path
