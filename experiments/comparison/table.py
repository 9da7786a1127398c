"""Tables of models against each other, task by task."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.refused import RefusedError
from experiments.comparison.collect import Entry


def compare(entries: Sequence[Entry], threshold: float, at_step: int | None = None) -> list[dict]:
    """A row of numbers for each entry.

    Args:
      entries: from `collect`.
      threshold: the accuracy that is timed.
      at_step: where accuracies are compared (default: for each task, the last update that all of
        its models and seeds were evaluated at).

    Returns:
      The rows.

    Raises:
      RefusedError: an entry was not evaluated at that update, or there is none in common.
    """
    rows = []
    for task in dict.fromkeys(entry.task for entry in entries):
        of_task = [entry for entry in entries if entry.task == task]
        evaluated = [set(seed.steps) for entry in of_task for seed in entry.seeds.values()]
        common = set.intersection(*evaluated)
        if not common or at_step not in (None, *common):
            raise RefusedError(_no_such_step(task, sorted(common), at_step))
        step = max(common) if at_step is None else at_step
        names = _names(of_task)
        rows += [
            _row(entry, name, step, threshold) for entry, name in zip(of_task, names, strict=True)
        ]
    return rows


def _no_such_step(task: str, common: Sequence[int], at_step: int | None) -> str:
    if not common:
        return f"the runs of {task} were not evaluated at any update in common"
    return f"--at-step must be one of {', '.join(map(str, common))} for {task}, got {at_step}"


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each task."""
    blocks = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        goal = f"{of_task[0]['threshold']:.0%}"
        head = [
            *("model", f"accuracy (%) at update {of_task[0]['update']:,}", "seeds"),
            *(f"updates to {goal}", f"seconds to {goal}, per seed", "parameters", "updates/s"),
        ]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in of_task]
        hardware = "; ".join(dict.fromkeys(row["hardware"] for row in of_task))
        commits = ", ".join(dict.fromkeys(c for row in of_task for c in row["commits"]))
        blocks.append(
            f"**{task}**\n\n" + "\n".join(lines) + f"\n\nHardware: {hardware}. Commit: {commits}.\n"
        )
    return "\n".join(blocks)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table of all tasks; lists are joined by spaces, what was not reached is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _flat(value) for name, value in row.items()})
    return buffer.getvalue()


def _names(entries: Sequence[Entry]) -> list[str]:
    """The models' names; those of one name are told apart by the fields that differ."""
    names = []
    for entry in entries:
        alike = [other.config for other in entries if other.model == entry.model]
        differing = [
            f"{name.rpartition('.')[2]} {value}"
            for name, value in entry.config.items()
            if any(other.get(name) != value for other in alike)
        ]
        names.append(f"{entry.model} ({', '.join(differing)})" if differing else entry.model)
    return names


def _row(entry: Entry, name: str, step: int, threshold: float) -> dict[str, Any]:
    seeds = dict(sorted(entry.seeds.items()))
    accuracy = [seed.at(step) for seed in seeds.values()]
    reached = [seed.reaches(threshold) for seed in seeds.values()]
    return {
        "task": entry.task,
        "model": name,
        "seeds": list(seeds),
        "update": step,
        "accuracy": [round(value, 5) for value in accuracy],
        "mean": round(statistics.fmean(accuracy), 5),
        "deviation": round(statistics.stdev(accuracy), 5) if len(accuracy) > 1 else None,
        "threshold": threshold,
        "updates_to": [None if r is None else r[0] for r in reached],
        "seconds_to": [None if r is None or r[1] is None else round(r[1], 1) for r in reached],
        "parameters": entry.parameters,
        "updates_per_second": round(entry.updates_per_second, 2),
        "hardware": entry.hardware,
        "commits": list(entry.commits),
    }


def _cells(row: Mapping[str, Any]) -> list[str]:
    percents = [100 * value for value in row["accuracy"]]
    accuracy = f"{100 * row['mean']:.1f}"
    if len(percents) > 1:
        accuracy += f" ({min(percents):.1f} to {max(percents):.1f})"
    return [
        *(row["model"], accuracy, str(len(percents))),
        *(_mean_reached(row["updates_to"]), _mean_reached(row["seconds_to"])),
        *(f"{row['parameters']:,}", f"{row['updates_per_second']:.1f}"),
    ]


def _mean_reached(values: Sequence[float | None]) -> str:
    """The mean of the seeds that arrived, and how many did, if not all."""
    arrived = [value for value in values if value is not None]
    if not arrived:
        return "never"
    mean = f"{statistics.fmean(arrived):,.0f}"
    return mean if len(arrived) == len(values) else f"{mean} ({len(arrived)} of {len(values)})"


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join("" if item is None else str(item) for item in value)
    return value
