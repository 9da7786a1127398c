"""A program for several devices or processes: the results of 20 updates of every experiment.

With a core of a user's own, registered here once, in all experiments that take a core by name.
"""

import argparse
import dataclasses
import gc
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from experiments.common import parallel
from experiments.common.cells import Core, make_cell, register
from experiments.common.cli import parse
from experiments.common.steps import Programs
from experiments.common.train_config import TrainConfig
from tests.experiments.toys import counting, parse_process

# Gradient descent with momentum: Adam would make a whole step of a gradient that is zero but for
# rounding (of a bias before a softmax), in whatever direction that rounding has.
TRAIN = TrainConfig(
    steps=20, batch_size=8, eval_samples=8, learning_rate=0.3, epsilon=1.0, chunk_steps=20
)


@dataclasses.dataclass(frozen=True)
class OwnConfig(Core):
    """A user's own core."""

    TITLE = "GRU of a user"
    own_features: int = 4
    """Its width."""

    def make(self, dtype):
        """The cell."""
        return flax.linen.GRUCell(self.own_features, dtype=dtype)


def make_problems(directory: Path) -> dict:
    """What makes problems and configs, by name."""
    from tests.experiments import tiny

    micro = dataclasses.replace(TRAIN, micro_batch_size=4)
    seeds = dataclasses.replace(TRAIN, num_seeds=2)
    return {
        "nth_farthest": lambda: tiny.nth_farthest("own", seeds),
        "program_evaluation": lambda: tiny.program_evaluation("own", micro),
        "language_model": lambda: tiny.language_model("own", seeds, directory),
        "box_world": lambda: tiny.game("box_world", "own", TRAIN),
        "mini_pacman": lambda: tiny.game("mini_pacman", "own", TRAIN),
        "counting": lambda: (counting(TRAIN, OwnConfig().make(None)), TRAIN),
        "ablations": lambda: tiny.ablations(TRAIN),
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", nargs="+", type=int, required=True)
    parser.add_argument("--only", nargs="*", help="problems to train (default: all)")
    given = parse_process(parser)
    gc.disable()  # It would walk through all programs, again and again.
    register("own", OwnConfig)
    from experiments.nth_farthest.__main__ import DESCRIPTION, PRESETS

    options = ["--model", "own", "--own-features", "3"]
    config: Any
    config, _ = parse(PRESETS, "nth_farthest", DESCRIPTION, options)
    found: dict[str, Any] = {"option": config.own.own_features}
    for name in (
        "nth_farthest",
        "program_evaluation",
        "language_model",
        "box_world",
        "mini_pacman",
    ):
        config = importlib.import_module(f"experiments.{name}.config").PRESETS["quick"]
        found[f"{name} cell"] = type(make_cell(config, "own")).__name__
    for name, make in make_problems(given.directory).items():
        if given.only and name not in given.only:
            continue
        problem, train = make()
        start = None
        for devices in given.devices:
            programs = Programs(problem, dataclasses.replace(train, devices=devices))
            # One device's, where there is one.
            state = programs.init() if start is None else programs.place(start)
            start = parallel.to_host(state)
            state, metrics = programs.train_chunk(state, train.steps)
            after, metrics = parallel.to_host((state.params, metrics))
            for kind, tree in (("before", start.params), ("after", after), ("metrics", metrics)):
                leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(tree)]
                found[f"{name} {kind} {devices}"] = np.concatenate(leaves)
    found["cpu_seconds"] = time.process_time()
    if parallel.is_main():
        np.savez(given.directory / "found.npz", **found)


if __name__ == "__main__":
    sys.exit(main())
