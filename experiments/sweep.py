"""Tunes models: ``python -m experiments.sweep EXPERIMENT --models M... --vary OPTION V...``.

Trains every model with every setting, each in its own run directory, several at once; finished runs
are skipped. The best setting of a model is chosen on the validation stream ("valid", the mean over
seeds after the last update) and reported on the test stream, which is not used for the choice. With
``--final-seeds`` each model's best setting is then trained with that number of fresh seeds, and the
models are compared with the first one, see `experiments.common.report`::

    python -m experiments.sweep nth_farthest --models lstm rmc --vary learning-rate 1e-3 3e-3 \
        --vary lstm:lstm-features 128 256 --jobs 2 --final-seeds 5 -- --preset small --num-seeds 2
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import markdown
from experiments.common.cli import EXIT_NON_FINITE, exit_code
from experiments.common.launch import run_commands
from experiments.common.plots import plot_curves
from experiments.common.records import read_json, write_json, write_text
from experiments.common.refused import RefusedError
from experiments.common.report import compare, read_run, text_of, to_csv
from experiments.common.report import to_markdown as report_markdown
from experiments.common.run_directory import SUMMARY_FILE

FINAL_SEED = 1000
"""The first of the fresh seeds."""

OPTIONS_FILE = "options.json"
"""In the directory of a sweep: the options of all its runs."""

Setting = dict[str, str]
"""Options of a run, by name without dashes."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    args = list(sys.argv[1:] if args is None else args)
    end = args.index("--") if "--" in args else len(args)
    given, options = _parser().parse_args(args[:end]), args[end + 1 :]
    directory = given.run_dir or Path("runs") / "sweep" / given.experiment
    codes: dict[Path, int] = {}

    def action() -> None:
        for name, least in (("jobs", 1), ("final_seeds", 0)):
            if getattr(given, name) < least:
                option = f"--{name.replace('_', '-')}"
                raise RefusedError(f"{option} must be at least {least}, got {getattr(given, name)}")
        _check_single(given, options)
        _check_vary(given.models, given.vary or [])
        runs = {
            directory / model / name_of(setting): (model, setting)
            for model in given.models
            for setting in settings_of(model, given.vary or [])
        }
        _check_same(directory, given.experiment, options)
        codes.update(_run(runs, given, options))
        for run_dir in [path for path, code in codes.items() if code == EXIT_NON_FINITE]:
            print(f"{run_dir}: became NaN or infinite, and is left out")
            del codes[run_dir]
        rows = collect(runs)
        print(to_markdown(rows), end="", flush=True)
        write_text(directory / "sweep.md", to_markdown(rows))
        write_json(directory / "sweep.json", rows)
        if given.final_seeds and not any(codes.values()):
            _check_fresh(rows)
            fresh = ["--seed", str(FINAL_SEED), "--num-seeds", str(given.final_seeds)]
            best = {row["model"]: row["setting"] for row in rows if row.get("best")}
            start = f"final_{given.final_seeds},"
            final = {
                directory / model / f"{start}{name_of(setting)}": (model, setting)
                for model, setting in best.items()
            }
            codes.update(_run(final, given, [*options, *fresh]))
            for run_dir in [path for path, code in codes.items() if code == EXIT_NON_FINITE]:
                print(f"{run_dir}: became NaN or infinite, and is not compared")
                del codes[run_dir], final[run_dir]
            if not any(codes.values()) and final:
                _report(directory, {model: run_dir for run_dir, (model, _) in final.items()})

    return exit_code(action) or next(filter(None, codes.values()), 0)


def _run(
    runs: Mapping[Path, tuple[str, Setting]], given: argparse.Namespace, options: Sequence[str]
) -> dict[Path, int]:
    """Trains unfinished runs; returns exit codes by directory."""
    todo = {
        run_dir: command_of(given.experiment, model, setting, options, run_dir)
        for run_dir, (model, setting) in runs.items()
        if not (run_dir / SUMMARY_FILE).exists()
    }
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done", flush=True)
    return run_commands(todo, given.jobs, given.progress) if todo else {}


