"""Makes Table 1 from sweeps: ``python -m experiments.program_evaluation.table DIR``.

Collects the sweeps in ``DIR/<task>`` and ``DIR/<task>-<variant>``, which README.md lists, in
``experiments/results/program_evaluation/quick.json``, with a report and plots beside it.
What is kept there and was not trained again stays, so a table may be made from runs on several
machines, and a search may get more rates. `experiments.conclusions` writes the documents' tables
from that file.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import markdown
from experiments.common.cli import exit_code
from experiments.common.metrics import METRICS_FILE
from experiments.common.plots import plot_curves
from experiments.common.records import read_json, write_json, write_text
from experiments.common.refused import RefusedError
from experiments.common.report import Difference, compare, points, run_of, spread
from experiments.common.results import RESULTS
from experiments.common.results import collect as collect_run
from experiments.common.run_directory import SUMMARY_FILE, read_environment
from experiments.program_evaluation.config import PRESETS, TASKS
from experiments.program_evaluation.data import make_task
from experiments.sweep import name_of, with_best

NAME = "program_evaluation/quick"
TITLES = {
    ("", "lstm"): "LSTM",
    ("", "entnet"): "EntNet",
    ("", "dnc"): "DNC",
    ("", "rmc"): "RMC, gates per unit",
    ("-slot", "rmc"): "RMC, gates per slot",
    ("-wide", "rmc"): "RMC, 96 units a slot",
}
"""The rows by suffix of the sweep's name and model; the first is the one compared with."""
PAPER = {
    "addition": {"lstm": 99.8, "entnet": 98.4, "dnc": 99.4, "rmc": 99.9},
    "control": {"lstm": 97.4, "entnet": 98.0, "dnc": 83.8, "rmc": 99.6},
    "program": {"lstm": 66.1, "entnet": 73.4, "dnc": 69.5, "rmc": 79.0},
    "copy": {"lstm": 99.8, "entnet": 91.8, "dnc": 100.0, "rmc": 100.0},
    "reverse": {"lstm": 99.7, "entnet": 100.0, "dnc": 100.0, "rmc": 100.0},
    "double": {"lstm": 99.7, "entnet": 62.3, "dnc": 100.0, "rmc": 99.8},
}
"""Table 1 of the paper: characters right in percent, at nesting 2 and length 5."""
PLOTTED = ("control", "program")
"""The tasks with a plot: those that the models do not solve."""
MISSING = "-"

Kept = Mapping[str, Any]
"""The numbers, see `collect`."""
_NO_SWEEP: Kept = {"git_commits": [], "settings": [], "final": {}}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.program_evaluation.table")
    parser.add_argument("directory", type=Path, help="the directory of the sweeps")
    directory = parser.parse_args(args).directory

    def action() -> None:
        target = RESULTS / f"{NAME}.json"
        kept = collect(directory)
        if target.exists():
            kept["sweeps"] = merge(read_json(target)["sweeps"], kept["sweeps"])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, kept)
        write_text(target.with_suffix(".md"), report(kept))
        for task in PLOTTED:
            plot(kept, task, target.with_name(f"{target.stem}_{task}.png"))
        print(f"wrote {target}")

    return exit_code(action)


def collect(directory: Path) -> dict[str, Any]:
    """Trivial and paper's scores, and the settings, final runs and commits of each sweep.

    Raises:
      FileNotFoundError: there is no finished sweep.
    """
    sweeps = {}
    for task in TASKS:
        for name in dict.fromkeys(task + suffix for suffix, _ in TITLES):
            if (directory / name / "sweep.json").exists():
                sweeps[name] = _collect_sweep(directory / name)
    if not sweeps:
        raise FileNotFoundError(f"no finished sweep of {', '.join(TASKS)} in {directory}")
    quick = PRESETS["quick"]
    trivial = {t: make_task(dataclasses.replace(quick, task=t)).trivial_accuracy() for t in TASKS}
    return {"trivial": trivial, "paper": PAPER, "sweeps": sweeps}


