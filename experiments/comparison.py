"""Compares finished runs: ``python -m experiments.comparison DIRECTORY... --out-dir DIR``.

Finds all finished runs below the directories and groups them by task. Seeds of one config may be in
several runs. For each task the tables of `experiments.common.report` compare the models with the
first one after equal updates and after equal time, with the interval of their difference. With
``--to`` they list the updates and seconds to a score.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import markdown
from experiments.common.cli import exit_code
from experiments.common.metrics import METRICS_FILE
from experiments.common.records import read_json, write_json, write_text
from experiments.common.refused import RefusedError
from experiments.common.report import Run, compare, joined, read_run, to_csv, to_markdown
from experiments.common.run_directory import SUMMARY_FILE, read_environment, settings_of
from experiments.sweep import OPTIONS_FILE


class Entry(NamedTuple):
    """A model on a task, with all its seeds.

    Attributes:
      experiment: its name.
      preset: the preset of the first run.
      task: the fields of the config that define the task.
      model: its name.
      config: the fields of the config that its numbers depend on, see `settings_of`.
      run: its curves.
      hardware: the hardware of the runs.
      commits: the commits of the runs.
    """

    experiment: str
    preset: str
    task: dict[str, Any]
    model: str
    config: dict[str, Any]
    run: Run
    hardware: tuple[str, ...]
    commits: tuple[str, ...]


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.comparison",
        description="Tables of finished runs: models against each other, task by task.",
    )
    parser.add_argument("directories", type=Path, nargs="+", help="searched for finished runs")
    parser.add_argument(
        "--first", metavar="MODEL", help="the model that others are compared with (default: rmc)"
    )
    parser.add_argument("--to", type=float, nargs="*", default=[], help="scores that are timed")
    parser.add_argument("--out-dir", type=Path, help="gets comparison.md, .csv and .json")
    given = parser.parse_args(args)

    def action() -> None:
        entries, left_out = collect(find_runs(given.directories))
        if left_out:
            what = "not runs of one model on one task"
            print(f"left out, {what}: {', '.join(left_out)}", file=sys.stderr)
        if not entries:
            raise FileNotFoundError("no run of one model on one task among them")
        rows, text = tables(entries, given.first, given.to)
        print(text, end="")
        if given.out_dir is not None:
            given.out_dir.mkdir(parents=True, exist_ok=True)
            write_text(given.out_dir / "comparison.md", text)
            write_text(given.out_dir / "comparison.csv", to_csv(rows))
            write_json(given.out_dir / "comparison.json", rows)

    return exit_code(action)


def find_runs(directories: Iterable[Path]) -> list[Path]:
    """Directories of finished runs of one model, below those given, without searches of sweeps.

    Raises:
      FileNotFoundError: there is no run, or a directory does not exist.
    """
    directories = list(directories)
    if absent := [str(directory) for directory in directories if not directory.is_dir()]:
        raise FileNotFoundError(f"no such directory: {', '.join(absent)}")
    summaries = {path for directory in directories for path in directory.rglob(SUMMARY_FILE)}
    runs = sorted(path.parent for path in summaries if (path.parent / METRICS_FILE).exists())
    runs = [run_dir for run_dir in runs if not _is_of_a_search(run_dir)]
    if not runs:
        raise FileNotFoundError(f"no finished run in {', '.join(map(str, directories))}")
    return runs


def _is_of_a_search(run_dir: Path) -> bool:
    """Whether the settings of a sweep were chosen by this run, whose seed is not a fresh one."""
    in_sweep = (run_dir.resolve().parents[1] / OPTIONS_FILE).exists()
    return in_sweep and not run_dir.name.startswith("final_")


def collect(runs: Iterable[Path]) -> tuple[list[Entry], list[str]]:
    """Reads runs, and joins seeds of the same config.

    Args:
      runs: directories of finished runs.

    Returns:
      The entries, sorted by task, and the directories of other runs, for example ablations.

    Raises:
      RefusedError: two runs of the same config have a seed in common.
    """
    found: dict[str, list[tuple[Path, Entry]]] = {}
    left_out: list[str] = []
    for run_dir in runs:
        config = read_json(run_dir / "config.json")
        if "model" not in config or "train" not in config:
            left_out.append(str(run_dir))
            continue
        entry = _read(run_dir, config)
        key = json.dumps([_key(entry), entry.model, entry.config], sort_keys=True)
        found.setdefault(key, []).append((run_dir, entry))
    entries = [_joined(of_config) for of_config in found.values()]
    return sorted(entries, key=_key), left_out


def tables(
    entries: Sequence[Entry], first: str | None = None, to: Sequence[float] = ()
) -> tuple[list[dict[str, Any]], str]:
    """The rows of all tasks, and their Markdown tables.

    Args:
      entries: from `collect`.
      first: the model to compare with (default: the memory core, or the first by name).
      to: scores; the updates and seconds to each have separate rows and a separate table.

    Raises:
      RefusedError: there is no run of that model, or the runs of a task have no common seed or
        update.
    """
    if first not in (None, *(entry.model for entry in entries)):
        raise RefusedError(f"--first must be one of the runs' models, got {first}")
    rows: list[dict[str, Any]] = []
    blocks = []
    labels = _labels(entries)
    for key, task in labels.items():
        of_task = [entry for entry in entries if _key(entry) == key]
        of_task.sort(key=lambda entry: (entry.model != (first or "rmc"), entry.model))
        runs = dict(zip(_names(of_task), (entry.run for entry in of_task), strict=True))
        try:
            compared = compare(runs)
        except RefusedError as error:
            raise RefusedError(f"{task}: {error}") from error
        reached = [_reached(name, run, score) for score in to for name, run in runs.items()]
        made = {
            "hardware": list(dict.fromkeys(x for entry in of_task for x in entry.hardware)),
            "commits": list(dict.fromkeys(x for entry in of_task for x in entry.commits)),
        }
        rows += [{"task": task, **row, **made} for row in (*compared, *reached)]
        blocks += [f"**{task}**\n", to_markdown(compared), *_markdown_of(reached)]
        blocks += [f"Hardware: {'; '.join(made['hardware'])}. "
                   f"Commit: {', '.join(made['commits'])}.\n"]  # fmt: skip
    return rows, "\n".join(blocks)


def _reached(name: str, run: Run, score: float) -> dict[str, Any]:
    """The first evaluation of each seed as good as `score`."""
    found = [seed.reaches(score, run.score.goal) for seed in run.seeds.values()]
    return {
        **{"at": f"{run.score.name} {score:g}", "model": name, "score": run.score.name},
        **{"stream": "valid", "seeds": list(run.seeds)},
        "updates_to": [None if x is None else x[0] for x in found],
        "seconds_to": [None if x is None else round(x[1], 1) for x in found],
    }


def _markdown_of(reached: Sequence[Mapping[str, Any]]) -> list[str]:
    if not reached:
        return []
    lines = []
    for row in reached:
        arrived = f"{sum(x is not None for x in row['updates_to'])} of {len(row['seeds'])}"
        means = (_mean(row[f"{name}_to"]) for name in ("updates", "seconds"))
        lines.append([row["at"], row["model"], *means, arrived])
    head = ["to", "model", "updates", "seconds of a seed", "seeds"]
    return [markdown.table(head, lines) + "\n"]


def _mean(values: Sequence[float | None]) -> str:
    arrived = [value for value in values if value is not None]
    return f"{statistics.fmean(arrived):,.0f}" if arrived else "never"


def _read(run_dir: Path, config: Mapping[str, Any]) -> Entry:
    environment = read_environment(run_dir)
    settings = settings_of(config)
    of_model = {config["model"], "dtype", "model", "train"}
    experiment = re.search(r"experiments\.(\w+)", str(environment.get("command", "")))
    return Entry(
        experiment=experiment.group(1) if experiment else "a task",
        preset=config["preset"],
        task={n: x for n, x in settings.items() if n.partition(".")[0] not in of_model},
        model=config["model"],
        config=settings,
        run=read_run(run_dir),
        hardware=(f"{environment['processor']}, {environment['cpu_cores']} cores, "
                  f"{environment['device']}",),
        commits=tuple(environment["git_commits"]),
    )  # fmt: skip


def _joined(found: Sequence[tuple[Path, Entry]]) -> Entry:
    """Joins the entries of one config."""
    places: dict[int, Path] = {}
    for run_dir, entry in found:
        if twice := sorted(places.keys() & entry.run.seeds.keys()):
            others = dict.fromkeys(str(places[seed]) for seed in twice)
            raise RefusedError(
                f"{run_dir} repeats seeds {twice} of {' and '.join(others)}; name directories "
                "that hold one of them only"
            )
        places |= dict.fromkeys(entry.run.seeds, run_dir)
    entries = [entry for _, entry in found]
    return entries[0]._replace(
        run=joined([entry.run for entry in entries]),
        hardware=tuple(dict.fromkeys(x for entry in entries for x in entry.hardware)),
        commits=tuple(dict.fromkeys(x for entry in entries for x in entry.commits)),
    )


def _key(entry: Entry) -> str:
    """The key of an entry's task; presets may differ only in name."""
    return json.dumps([entry.experiment, _sizes(entry)])


def _sizes(entry: Entry) -> dict[str, Any]:
    return entry.task | {"batch_size": entry.config["train.batch_size"]}


def _labels(entries: Sequence[Entry]) -> dict[str, str]:
    """Display names of tasks by key: the fields that differ within an experiment."""
    labels = {}
    for entry in entries:
        alike = [_sizes(other) for other in entries if other.experiment == entry.experiment]
        differing = [
            f"{field.rpartition('.')[2]} {value}"
            for field, value in _sizes(entry).items()
            if any(other.get(field) != value for other in alike)
        ]
        label = ", ".join([entry.experiment, entry.preset, *differing])
        labels.setdefault(_key(entry), label)
    return labels


def _names(entries: Sequence[Entry]) -> list[str]:
    """The models' names, with the fields that differ if names are equal."""
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


if __name__ == "__main__":
    sys.exit(main())
