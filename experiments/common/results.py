"""Stores a run's numbers: ``python -m experiments.common.results RUN_DIR NAME``.

Collects the numbers that READMEs quote, of a run or of the runs of several models below it:
command, config, environment, summary, the curves of the score and their training seconds go into
``experiments/results/NAME.json``, the plot into ``NAME.png``. Runs ``MODEL-SEED`` that differ only
in the seed become one record with a curve for each seed. A stopped run has its last step in place
of a summary. Of ``--policies-only`` the scores are kept. ``--join`` adds the runs to those kept
under the name: records of other models, or more seeds of the same.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.actor_critic.config import POLICIES_FILE, TITLES, policy_lines
from experiments.common.cli import exit_code
from experiments.common.loop import TIMINGS_FILE
from experiments.common.metrics import METRICS_FILE, curve, read_metrics
from experiments.common.plots import plot_curves
from experiments.common.records import finite, read_json, read_rows, replacing, write_json
from experiments.common.refused import RefusedError
from experiments.common.run_directory import SUMMARY_FILE, read_environment, settings_of

RESULTS = Path(__file__).parents[1] / "results"

CURVES = ("accuracy", "solved", "return", "nats")
"""Metrics of evaluations whose curves are kept."""

PLOTS = ("accuracy.png", "score.png", "valid.png")
"""The plot that is kept: the first of these."""


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers of a run, or of each run in the directories below it, or of policies alone.

    Raises:
      FileNotFoundError: there is no run.
      RefusedError: a run has no metrics.
    """
    if not (run_dir / METRICS_FILE).exists():
        if (run_dir / POLICIES_FILE).exists():
            found = read_json(run_dir / POLICIES_FILE)
            found["environment"]["command"] = without_place(found["environment"]["command"])
            return found
        found = sorted(path.parent for path in run_dir.glob(f"*/{METRICS_FILE}"))
        if not found:
            raise FileNotFoundError(f"no run in {run_dir}")
        return _seeds_joined({path.name: collect(path) for path in found})
    rows = read_metrics(run_dir)
    if not rows:
        raise RefusedError(f"{run_dir / METRICS_FILE} must hold evaluations, but is empty")
    found = {"environment": read_environment(run_dir)}
    finished = (run_dir / SUMMARY_FILE).exists()
    found["config"] = read_json(run_dir / "config.json")
    found["summary"] = (
        read_json(run_dir / SUMMARY_FILE) if finished else {"stopped_at": rows[-1]["step"]}
    )
    found["environment"]["command"] = without_place(found["environment"]["command"])
    for metric in CURVES:
        curves = curve(rows, "valid", metric)
        if curves:
            found[metric] = {
                str(seed): {"step": steps, "value": finite([round(value, 5) for value in values])}
                for seed, (steps, values) in curves.items()
            }
            wanted = {step for steps, _ in curves.values() for step in steps}
            timings = [row for row in read_rows(run_dir / TIMINGS_FILE) if row["step"] in wanted]
            found["seconds"] = {
                "step": [row["step"] for row in timings],
                "value": [row["seconds"] for row in timings],
            }
    return found