def _report(directory: Path, finished: Mapping[str, Path]) -> None:
    """Compares the models' final runs: tables as Markdown, CSV and JSON, and their curves."""
    runs = {model: read_run(run_dir) for model, run_dir in finished.items()}
    rows = compare(runs)
    print("\n" + report_markdown(rows), end="")
    write_text(directory / "report.md", report_markdown(rows))
    write_text(directory / "report.csv", to_csv(rows))
    write_json(directory / "report.json", rows)
    curves = {
        model: {seed: (each.steps, each.values) for seed, each in run.seeds.items()}
        for model, run in runs.items()
    }
    name = rows[0]["score"]
    plot_curves(directory / "report.png", curves, title="fresh seeds", y_label=f"valid {name}")


def settings_of(model: str, vary: Sequence[Sequence[str]]) -> list[Setting]:
    """All combinations of the values of options that apply to a model.

    Those of the model replace those of all models.

    >>> settings_of("rmc", [["learning-rate", "1e-3", "3e-3"], ["lstm:lstm-layers", "1", "2"]])
    [{'learning-rate': '1e-3'}, {'learning-rate': '3e-3'}]
    """
    parts = [(*_owner_and_option(name), values) for name, *values in vary]
    own = {option for owner, option, _ in parts if owner == model}
    axes = {
        option: values
        for owner, option, values in parts
        if owner == model or (not owner and option not in own)
    }
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def name_of(setting: Setting) -> str:
    """The directory of a setting.

    >>> name_of({"learning-rate": "1e-3", "lstm-layers": "2"})
    'learning-rate_1e-3,lstm-layers_2'
    """
    return ",".join(f"{name}_{value}" for name, value in setting.items()) or "default"


def command_of(
    experiment: str, model: str, setting: Setting, options: Sequence[str], run_dir: Path
) -> list[str]:
    """The command of a run, with the options of the setting after those of all runs."""
    own = [part for name, value in setting.items() for part in (f"--{name}", value)]
    return [
        *(sys.executable, "-m", f"experiments.{experiment}", *options, "--model", model, *own),
        *("--run-dir", str(run_dir), "--no-progress"),
    ]


def collect(runs: Mapping[Path, tuple[str, Setting]]) -> list[dict[str, Any]]:
    """A row for each finished run; ``best`` marks the best of each model.

    Raises:
      FileNotFoundError: no run is finished.
    """
    rows = []
    for run_dir, (model, setting) in runs.items():
        if not (run_dir / SUMMARY_FILE).exists():
            continue
        summary = read_json(run_dir / SUMMARY_FILE)
        score = summary["score"]
        values = summary["evaluation"][score["name"]]
        if not all(value is not None and math.isfinite(value) for value in values):
            print(f"{run_dir}: its score has no finite value, and it is left out")
            continue
        row = {"model": model, "setting": setting, "score": score["name"], "goal": score["goal"]}
        row |= {"valid": values, "test": summary.get("test", {}).get(score["name"])}
        rows.append({**row, "seeds": summary["seeds"], "parameters": summary["parameters"]})
    if not rows:
        raise FileNotFoundError("no run of the sweep is finished")
    return with_best(rows)


