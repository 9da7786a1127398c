"""Keeps what calls left: ``python -m benchmarks.accelerator.keep DIR [DIR ...]``.

Measurements go into ``benchmarks/results/<device>/``, trainings and the search into
``experiments/results/nth_farthest/``, with a plot of the learning curves. Rows of a file that is
there already are kept, and those of the directories added to them.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accelerator import correctness, profiling, search, throughput
from benchmarks.accelerator.files import read_json_lines, unpack
from benchmarks.accelerator.training import without_places
from benchmarks.records import append_rows
from experiments.common.metrics import curve, read_metrics
from experiments.common.plots import plot_curves
from experiments.common.results import RESULTS as EXPERIMENT_RESULTS
from experiments.common.run_directory import write_json
from experiments.nth_farthest.train import TITLES

BENCHMARK_RESULTS = Path(__file__).parents[1] / "results"
_MEASUREMENTS = (correctness.FILE, throughput.FILE, profiling.FILE)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accelerator.keep",
        description="Puts what python -m benchmarks.accelerator left where the results are kept.",
    )
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="what --out was")
    parser.add_argument("--benchmarks", type=Path, default=BENCHMARK_RESULTS,
                        help="where measurements go (default: benchmarks/results)")  # fmt: skip
    parser.add_argument("--experiments", type=Path, default=EXPERIMENT_RESULTS / "nth_farthest",
                        help="(default: experiments/results/nth_farthest)")  # fmt: skip
    given = parser.parse_args(args)
    written = []
    for directory in given.directories:
        for name in _MEASUREMENTS:
            written += keep_measurements(directory / name, given.benchmarks)
        written += keep_rows(
            directory / search.FILE, given.experiments / "accelerator_search.jsonl"
        )
    written += keep_trainings(given.directories, given.experiments)
    for path in dict.fromkeys(written):
        print(f"wrote {path}")
    if not written:
        print("error: there is nothing to keep", file=sys.stderr)
        return 2
    return 0


def keep_measurements(path: Path, results: Path) -> list[Path]:
    """Adds the rows of a file to those of the devices that they were measured on."""
    written = []
    for row in read_json_lines(path):
        device = row["environment"]["device"] if "environment" in row else row["device"]
        target = results / directory_name(device) / path.name
        written += _add(row, target)
    return written


def keep_rows(path: Path, target: Path) -> list[Path]:
    """Adds the rows of a file to another."""
    return [each for row in read_json_lines(path) for each in _add(row, target)]


def keep_trainings(directories: Sequence[Path], results: Path) -> list[Path]:
    """Writes ``accelerator_<model>.json`` of the latest of each model, and a plot of all."""
    written, curves = [], {}
    for model, title in TITLES.items():
        name = f"train_{model}"
        found = [directory for directory in directories if (directory / f"{name}.json").exists()]
        if not found:
            continue
        latest = max(found, key=lambda directory: _updates(directory / f"{name}.json"))
        target = results / f"accelerator_{model}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, json.loads((latest / f"{name}.json").read_text()))
        written.append(target)
        with tempfile.TemporaryDirectory() as temporary:
            if unpack(latest, name, Path(temporary)):
                curves[title] = curve(read_metrics(Path(temporary)), "eval", "accuracy")
    if curves:
        written.append(
            plot_curves(
                results / "accelerator.png",
                curves,
                title="Nth Farthest, 8 objects of 16 features",
                y_label="accuracy on fresh sequences",
                trivial=0.25,
                y_limits=(0.0, 1.0),
            )
        )
    return written


def directory_name(device: str) -> str:
    """The directory of a device.

    >>> directory_name("NVIDIA H100 80GB HBM3")
    'nvidia_h100_80gb_hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def _updates(path: Path) -> int:
    return json.loads(path.read_text())["summary"]["steps"]


def _add(row: dict, target: Path) -> list[Path]:
    """Adds a row unless the file has it, without the places of its command."""
    environment = row.get("environment", {})
    if "command" in environment:
        environment["command"] = without_places(environment["command"])
    if row in read_json_lines(target):
        return []
    append_rows(target, [row])
    return [target]


if __name__ == "__main__":
    sys.exit(main())
