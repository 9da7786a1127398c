"""Metrics on disk: JSON lines, from which plots can be made, and TensorBoard."""

import math
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.records import RowWriter, read_rows, writes
from experiments.common.refused import RefusedError

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends rows to ``metrics.jsonl`` and to TensorBoard.

    A row is ``{"step": 100, "split": "train", "seed": 0, "loss": ..., ...}``. It contains no times,
    so a resumed run writes the same file as an uninterrupted one.

    Attributes:
      count: rows in the file; saved in checkpoints.
    """

    def __init__(self, run_dir: Path, step: int, count: int | None = None) -> None:
        """Opens the files, and drops rows that are later than `step`.

        Args:
          run_dir: the run's directory.
          step: the update that the run starts from; -1 for a new run.
          count: rows that belong to the checkpoint that it starts from (default: unknown). A
            message reports lost rows.
        """
        path = run_dir / METRICS_FILE
        kept = sum(row["step"] <= step for row in read_rows(path)) if writes() else 0
        if writes() and count is not None and kept < count:
            print(
                f"warning: {path} holds {kept} of the {count} rows that belong to step {step}: the "
                "curves will lack the others",
                file=sys.stderr,
            )
        self._rows = RowWriter(path, kept)
        self._board = _tensorboard(run_dir / "tensorboard", step)

    @property
    def count(self) -> int:
        """Rows in the file."""
        return self._rows.count

    def write(
        self, step: int, split: str, seeds: Sequence[int], metrics: Mapping[str, Any]
    ) -> None:
        """Writes one row for each seed, without the metrics that are None for it."""
        for i, seed in enumerate(seeds):
            values = {n: float(all_[i]) for n, all_ in metrics.items() if all_[i] is not None}
            self._rows.write({"step": step, "split": split, "seed": seed, **values})
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(f"{split}/{name}/seed_{seed}", value, step)

    def flush(self) -> None:
        """Writes all rows to the disk, before a checkpoint that relies on them."""
        self._rows.sync()

    def close(self) -> None:
        """Closes the files."""
        self._rows.close()
        if self._board is not None:
            # Its thread may hang, after a full disk or an interrupt, so do not wait for it.
            closing = threading.Thread(target=self._board.close, daemon=True)
            closing.start()
            closing.join(timeout=5)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of a run.

    Raises:
      FileNotFoundError: the directory contains no metrics.
    """
    path = run_dir / METRICS_FILE
    if not path.exists():
        raise FileNotFoundError(f"no {METRICS_FILE} in {run_dir}")
    return read_rows(path)


def read_curves(
    run_dir: Path, metric: str, seeds: Sequence[int]
) -> dict[int, tuple[list[int], list[float]]]:
    """The curves of a metric of "valid", for each of these seeds.

    Raises:
      FileNotFoundError: the directory contains no metrics.
      RefusedError: there is no evaluation of a seed.
    """
    curves = curve(read_metrics(run_dir), "valid", metric)
    if lost := [seed for seed in seeds if seed not in curves]:
        path = run_dir / METRICS_FILE
        raise RefusedError(f"{path} must hold {metric} of seeds {list(seeds)}, but lacks {lost}")
    return curves


def curve(
    rows: Sequence[Mapping[str, Any]], split: str, metric: str
) -> dict[int, tuple[list[int], list[float]]]:
    """Steps and values of one metric, by seed; NaN where a row has null, which stands for it.

    >>> rows = [{"step": s, "split": "valid", "seed": 0, "accuracy": s / 10} for s in (1, 2)]
    >>> curve(rows, "valid", "accuracy")
    {0: ([1, 2], [0.1, 0.2])}
    """
    curves: dict[int, tuple[list[int], list[float]]] = {}
    for row in rows:
        if row["split"] == split and metric in row:
            steps, values = curves.setdefault(row["seed"], ([], []))
            steps.append(row["step"])
            values.append(math.nan if row[metric] is None else row[metric])
    return curves


def first_step_at(
    steps: Sequence[int], values: Sequence[float], threshold: float, goal: str = "max"
) -> int | None:
    """The first step whose value is as good as the threshold; None if none is.

    >>> first_step_at([0, 10, 20], [1.9, 1.6, 1.5], 1.6, goal="min")
    10
    """
    for step, value in zip(steps, values, strict=True):
        is_as_good = value >= threshold if goal == "max" else value <= threshold
        if is_as_good and math.isfinite(value):
            return step
    return None


def _tensorboard(directory: Path, step: int) -> Any:
    """A TensorBoard writer, or None (with a message) if tensorboardX is not installed."""
    if not writes():
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        print("tensorboardX is not installed: no TensorBoard files (metrics.jsonl has it all)")
        return None
    return SummaryWriter(str(directory), purge_step=step + 1)
