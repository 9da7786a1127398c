"""A program for several devices or processes: trains, and prints the parameters."""

import argparse
import dataclasses
import sys
import time

import jax
import numpy as np

from experiments.common import loop, parallel, steps
from experiments.common.cli import exit_code
from experiments.common.refused import RefusedError
from experiments.common.run_directory import open_run
from tests.experiments.toys import CONFIG, Whole, parse_process, regression


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--slow", action="store_true", help="a while between chunks")
    parser.add_argument("--apart", action="store_true", help="a run directory for each process")
    parser.add_argument("--late", type=int, default=0, help="seconds the second process compiles")
    parser.add_argument("--alone", action="store_true", help="the second process refuses alone")
    given = parse_process(parser)
    if given.slow:
        quick = loop.to_values
        loop.to_values = lambda metrics: time.sleep(0.05) or quick(metrics)

    compile = steps._Program.compile

    def late(self: steps._Program, *args) -> None:
        steps._Program.compile = compile
        if not parallel.is_main():
            (given.directory / "late").touch()
            time.sleep(given.late)
        self.compile(*args)

    if given.late:
        steps._Program.compile = late

    def refuse() -> None:
        if given.alone and not parallel.is_main():
            raise RefusedError("there is no text here")

    def action() -> None:
        parallel.every(refuse)
        config = dataclasses.replace(CONFIG, steps=given.steps)
        run_dir = given.directory / (f"run-{jax.process_index()}" if given.apart else "run")
        open_run(run_dir, Whole(config))
        outcome = loop.train(regression(config), config, run_dir, "run", progress=False)
        leaves = jax.tree.leaves((outcome.state.params, outcome.metrics, outcome.test))
        if parallel.is_main():
            found = np.concatenate([np.ravel(leaf) for leaf in leaves])
            np.save(given.directory / "found.npy", found)

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