def merge(kept: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Joins records by name; seeds of one name become one record, new ones replace the same.

    Raises:
      RefusedError: records of one name have some but not all seeds in common, or other settings,
        or the new one is of a stopped run.
    """
    joined = dict(kept)
    for name, run in found.items():
        old, new = (each.get("summary", {}).get("seeds") for each in (kept.get(name, run), run))
        if old is not None and new is None:
            raise RefusedError(
                f"the run of {name} must be finished: it would replace a finished one"
            )
        if old is None or new is None or set(old) <= set(new):
            joined[name] = run
        elif set(old) & set(new):
            raise RefusedError(f"runs of {name} must have the seeds {old} or others, got {new}")
        else:
            joined[name] = _join(name, [kept[name], run])
    return dict(sorted(joined.items()))


def _seeds_joined(runs: dict[str, Any]) -> dict[str, Any]:
    """Runs by model; runs named after their model and seed are joined."""
    groups: dict[str, list[Any]] = {}
    for name, run in runs.items():
        model, _, seed = name.rpartition("-")
        alone = run["summary"].get("seeds") == [int(seed)] if seed.isdigit() else False
        groups.setdefault(model if alone else name, []).append(run)
    return {name: _join(name, group) for name, group in groups.items()}


def _join(name: str, runs: list[Any]) -> dict[str, Any]:
    """Joins runs of one model with different seeds into one run.

    Raises:
      RefusedError: they differ in other settings, or have a seed in common.
    """
    first = runs[0]
    seeds = [seed for run in runs for seed in run["summary"].get("seeds", [])]
    if len(set(seeds)) < len(seeds):
        raise RefusedError(f"runs of {name} must have different seeds, got {seeds}")
    for run in runs[1:]:
        if settings_of(run["config"]) != settings_of(first["config"]):
            raise RefusedError(f"runs of {name} must differ only in the seed")
    joined = first | {"summary": _together([run["summary"] for run in runs])}
    if len(runs) > 1:
        environments = [run["environment"] for run in runs]
        commands = [x for e in environments for x in e.get("commands", [e["command"]])]
        joined["environment"] = first["environment"] | {"commands": commands}
        for name, all_of in (("git_commit", "git_commits"), ("processor", "processors")):
            found = [x for e in environments for x in e.get(all_of, [e.get(name)])]
            if len(set(found)) > 1:
                joined["environment"][all_of] = list(dict.fromkeys(found))
        joined["seconds"] = [x for run in runs for x in _listed(run.get("seconds"))]
    for metric in set(CURVES) & set(first):
        joined[metric] = {seed: one for run in runs for seed, one in run[metric].items()}
    return joined


def _together(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins summaries: values by seed are concatenated, and so are the seeds' shares of seconds."""
    found = dict(summaries[0])
    for name, value in found.items():
        values = [summary[name] for summary in summaries]
        if isinstance(value, dict):
            found[name] = _together(values)
        elif name.endswith("_seconds") and len(values) > 1:
            found[name] = [x for summary in summaries for x in _seconds(summary, name)]
        elif isinstance(value, list):
            found[name] = [x for each in values for x in each]
    return found


def _seconds(summary: dict[str, Any], name: str) -> list[float]:
    """The seconds of each seed; those that ran together have equal shares."""
    value, count = summary[name], len(summary["seeds"])
    return value if isinstance(value, list) else [value / count] * count


def _listed(value: Any) -> list[Any]:
    """A list of a value for each run: a joined record has one."""
    return value if isinstance(value, list) else [value]


def without_place(command: str) -> str:
    """A command without the options for directories and display.

    >>> without_place("python -m experiments.nth_farthest --run-dir some/where --num-seeds 2")
    'python -m experiments.nth_farthest --num-seeds 2'
    """
    return re.sub(r" (--(?:run|tokens)-dir[ =]\S+|--(no-)?progress)", "", command)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.common.results")
    parser.add_argument("run_dir", type=Path, help="a run's directory, or one with several")
    parser.add_argument("name", help="name of the result, such as nth_farthest/quick")
    parser.add_argument("--policies", help="a kept result of policies to draw as lines, such as "
                        "box_world/quick_policies (default: those of the run)")  # fmt: skip
    parser.add_argument("--join", action="store_true",
                        help="add the runs to those that are kept under the name")  # fmt: skip
    given = parser.parse_args(args)
    return exit_code(lambda: _keep(given.run_dir, given.name, given.policies, given.join))


def _keep(run_dir: Path, name: str, policies: str | None, join: bool) -> None:
    kept = collect(run_dir)
    if policies is not None and "config" in kept:
        raise RefusedError("--policies is for a directory of several runs, whose scores are drawn")
    target = RESULTS / f"{name}.json"
    lines = read_json(RESULTS / f"{policies}.json") if policies else None
    if join:
        before = read_json(target)
        if "config" in kept or "config" in before:
            raise RefusedError("--join is for a directory of runs named MODEL or MODEL-SEED")
        kept = merge(before, kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, kept)
    plots = [run_dir / "plots" / name for name in PLOTS]
    if policies is None and not join and (found := [path for path in plots if path.exists()]):
        with replacing(target.with_suffix(".png")) as path:
            shutil.copyfile(found[0], path)
    elif "config" not in kept and any("stopped_at" not in x["summary"] for x in kept.values()):
        draw(kept, target.with_suffix(".png"), lines)
    print(f"wrote {target}")


def draw(kept: dict[str, Any], path: Path, policies: dict[str, Any] | None = None) -> None:
    """Draws the score of every stored model and seed, over updates and over minutes.

    The scores of `policies` (default: those in the first summary) are drawn as lines.
    Minutes are those of a model's fastest seed, evenly spread over its updates. Losses before the
    first update are above the plot.
    """
    summaries = {model: run["summary"] for model, run in kept.items()}
    finished = {model: one for model, one in summaries.items() if "stopped_at" not in one}
    summary = next(iter(finished.values()))
    score, name = summary["score"], summary["score"]["name"]
    curves = {
        _title(model, model not in finished): {
            int(seed): (one["step"], one["value"]) for seed, one in run[name].items()
        }
        for model, run in kept.items()
    }
    values = [v for by_seed in curves.values() for _, some in by_seed.values() for v in some[1:]]
    margin = 0.05 * (max(values) - min(values))
    plot_curves(
        path,
        curves,
        title=f"{path.parent.name}, {path.stem}",
        y_label=name,
        trivial=policy_lines(policies or summary, name),
        y_limits=(min(values) - margin, max(values) + margin) if score["goal"] == "min" else None,
        minutes_per_step={
            _title(model, False): fastest(one, "train_seconds") / one["steps"] / 60
            for model, one in finished.items()
        }
        if finished == summaries
        else None,
    )


def _title(name: str, stopped: bool) -> str:
    """The title of a run in a plot.

    >>> _title("lstm", False), _title("lstm-3", True), _title("lstm", True)
    ('LSTM', 'LSTM, seed 3, stopped', 'LSTM, stopped')
    """
    if not stopped:
        return TITLES.get(name, name)
    model, _, seed = name.partition("-")
    which = f", seed {seed}" if seed else ""
    return f"{TITLES.get(model, model)}{which}, stopped"


def fastest(summary: dict[str, Any], name: str) -> float:
    """Seconds of the fastest seed; those that ran together have equal shares."""
    return min(_seconds(summary, name))


if __name__ == "__main__":
    sys.exit(main())