def merge(kept: Kept, found: Kept) -> dict[str, Any]:
    """Joins sweeps by name: settings of ``found`` are added to those of ``kept`` or replace them.

    The best of a model is chosen anew, and its final runs are those of the best.

    Raises:
      RefusedError: the settings of a model have different seeds, or the best has no final runs and
        another has.
    """
    joined = {}
    for name in [task + suffix for task in TASKS for suffix in dict.fromkeys(s for s, _ in TITLES)]:
        new, old = (sweeps.get(name, _NO_SWEEP) for sweeps in (found, kept))
        rows = {_key(row): row for row in old["settings"]}
        stay = rows.keys() - map(_key, new["settings"])
        rows |= {_key(row): row for row in new["settings"]}
        if rows:
            settings = sorted(with_best(list(rows.values())), key=lambda row: _key(row)[0])
            commits = {*new["git_commits"], *(old["git_commits"] if stay else ())}
            joined[name] = {"git_commits": sorted(commits), "settings": settings}
            trained = {**_finals_by_setting(old), **_finals_by_setting(new)}
            joined[name]["final"] = _finals_of_best(name, settings, trained)
    return joined


def _key(row: Mapping[str, Any]) -> tuple[int, str]:
    """The place of a setting's model in the table, and the setting's name."""
    return [model for _, model in TITLES].index(row["model"]), name_of(row["setting"])


def _finals_by_setting(sweep: Kept) -> dict[tuple[int, str], Any]:
    best = {row["model"]: _key(row) for row in sweep["settings"] if row.get("best")}
    return {best[model]: run for model, run in sweep["final"].items()}


def _finals_of_best(
    name: str, settings: Sequence[Mapping[str, Any]], trained: Mapping[tuple[int, str], Any]
) -> dict[str, Any]:
    """The final runs of the best setting of each model that has final runs."""
    final = {}
    for best in (row for row in settings if row.get("best")):
        model, (place, setting) = best["model"], _key(best)
        seeds = [row["seeds"] for row in settings if row["model"] == model]
        if any(each != seeds[0] for each in seeds):
            raise RefusedError(f"{name}: settings of {model} must have equal seeds, got {seeds}")
        if (place, setting) in trained:
            final[model] = trained[place, setting]
        elif place in (of for of, _ in trained):
            raise RefusedError(
                f"{name}: {model} must have final runs of its best setting, {setting}: "
                "run its sweep with --final-seeds"
            )
    return dict(sorted(final.items()))


def _collect_sweep(directory: Path) -> dict[str, Any]:
    settings, final = read_json(directory / "sweep.json"), {}
    for best in (row for row in settings if row.get("best")):
        pattern = f"{best['model']}/final_*,{name_of(best['setting'])}/{SUMMARY_FILE}"
        found = {int(p.parent.name[6:].partition(",")[0]): p for p in directory.glob(pattern)}
        if found:  # Of most seeds; other settings may have been the best before.
            final[best["model"]] = collect_run(found[max(found)].parent)
    runs = [path.parent for path in directory.glob(f"*/*/{METRICS_FILE}")]
    commits = {commit for run in runs for commit in read_environment(run)["git_commits"]}
    return {"git_commits": sorted(commits), "settings": settings, "final": final}


def scores(kept: Kept, paper: bool = False) -> str:
    """A table of the final runs' test scores in percent, after equal updates.

    Args:
      kept: the numbers.
      paper: give the paper's scores in parentheses, not the range of the seeds.
    """
    compared = {task: _compared(kept, task, "updates") for task in TASKS}
    lines = []
    for (_, model), title in TITLES.items():
        found = [compared[task].get(title) for task in TASKS]
        if any(found):
            beside = [f"{PAPER[task][model]}" if paper else None for task in TASKS]
            lines.append([title, *map(_score, found, beside)])
    lines.append(["trivial", *(_percent(kept["trivial"][task]) for task in TASKS)])
    return markdown.table(["characters right, %", *TASKS], lines)


