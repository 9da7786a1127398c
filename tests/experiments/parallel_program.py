"""A program for several devices or processes: trains, and prints what the parameters are."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import jax
import numpy as np

from experiments.common import loop, parallel
from experiments.common.cli import exit_code
from experiments.common.run_directory import open_run
from tests.experiments.toys import CONFIG, Whole, regression


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--slow", action="store_true", help="a while between chunks")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    if given.slow:
        quick = loop.to_values
        loop.to_values = lambda metrics: time.sleep(0.05) or quick(metrics)
    if given.coordinator:
        parallel.connect(given.coordinator, given.num_processes, given.process_id)

    def action() -> None:
        config = dataclasses.replace(CONFIG, steps=given.steps)
        run_dir = given.directory / "run"
        open_run(run_dir, Whole(config))
        outcome = loop.train(regression(config), config, run_dir, "run", progress=False)
        leaves = jax.tree.leaves((outcome.state.params, outcome.metrics, outcome.test))
        if parallel.is_main():
            found = np.concatenate([np.ravel(leaf) for leaf in leaves])
            np.save(given.directory / "found.npy", found)

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