def with_best(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ``best`` at the best of each model, chosen on the validation stream."""
    found = [{name: value for name, value in row.items() if name != "best"} for row in rows]
    for model in {row["model"] for row in found}:
        own = [row for row in found if row["model"] == model]
        choose = max if own[0]["goal"] == "max" else min
        choose(own, key=lambda row: statistics.fmean(row["valid"]))["best"] = True
    return found


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The best setting of each model with its test score, and all settings."""
    name = rows[0]["score"]
    every = {id(r): [r["model"], name_of(r["setting"]), text_of(r["valid"])] for r in rows}
    best = [
        [
            *every[id(row)],
            text_of(row["test"]) if row["test"] else "-",
            f"{row['parameters']:,}",
            str(sum(other["model"] == row["model"] for other in rows)),
        ]
        for row in rows
        if row.get("best")
    ]
    valid, more = f"valid {name}", (f"test {name}", "parameters", "settings tried")
    first = markdown.table(["model", "best setting", valid, *more], best)
    return f"{first}\n\n{markdown.table(['model', 'setting', valid], every.values())}\n"


def _owner_and_option(name: str) -> tuple[str, str]:
    """The model ("" for all) and the option that a name of ``--vary`` is about."""
    owner, _, option = name.rpartition(":")
    return owner, option.lstrip("-").replace("_", "-")


def _check_vary(models: Sequence[str], vary: Sequence[Sequence[str]]) -> None:
    """Checks that options have values, and are of a model of the sweep, each given once."""
    seen = set()
    for name, *values in vary:
        owner, option = _owner_and_option(name)
        if option == "task":
            raise RefusedError("--vary must leave the task as it is: scores of tasks differ")
        if option in ("seed", "num-seeds"):
            raise RefusedError(
                f"--vary must leave the {option} as it is: best seeds are no setting"
            )
        if not values:
            raise RefusedError(f"--vary {name} must have values")
        if owner not in ("", *models):
            raise RefusedError(
                f"--vary {name} must be of one of --models {' '.join(models)}, got {owner!r}"
            )
        if (owner, option) in seen:
            raise RefusedError(f"--vary {name} must be given once, with all its values")
        seen.add((owner, option))


def _check_fresh(rows: Sequence[Mapping[str, Any]]) -> None:
    """Checks that no setting was chosen by a seed of the final runs."""
    last = max(seed for row in rows for seed in row["seeds"])
    if last >= FINAL_SEED:
        raise RefusedError(
            f"--seed and --num-seeds must leave the seeds from {FINAL_SEED} on to the final runs, "
            f"got seed {last}"
        )


def _check_single(given: argparse.Namespace, options: Sequence[str]) -> None:
    """Checks that each run is of one model on one task, which has one score."""
    if "all" in given.models:
        raise RefusedError("--models must be names of single models, got all")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default="all")
    task = parser.parse_known_args(options)[0].task
    if given.experiment == "program_evaluation" and task == "all":
        raise RefusedError("--task must be one task, after --, got all")


def _check_same(directory: Path, experiment: str, options: Sequence[str]) -> None:
    """Checks that a sweep's directory has the same experiment and options."""
    path, wanted = directory / OPTIONS_FILE, [experiment, *options]
    if any(directory.glob("*/*/*.json")) and (found := read_json(path)) != wanted:
        raise RefusedError(f"{directory} holds a sweep of {' '.join(found)}; "
                           "choose another --run-dir")  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description="Trains models with several settings and reports the best of each.",
        epilog="Options after -- are those of every run, such as -- --preset small --num-seeds 3.",
    )
    add = parser.add_argument
    add("experiment", help="such as nth_farthest")
    add("--models", nargs="+", required=True, help="names that the experiment's --model takes")
    add("--vary", nargs="+", action="append", metavar=("OPTION", "VALUE"),
        help="an option and its values, such as learning-rate 1e-3 3e-3; MODEL:OPTION for one "
        "model alone; may be repeated: all combinations")  # fmt: skip
    add("--final-seeds", type=int, default=0, metavar="N",
        help=f"then train each model's best with N fresh seeds, from {FINAL_SEED}, and compare "
        "(default: 0, do not)")  # fmt: skip
    add("--run-dir", type=Path, help="default: runs/sweep/EXPERIMENT; an existing one resumes")
    add("--jobs", type=int, default=1, help="runs at once (default: 1)")
    add("--progress", action=argparse.BooleanOptionalAction, default=True, help="draw a bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
