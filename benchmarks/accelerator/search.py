"""A race of candidates: each trains for the same time, and a table says where it came to."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator.deadline import Deadline
from benchmarks.accelerator.files import read_json_lines
from benchmarks.accelerator.training import RESERVE_SECONDS, Stop, train
from benchmarks.records import append_rows
from benchmarks.table import markdown
from experiments.common.loop import NonFiniteError
from experiments.nth_farthest.config import Config

FILE = "search.jsonl"


def search_part(
    candidates: Sequence[str],
    make: Callable[[str], Config],
    out: Path,
    deadline: Deadline,
    *,
    seconds_each: float,
    reserve: float = RESERVE_SECONDS,
    overhead: float = 30.0,
    target: float | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Trains candidates one after the other, as long as there is time for a whole one.

    Those that are in ``search.jsonl`` with the same configuration and at least as much time are
    not trained again.

    Args:
      candidates: names, in the order to try them.
      make: the configuration of a name.
      out: where ``search.jsonl`` is.
      deadline: when all must be done.
      seconds_each: from the end of a candidate's first chunk of updates: without compiling.
      reserve: seconds kept for the end of a candidate.
      overhead: seconds that a candidate is taken to need beside these before one was trained.
      target: accuracy at which a candidate ends sooner.
      progress: whether to draw progress bars.

    Returns:
      All rows there are.
    """
    for candidate in candidates:
        config = make(candidate)
        if any(_is_row_of(row, candidate, config, seconds_each) for row in read_search(out)):
            print(f"{candidate}: done before")
            continue
        if deadline.left() < seconds_each + overhead:
            print(f"{candidate}: no time left")
            break
        started = time.perf_counter()
        stop = Stop(deadline, target, reserve, seconds_each)
        with tempfile.TemporaryDirectory() as temporary:
            try:
                result = train(config, Path(temporary) / "run", candidate, stop, progress=progress)
            except NonFiniteError as error:
                result = {"error": str(error), "config": _as_json(config)}
        wall = time.perf_counter() - started
        overhead = max(overhead, wall - seconds_each)
        row = {"candidate": candidate, "seconds_each": seconds_each, "wall_seconds": round(wall, 1)}
        append_rows(out / FILE, [row | result])
    return read_search(out)


def read_search(out: Path) -> list[dict[str, Any]]:
    """The rows of earlier calls, the last one of each candidate."""
    return list({row["candidate"]: row for row in read_json_lines(out / FILE)}.values())


def search_table(rows: Sequence[dict[str, Any]]) -> str:
    """Accuracy against training time, the best candidate first.

    Times are quarters of the longest: accuracy on fresh sequences, the mean of all seeds.
    """
    longest = max((row["seconds_each"] for row in rows), default=0.0)
    marks = [longest * quarter / 4 for quarter in (1, 2, 3, 4)]
    head = ["Candidate", "Updates / s", *(f"{mark:.0f} s" for mark in marks), "Loss", "50 %"]
    lines = []
    for row in sorted(rows, key=_score, reverse=True):
        if "error" in row:
            lines.append([row["candidate"], "-", *("-" for _ in marks), row["error"][:60], "-"])
            continue
        summary = row["summary"]
        half = summary["reached"]["50%"][0]
        lines.append([
            row["candidate"],
            f"{summary['steps'] / max(summary['train_seconds'], 0.1):.1f}",
            *(_percent(accuracy_at(row, mark)) for mark in marks),
            f"{_mean(summary['evaluation']['loss']):.3f}",
            "-" if half is None else f"{half['seconds']:.0f} s",
        ])  # fmt: skip
    return markdown(head, lines)


def accuracy_at(row: dict[str, Any], seconds: float) -> float | None:
    """Mean accuracy of the seeds at the last evaluation by that time; None before the first."""
    times = [entry["seconds"] for entry in row["evaluations"]]
    index = sum(at <= seconds for at in times) - 1
    if index < 0:
        return None
    return _mean([curve["value"][index] for curve in row["accuracy"].values()])


def _score(row: dict[str, Any]) -> tuple[float, float]:
    """Accuracy, then loss: on the plateau the accuracies are equal."""
    if "error" in row:
        return -1.0, 0.0
    evaluation = row["summary"]["evaluation"]
    return round(_mean(evaluation["accuracy"]), 2), -_mean(evaluation["loss"])


def _is_row_of(row: dict[str, Any], candidate: str, config: Config, seconds: float) -> bool:
    same = row["candidate"] == candidate and row["config"] == _as_json(config)
    return same and row["seconds_each"] >= seconds


def _as_json(config: Config) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
