"""Reads the numbers of a grid's rows from their run directories, or from a kept report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.ablations.config import Config
from experiments.ablations.grid import BASE, RowConfig
from experiments.ablations.train import is_done
from experiments.common.metrics import first_step_at, read_curves
from experiments.common.records import read_json
from experiments.common.refused import RefusedError
from experiments.common.report import Difference, difference
from experiments.common.restore import config_from
from experiments.common.run_directory import (
    FAILURE_FILE,
    SUMMARY_FILE,
    as_json,
    read_environment,
    settings_of,
)


class RowNumbers(NamedTuple):
    """The numbers of a row.

    Attributes:
      row: its config.
      accuracy: on fresh samples after the last update, by seed; empty if the loss became NaN.
      updates_to: by seed, the first evaluated update that reaches the threshold, or None.
      parameters: number of parameters of core and read-out.
      updates_per_second: updates per second of all seeds together.
      seconds: total wall time of all seeds together.
      trivial_accuracy: the trivial score.
      environment: the environment of the run.
    """

    row: RowConfig
    accuracy: list[float]
    updates_to: list[int | None]
    parameters: int | None
    updates_per_second: float | None
    seconds: float | None
    trivial_accuracy: float | None
    environment: dict[str, Any]

    @property
    def mean(self) -> float:
        """Mean accuracy of the seeds."""
        return sum(self.accuracy) / len(self.accuracy)

    def against(self, base: "RowNumbers") -> Difference:
        """The difference from the base, in pairs of seeds."""
        return difference(self.accuracy, base.accuracy)


def threshold_of(trivial: float) -> float:
    """The threshold of `updates_to`: half-way between the trivial score and no error.

    >>> threshold_of(0.5)
    0.75
    """
    return (1 + trivial) / 2


def collect(rows: Mapping[str, RowConfig], run_dir: Path) -> dict[str, RowNumbers]:
    """The numbers of the finished rows, by name.

    Raises:
      ConfigMismatchError: a row's directory contains another config.
    """
    done = {name: row for name, row in rows.items() if is_done(row, run_dir / name)}
    return {name: _read(row, run_dir / name) for name, row in done.items()}


def read_kept(rows: Mapping[str, RowConfig], path: Path) -> dict[str, RowNumbers]:
    """The numbers in a report of the same grid, by name; none if there is none.

    Rows of older reports, which do not name the processor of each, have that of the base.

    Args:
      rows: the rows of the grid.
      path: ``numbers.json`` or a copy.

    Raises:
      RefusedError: the report is of a grid with another config.
    """
    if not path.exists():
        return {}
    kept = read_json(path)
    found, wanted = config_from(Config(), kept["config"], str(path)), rows[BASE].config
    settings = [(settings_of(as_json(config)), config.train.seeds) for config in (found, wanted)]
    if settings[0] != settings[1]:
        raise RefusedError(f"{path} is of a grid with another config; choose another --results")
    fields = set(RowNumbers._fields) - {"row", "environment"}
    return {
        name: RowNumbers(
            row=rows[name],
            environment=kept["environment"]
            | {
                "git_commits": row.get("commits", kept["commits"]),
                "processor": row.get("processor", kept["environment"]["processor"]),
            },
            **{field: row[field] for field in fields},
        )
        for name, row in kept["rows"].items()
        if name in rows
    }


def _read(row: RowConfig, run_dir: Path) -> RowNumbers:
    if (run_dir / FAILURE_FILE).exists():
        return RowNumbers(row, [], [], None, None, None, None, read_environment(run_dir))
    summary = read_json(run_dir / SUMMARY_FILE)
    seeds = row.config.train.seeds
    curves = read_curves(run_dir, "accuracy", seeds)
    threshold = threshold_of(summary["trivial_accuracy"])
    speed = summary["steps"] * len(seeds) / max(summary["train_seconds"], 1e-9)
    return RowNumbers(
        row=row,
        accuracy=summary["evaluation"]["accuracy"],
        updates_to=[first_step_at(*curves[seed], threshold) for seed in seeds],
        parameters=summary["parameters"],
        updates_per_second=round(speed, 2),
        seconds=summary["wall_seconds"],
        trivial_accuracy=summary["trivial_accuracy"],
        environment=read_environment(run_dir),
    )
