"""Plots runs from their metrics, at any time: ``python -m experiments.plot RUN``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.cli import exit_code
from experiments.common.metrics import METRICS_FILE, curve, read_metrics
from experiments.common.plots import plot_curves
from experiments.common.refused import RefusedError

_NOT_METRICS = ("step", "split", "seed")


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m experiments.plot",
        description="Draws every metric of runs, finished or in training; nothing else is read.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                        help="directory of a run, or one with runs below it")  # fmt: skip
    parser.add_argument("--out", type=Path,
                        help="of the figures (default: plots/all of the first RUN)")  # fmt: skip
    given = parser.parse_args(args)

    def action() -> None:
        for path in plot_runs(given.runs, given.out or given.runs[0] / "plots" / "all"):
            print(path)

    return exit_code(action)


def plot_runs(runs: Sequence[Path], out: Path) -> list[Path]:
    """Draws a figure for each metric with all runs, splits and seeds.

    Args:
      runs: directories of runs, or above runs.
      out: directory of the figures.

    Returns:
      The figures' paths.

    Raises:
      FileNotFoundError: there is no run.
      RefusedError: the runs have no metrics yet.
    """
    paths = [path for run in runs for path in sorted(run.resolve().rglob(METRICS_FILE))]
    found = list(dict.fromkeys(path.parent for path in paths))
    if not found:
        raise FileNotFoundError(f"no {METRICS_FILE} in {', '.join(map(str, runs))}")
    labels = [directory.name for directory in found]
    if len(set(labels)) < len(labels):
        above = os.path.commonpath(found)
        labels = [os.path.relpath(directory, above) for directory in found]
    rows = {label: read_metrics(directory) for label, directory in zip(labels, found, strict=True)}
    every = [row for some in rows.values() for row in some]
    names = dict.fromkeys(name for row in every for name in row if name not in _NOT_METRICS)
    if not names:
        places = ", ".join(str(directory / METRICS_FILE) for directory in found)
        raise RefusedError(f"there must be metrics to plot, got none in {places}")
    splits = dict.fromkeys(row["split"] for row in every)
    paths = []
    for name in names:
        curves = {
            f"{label}, {split}": by_seed
            for label, some in rows.items()
            for split in splits
            if (by_seed := curve(some, split, name))
        }
        title = found[0].name if len(found) == 1 else f"{len(found)} runs"
        paths.append(plot_curves(out / f"{name}.png", curves, title=title, y_label=name))
    return paths


if __name__ == "__main__":
    sys.exit(main())
