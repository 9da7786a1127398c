"""Compares finished runs: ``python -m experiments.comparison DIRECTORY... --out-dir DIR``.

Finds every finished run below the directories, sorts them by task, and writes a table for each
task: models against each other at equal updates, updates and time to a threshold, parameters,
speed; mean and spread of the seeds. Seeds of one config may be in several runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.cli import exit_code
from experiments.common.refused import RefusedError
from experiments.common.run_directory import write_json
from experiments.comparison.collect import collect, find_runs
from experiments.comparison.table import compare, to_csv, to_markdown


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.comparison",
        description="A table of finished runs: models against each other, task by task.",
    )
    parser.add_argument("directories", type=Path, nargs="+", help="searched for finished runs")
    parser.add_argument(
        "--threshold", type=float, default=0.9, help="accuracy timed (default: 0.9)"
    )
    parser.add_argument(
        "--at-step", type=int, help="update compared at (default: the last in common, by task)"
    )
    parser.add_argument("--out-dir", type=Path, help="gets comparison.md, .csv and .json")
    given = parser.parse_args(args)

    def action() -> None:
        if not 0 <= given.threshold <= 1:
            raise RefusedError(f"--threshold must lie between 0 and 1, got {given.threshold}")
        entries = collect(find_runs(given.directories))
        if not entries:
            raise FileNotFoundError("no run of one model on one task among them")
        rows = compare(entries, given.threshold, given.at_step)
        print(to_markdown(rows), end="")
        if given.out_dir is not None:
            given.out_dir.mkdir(parents=True, exist_ok=True)
            (given.out_dir / "comparison.md").write_text(to_markdown(rows))
            (given.out_dir / "comparison.csv").write_text(to_csv(rows))
            write_json(given.out_dir / "comparison.json", rows)

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
