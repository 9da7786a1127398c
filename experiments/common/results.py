"""Keeps a finished run's numbers: ``python -m experiments.common.results RUN_DIR NAME``.

Collects what the READMEs quote of a run, or of the runs of several models below it: command,
config, environment, summary and the curves of the score go into ``experiments/results/NAME.json``,
the plot into ``NAME.png``.
"""

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

from experiments.common.metrics import METRICS_FILE, curve, read_metrics
from experiments.common.records import read_json, write_json
from experiments.common.run_directory import read_environment

RESULTS = Path(__file__).parents[1] / "results"

CURVES = ("accuracy", "solved", "return", "nats")
"""Metrics of evaluations whose curves are kept."""

PLOTS = ("accuracy.png", "score.png", "valid.png")
"""The plot that is kept: the first of these."""


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers of a run, or of each run in the directories below it.

    Raises:
      FileNotFoundError: there is no finished run.
    """
    if not (run_dir / METRICS_FILE).exists():
        found = sorted(path.parent for path in run_dir.glob(f"*/{METRICS_FILE}"))
        if not found:
            raise FileNotFoundError(f"no run in {run_dir}")
        return {path.name: collect(path) for path in found}
    rows = read_metrics(run_dir)
    found = {"environment": read_environment(run_dir)}
    found |= {name: read_json(run_dir / f"{name}.json") for name in ("config", "summary")}
    found["environment"]["command"] = without_place(found["environment"]["command"])
    for metric in CURVES:
        curves = curve(rows, "valid", metric)
        if curves:
            found[metric] = {
                str(seed): {"step": steps, "value": [round(value, 5) for value in values]}
                for seed, (steps, values) in curves.items()
            }
    return found


def without_place(command: str) -> str:
    """A command without the options that say where to run and what to show.

    >>> without_place("python -m experiments.nth_farthest --run-dir some/where --num-seeds 2")
    'python -m experiments.nth_farthest --num-seeds 2'
    """
    return re.sub(r" (--(?:run|tokens)-dir[ =]\S+|--(no-)?progress)", "", command)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.common.results")
    parser.add_argument("run_dir", type=Path, help="a finished run's directory")
    parser.add_argument("name", help="name of the result, such as nth_farthest/quick")
    arguments = parser.parse_args()
    target = RESULTS / f"{arguments.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, collect(arguments.run_dir))
    plots = [arguments.run_dir / "plots" / name for name in PLOTS]
    for plot in [path for path in plots if path.exists()][:1]:
        shutil.copyfile(plot, target.with_suffix(".png"))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