def verdicts(kept: Kept) -> str:
    """A table of the tasks on which models are better or worse than the LSTM.

    The tasks that cannot be compared at equal time are named below it.
    """
    base, *others = TITLES.values()
    head = [f"against the {base}"]
    found: dict[str, list[str]] = {title: [] for title in others}
    at_time = {task: _compared(kept, task, "time") for task in TASKS}
    at_updates = {task: _compared(kept, task, "updates") for task in TASKS}
    for at, compared in (("updates", at_updates), ("time", at_time)):
        for verdict in ("better", "worse"):
            head.append(f"{verdict}, equal {at}")
            for title, cells in found.items():
                tasks = [t for t in TASKS if compared[t].get(title, {}).get("verdict") == verdict]
                cells.append(", ".join(tasks) or MISSING)
    ran = {title for compared in at_updates.values() for title in compared}
    text = markdown.table(head, ([t, *cells] for t, cells in found.items() if t in ran))
    apart = [task for task in TASKS if at_updates[task] and not at_time[task]]
    if apart:
        text += f"\n\nNot at equal time, because of several processors: {', '.join(apart)}."
    return text


def report(kept: Kept) -> str:
    """The scores of all rates, and the differences from the LSTM with their intervals."""
    rates: dict[tuple[str, str], dict[str, float]] = {}
    for task, suffix, sweep in _sweeps(kept):
        for row in sweep["settings"]:
            rate, *others = sorted(row["setting"].items(), key=lambda x: x[0] != "learning-rate")
            title = ", ".join([TITLES[suffix, row["model"]], *(value for _, value in others)])
            rates.setdefault((task, title), {})[rate[1]] = statistics.fmean(row["test"])
    columns = sorted({rate for found in rates.values() for rate in found}, key=float)
    parts = {
        "Characters right on the test stream (%), by rate": markdown.table(
            ["task", "model", *columns],
            (
                [*key, *(_percent(found.get(rate)) for rate in columns)]
                for key, found in rates.items()
            ),
        )
    }
    for at, what in (("updates", "test stream"), ("time", "validation stream")):
        lines = [
            [task, title, _score(row), _difference(row), row.get("verdict", MISSING)]
            for task in TASKS
            for title, row in _compared(kept, task, at).items()
        ]
        head = ["task", "model", f"characters right ({what})", "difference, 95 %", "verdict"]
        parts[f"Fresh seeds, after equal {at}"] = markdown.table(head, lines)
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items()) + "\n"


def plot(kept: Kept, task: str, path: Path) -> None:
    """Draws the learning curves of the final runs on a task, if there are any."""
    curves = {
        title: {seed: (one.steps, one.values) for seed, one in run_of(record).seeds.items()}
        for title, record in _finals(kept, task).items()
    }
    if curves:
        y_label = "characters right, validation stream"
        plot_curves(path, curves, title=task, y_label=y_label, trivial=kept["trivial"][task])


def _sweeps(kept: Kept) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Task, suffix and numbers of each sweep."""
    for name, sweep in kept["sweeps"].items():
        task, dash, variant = name.partition("-")
        yield task, dash + variant, sweep


def _finals(kept: Kept, task: str) -> dict[str, Kept]:
    """The final runs on a task by title, that of the LSTM first."""
    found = {
        TITLES[suffix, model]: record
        for of, suffix, sweep in _sweeps(kept)
        for model, record in sweep["final"].items()
        if of == task
    }
    return {title: found[title] for title in TITLES.values() if title in found}


def _compared(kept: Kept, task: str, at: str) -> dict[str, dict[str, Any]]:
    """The final runs on a task compared with the LSTM, see `report.compare`, by title.

    There is no comparison at equal time of runs on several processors.
    """
    records = _finals(kept, task)
    processors = {record["environment"].get("processor") for record in records.values()}
    if TITLES["", "lstm"] not in records or (at == "time" and len(processors) > 1):
        return {}
    rows = compare({title: run_of(record) for title, record in records.items()})
    return {row["model"]: row for row in rows if row["at"] == at}


def _score(row: Mapping[str, Any] | None, beside: str | None = None) -> str:
    """The mean over seeds in percent, and in parentheses their range or something else."""
    if row is None:
        return MISSING
    return f"{_percent(row['mean'])} ({beside})" if beside else spread(row["values"])


def _difference(row: Mapping[str, Any]) -> str:
    if "difference" not in row:
        return MISSING
    return points(Difference(row["difference"], row["interval"], row["verdict"]), digits=2)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


if __name__ == "__main__":
    sys.exit(main())
