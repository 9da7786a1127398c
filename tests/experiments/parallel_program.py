"""A program for several devices or processes: trains, and prints what the parameters are."""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from experiments.common import loop, parallel
from experiments.common.cli import exit_code
from experiments.common.run_directory import open_run
from tests.experiments.toys import CONFIG, Whole, regression, stream, write_tokens


def make_problems(directory: Path) -> dict:
    """Problems and configs by name."""
    from experiments.nth_farthest.config import PRESETS as NTH_FARTHEST
    from experiments.nth_farthest.config import LSTMConfig, RMCConfig, TaskConfig
    from experiments.nth_farthest.train import make_problem

    # Gradients that are zero but for rounding (of a bias before a norm) are not to become updates
    # of a full rate, as Adam makes of them with its usual epsilon.
    train = dataclasses.replace(CONFIG, steps=20, learning_rate=1e-3, epsilon=1e-3)
    quick = dataclasses.replace(
        NTH_FARTHEST["quick"],
        task=TaskConfig(num_objects=3, num_features=2),
        rmc=RMCConfig(mem_slots=2, num_heads=2, head_size=4),
        lstm=LSTMConfig(lstm_features=8),
    )
    seeds = dataclasses.replace(train, num_seeds=2)
    rmc = dataclasses.replace(quick, model="rmc", train=seeds)
    tokens = write_tokens(directory / f"tokens_{jax.process_index()}.npy")
    micro = dataclasses.replace(train, micro_batch_size=4)
    return {
        "regression": (regression(train), train),
        "stream": (stream(micro, tokens), micro),
        "rmc, two seeds": (make_problem(rmc), seeds),
    }


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="*", help="names of problems")
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
        found = {}
        for name, (problem, config) in make_problems(given.directory).items():
            if given.only and name not in given.only:
                continue
            config = dataclasses.replace(config, steps=given.steps)
            run_dir = given.directory / name
            open_run(run_dir, Whole(config))
            outcome = loop.train(problem, config, run_dir, name, progress=False)
            leaves = jax.tree.leaves((outcome.state.params, outcome.metrics, outcome.test))
            found[name] = np.concatenate([np.ravel(leaf) for leaf in leaves]).tolist()
        if parallel.is_main():
            (given.directory / "found.json").write_text(json.dumps(found))

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
