"""Learning curves of several models with all seeds."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrnn_jax.visualize.style import WIDTH, line_look, new_figure

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values of equal length."""


def learning_curves_figure(
    curves: Mapping[str, Sequence[Curve]],
    *,
    title: str = "",
    x_label: str = "updates",
    y_label: str = "accuracy",
    trivial: float | Mapping[str, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    bands: Sequence[tuple[str, float, float]] = (),
    minutes_per_step: Mapping[str, float] | None = None,
    looks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """Draws the curve of every seed, and with several seeds their mean and range.

    >>> figure = learning_curves_figure({"RMC": [([0, 100], [0.25, 0.9])]}, trivial=0.25)
    >>> figure.axes[0].get_ylabel()
    'accuracy'

    Args:
      curves: for each model, a curve for each seed.
      title: title of the figure.
      x_label: label of the x axis.
      y_label: label of the values, with their unit.
      trivial: the trivial score, or scores of simple policies by label, drawn as labelled lines.
      y_limits: limits of the y axis.
      bands: parts of training to shade, for example the stages of a curriculum: a label, and the
        beginning and end on the x axis.
      minutes_per_step: by model; a second panel then has the same curves over minutes.
      looks: by model, the color and linestyle of its lines (default: by their order).

    Returns:
      A figure that has not been shown or saved.

    Raises:
      ValueError: there is no curve, the numbers of its values and steps differ, or
        `minutes_per_step` or `looks` lacks a model.
    """
    _check(curves)
    if looks is None:
        looks = {name: line_look(i) for i, name in enumerate(curves)}
    if missing := curves.keys() - looks.keys():
        raise ValueError(f"looks must have every model, got none of {missing}")
    panels: list[tuple[str, Mapping[str, Sequence[Curve]]]] = [(x_label, curves)]
    if minutes_per_step is not None:
        if missing := curves.keys() - minutes_per_step.keys():
            raise ValueError(f"minutes_per_step must have every model, got none of {missing}")
        panels.append(("minutes", _over_minutes(curves, minutes_per_step)))
    figure = new_figure(WIDTH * (1 + 0.5 * (len(panels) - 1)))
    for axes, (label, lines) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        for name, seeds in lines.items():
            _draw_model(axes, name, seeds, looks[name])
        _draw_lines(axes, trivial)
        if lines is curves:
            _shade(axes, bands)
            axes.set(ylabel=y_label, title=title)
        axes.set_xlabel(label)
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        axes.margins(x=0)
        axes.grid(alpha=0.25)
    figure.axes[0].legend(loc="best", fontsize=8, framealpha=0.9)
    return figure


def _check(curves: Mapping[str, Sequence[Curve]]) -> None:
    if not curves or not all(len(seeds) for seeds in curves.values()):
        raise ValueError("curves must hold at least one curve for each model")
    for name, seeds in curves.items():
        for steps, values in seeds:
            if len(steps) != len(values):
                raise ValueError(
                    f"curves[{name!r}] must have as many values as steps, got {len(values)} "
                    f"values for {len(steps)} steps"
                )


def _over_minutes(
    curves: Mapping[str, Sequence[Curve]], pace: Mapping[str, float]
) -> dict[str, list[Curve]]:
    """The curves with minutes instead of steps."""
    return {
        name: [([step * pace[name] for step in steps], values) for steps, values in seeds]
        for name, seeds in curves.items()
    }


def _draw_model(axes: Axes, name: str, seeds: Sequence[Curve], look: Mapping[str, Any]) -> None:
    """A line for one seed; for several, thin lines, their mean and their range."""
    if len(seeds) == 1:
        axes.plot(*seeds[0], linewidth=1.8, label=name, **look)
        return
    for steps, values in seeds:
        axes.plot(steps, values, linewidth=0.7, alpha=0.6, **look)
    steps, low, mean, high = _band(seeds)
    axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.plot(steps, mean, linewidth=1.8, label=f"{name} ({len(seeds)} seeds)", **look)


def _draw_lines(axes: Axes, scores: float | Mapping[str, float] | None) -> None:
    """A horizontal line for each score."""
    named = scores if isinstance(scores, Mapping) else {"trivial score": scores}
    looks = itertools.cycle(("--", ":", "-."))
    for (label, score), style in zip(named.items(), looks, strict=False):
        if score is not None:
            text = f"{label} {score:.3g}"
            axes.axhline(score, color="black", linestyle=style, linewidth=1, label=text)


def _shade(axes: Axes, bands: Sequence[tuple[str, float, float]]) -> None:
    for i, (label, start, end) in enumerate(bands):
        axes.axvspan(start, end, color="black", alpha=0.03 if i % 2 else 0.09, linewidth=0)
        axes.annotate(
            label,
            xy=(start, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(2, -3),
            textcoords="offset points",
            va="top",
            fontsize=7,
        )


def _band(seeds: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps common to all seeds, with their lowest, mean and highest value."""
    common = sorted(set.intersection(*(set(steps) for steps, _ in seeds)))
    values = np.array([[dict(zip(*curve, strict=True))[s] for s in common] for curve in seeds])
    return np.array(common), values.min(0), values.mean(0), values.max(0)
