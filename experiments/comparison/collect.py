"""Finished runs, read from their directories: seeds of the same config together."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.cells import TITLES
from experiments.common.loop import TIMINGS_FILE
from experiments.common.metrics import METRICS_FILE, curve, first_step_at, read_metrics
from experiments.common.records import read_json, read_rows
from experiments.common.refused import RefusedError
from experiments.common.run_directory import flatten, read_environment

_MODEL_SECTIONS = (*TITLES, "dtype", "model")
"""Parts of a config that are a model's. All else but `train` says what the task is."""
_IRRELEVANT = {
    *("preset", "implementation", "train.seed", "train.num_seeds", "train.micro_batch_size"),
    *("train.chunk_steps", "train.eval_every", "train.eval_samples", "train.checkpoint_every"),
}
"""Fields that say which seeds, or how to compute and judge, but not what."""


class Seed(NamedTuple):
    """One seed of one run.

    Attributes:
      steps: the evaluated updates.
      accuracy: at each of them.
      seconds: by update at the end of a chunk, the wall time until then, divided by the number of
        seeds that were trained side by side.
    """

    steps: list[int]
    accuracy: list[float]
    seconds: dict[int, float]

    def at(self, step: int) -> float:
        """The accuracy at an evaluated update."""
        return self.accuracy[self.steps.index(step)]

    def reaches(self, threshold: float) -> tuple[int, float | None] | None:
        """The first evaluated update that reaches an accuracy, and the time until then."""
        step = first_step_at(self.steps, self.accuracy, threshold)
        if step is None:
            return None
        return step, next((s for at, s in self.seconds.items() if at >= step), None)


class Entry(NamedTuple):
    """A model on a task, with all its seeds.

    Attributes:
      task: for people.
      model: its name.
      config: flat, without what does not matter.
      parameters: how many.
      updates_per_second: seeds side by side counted as so many updates; of the first run.
      hardware: what the first run was made on.
      commits: of the code.
      seeds: by number.
    """

    task: str
    model: str
    config: dict[str, Any]
    parameters: int
    updates_per_second: float
    hardware: str
    commits: tuple[str, ...]
    seeds: dict[int, Seed]


def find_runs(directories: Iterable[Path]) -> list[Path]:
    """Directories of finished runs of one model, below those given.

    Raises:
      FileNotFoundError: there is none, or no such directory.
    """
    directories = list(directories)
    if absent := [str(directory) for directory in directories if not directory.is_dir()]:
        raise FileNotFoundError(f"no such directory: {', '.join(absent)}")
    summaries = {path for directory in directories for path in directory.rglob("summary.json")}
    runs = sorted(path.parent for path in summaries if (path.parent / METRICS_FILE).exists())
    if not runs:
        raise FileNotFoundError(f"no finished run in {', '.join(map(str, directories))}")
    return runs


def collect(runs: Iterable[Path]) -> list[Entry]:
    """Reads runs, and puts seeds of the same config together.

    Args:
      runs: directories of finished runs; those of ablations are left out, with a note on stderr.

    Returns:
      The entries, sorted by task.

    Raises:
      RefusedError: two runs of the same config have a seed in common.
    """
    entries: dict[str, Entry] = {}
    places: dict[tuple[str, int], Path] = {}
    left_out: list[str] = []
    for run_dir in runs:
        config = read_json(run_dir / "config.json")
        if "model" not in config or "train" not in config:
            left_out.append(str(run_dir))
            continue
        entry = _read(run_dir, config)
        key = json.dumps([entry.task, entry.model, entry.config], sort_keys=True)
        if key in entries:
            there = entries[key]
            if twice := sorted(there.seeds.keys() & entry.seeds.keys()):
                others = dict.fromkeys(str(places[key, seed]) for seed in twice)
                raise RefusedError(
                    f"{run_dir} repeats seeds {twice} of {' and '.join(others)}; name directories "
                    "that hold one of them only"
                )
            entry = there._replace(
                seeds=there.seeds | entry.seeds,
                commits=tuple(dict.fromkeys((*there.commits, *entry.commits))),
            )
        places |= {(key, seed): run_dir for seed in entry.seeds if (key, seed) not in places}
        entries[key] = entry
    if left_out:
        what = "not runs of one model on one task"
        print(f"left out, {what}: {', '.join(left_out)}", file=sys.stderr)
    return sorted(entries.values(), key=lambda entry: entry.task)


def _read(run_dir: Path, config: Mapping[str, Any]) -> Entry:
    summary = read_json(run_dir / "summary.json")
    environment = read_environment(run_dir)
    curves = curve(read_metrics(run_dir), "valid", "accuracy")
    timings = read_rows(run_dir / TIMINGS_FILE)
    count = len(summary["seeds"])
    seconds = {row["step"]: row["wall_seconds"] / count for row in timings}
    flat = {name: value for name, value in flatten(config).items() if name not in _IRRELEVANT}
    others = [name for name in _MODEL_SECTIONS if name != config["model"] and name != "dtype"]
    own = {name: value for name, value in flat.items() if name.split(".")[0] not in others}
    return Entry(
        task=_describe_task(flat, str(environment.get("command", ""))),
        model=config["model"],
        config=own,
        parameters=summary["parameters"],
        updates_per_second=summary["steps"] * count / max(summary["train_seconds"], 1e-9),
        hardware=f"{environment['processor']}, {environment['cpu_cores']} cores, "
        f"{environment['device']}",
        commits=tuple(environment["git_commits"]),
        seeds={seed: Seed(*curves[seed], seconds) for seed in summary["seeds"]},
    )


def _describe_task(flat: Mapping[str, Any], command: str) -> str:
    """Experiment, task and batch size, from whatever of the config is no model's.

    >>> command = "python -m experiments.nth_farthest --model rmc"
    >>> _describe_task({"task.num_objects": 4, "rmc.mem_slots": 8, "train.batch_size": 64}, command)
    'nth_farthest, num_objects 4, batch_size 64'
    """
    experiment = re.search(r"experiments\.(\w+)", command)
    parts = [experiment.group(1)] if experiment else []
    for name, value in flat.items():
        section = name.split(".")[0]
        if section not in (*_MODEL_SECTIONS, "train"):
            parts.append(str(value) if name == "task" else f"{name.rpartition('.')[2]} {value}")
    return ", ".join([*parts, f"batch_size {flat['train.batch_size']}"])
