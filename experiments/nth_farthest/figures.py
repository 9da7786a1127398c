"""Figures of a trained memory core: ``python -m experiments.nth_farthest.figures RUN_DIR``.

Restores the newest checkpoint, runs it on fresh sequences, and writes into a directory:

- ``attention.png``: attention with the reference seen last, first and in the middle (the paper's
  Figure 3), mean of the heads; ``attention_heads.png``: the third of them, head by head;
  ``attention.gif``: the same, step by step;
- ``attention_share.png``: attention over time to the slot that the reference was written to;
  ``attention_input.png``: attention to the input, when the reference is shown, before and after;
- ``dynamics.png``, ``similarity.png``, ``paths.png``: slots and gates over time;
- ``attention.json``: the numbers, see `experiments.nth_farthest.measurements.measure`.

RUN_DIR may also be a folder written by ``--weights FOLDER``, with the run's config and its
parameters in one NumPy file.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.cli import exit_code
from experiments.common.environment import describe_environment
from experiments.common.records import read_json, write_json
from experiments.common.refused import RefusedError
from experiments.common.restore import read_config, restore_params, write_params
from experiments.nth_farthest.config import PRESETS
from experiments.nth_farthest.measurements import Run, measure, run_model
from experiments.nth_farthest.train import make_problem
from rrnn_jax.visualize import (
    attention_animation,
    attention_figure,
    attention_of,
    attention_share_figure,
    dynamics_figure,
    input_share,
    input_share_figure,
    memory_attention,
    nth_farthest_figure,
    projection_figure,
    reference_cases,
    save_gif,
    share_by_lag,
    similarity_figure,
)
from rrnn_jax.visualize.nth_farthest import object_titles

DPI = 200


def draw(run: Run, out_dir: Path) -> list[Path]:
    """Renders all figures; returns their paths."""
    weights = attention_of(run.weights)
    steps, slots = run.steps, run.writes.argmax(-1)
    shown = reference_cases(run.question)[-1]
    step = int(steps[shown])
    titles = object_titles(np.asarray(run.question.labels)[shown], step)
    memories = np.concatenate([run.initial[None], run.memories[shown]])
    figures = {
        "attention": nth_farthest_figure(weights, run.question),
        "attention_heads": attention_figure(
            np.moveaxis(run.weights[shown, :, -1], 1, 0),
            title="Nth Farthest: attention of each head\n(framed: the step that shows m)",
            row_labels=[f"head {h + 1}" for h in range(run.weights.shape[3])],
            panel_titles=[titles] * run.weights.shape[3],
            marked=[step] * run.weights.shape[3],
        ),
        "attention_share": attention_share_figure(
            {
                name: share_by_lag(memory_attention(head), slots, steps)
                for name, head in run.heads.items()
            },
            title="Nth Farthest: attention to the slot that m changes most",
            y_label="share of the attention to memory (%)",
        ),
        "attention_input": input_share_figure(
            {name: input_share(head, steps) for name, head in run.heads.items()},
            title="Nth Farthest: attention to the input",
        ),
        "dynamics": dynamics_figure(
            run.memories[shown],
            run.initial,
            input_gate=None if run.input_gate is None else run.input_gate[shown],
            forget_gate=None if run.forget_gate is None else run.forget_gate[shown],
            step_labels=titles,
            marked=step,
            title="Nth Farthest: memory dynamics (framed: the step that shows m)",
        ),
        "similarity": similarity_figure(
            memories[[0, step + 1, -1]],
            panel_titles=["start", f"after {titles[step]}", "end"],
            title="Nth Farthest: similarity of the memory slots",
        ),
        "paths": projection_figure(
            memories,
            marked=step + 1,
            marked_label="m was shown",
            title="Nth Farthest: paths of the memory slots (dots grow with time)",
        ),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(out_dir / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI)
    paths.append(out_dir / "attention.gif")
    animation = attention_animation(
        weights[shown], step_titles=titles, marked=step, title="Nth Farthest: attention, head mean"
    )
    save_gif(animation, paths[-1])
    return paths


def make_figures(
    run_dir: Path,
    out_dir: Path,
    seed: int | None = None,
    count: int = 4096,
    weights: Path | None = None,
) -> Any:
    """Restores a run, measures and draws it.

    Args:
      run_dir: a run of the memory core, or one of all models.
      out_dir: the directory of the files; created if missing.
      seed: a seed of the run (default: the first).
      count: number of fresh sequences.
      weights: a folder to write the run's config and parameters to, for sharing.

    Returns:
      The content of ``attention.json``.

    Raises:
      FileNotFoundError: there is no run of the memory core with a checkpoint of that seed.
      RefusedError: there are too few sequences to show the three cases.
    """
    if count < 1:
        raise RefusedError(f"--sequences must be at least 1, got {count}")
    if (run_dir / "rmc" / "config.json").exists():
        run_dir = run_dir / "rmc"
    # As trained on any machine, read on this one.
    config = dataclasses.replace(read_config(run_dir, PRESETS["quick"]), implementation="auto")
    if config.model != "rmc":
        raise FileNotFoundError(f"no run of the memory core in {run_dir}, but of {config.model!r}")
    seed = config.train.seed if seed is None else seed
    step, params = restore_params(make_problem(config), config.train, run_dir, seed)
    run = run_model(config, params, seed, count)
    if weights is not None:
        write_params(weights, params, step)
        saved = read_json(run_dir / "config.json")
        saved["train"] |= {"seed": seed, "num_seeds": 1}
        write_json(weights / "config.json", saved)
    out_dir.mkdir(parents=True, exist_ok=True)
    numbers = {
        "environment": describe_environment(),
        "preset": config.preset,
        "step": step,
        "seed": seed,
        **measure(run),
    }
    write_json(out_dir / "attention.json", numbers)
    for path in draw(run, out_dir):
        print(f"wrote {path}")
    return numbers


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.nth_farthest.figures",
        description="Figures of attention and memory of a trained memory core.",
    )
    parser.add_argument(
        "run_dir",
        type=Path,
        help="a run with a checkpoint, such as runs/nth_farthest/laptop, or a folder of --weights",
    )
    parser.add_argument(
        "--out-dir", type=Path, default=None, help="where files go (default: RUN_DIR/figures)"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the run's seeds (default: first)"
    )
    parser.add_argument("--sequences", type=int, default=4096, help="to run (default: 4096)")
    parser.add_argument("--weights", type=Path, help="a folder to write the parameters into, too")
    given = parser.parse_args(args)

    def action() -> None:
        out_dir = given.run_dir / "figures" if given.out_dir is None else given.out_dir
        numbers = make_figures(given.run_dir, out_dir, given.seed, given.sequences, given.weights)
        share = numbers["memory_share"]["all"]
        print(
            f"of the attention to memory, to the slot that m was written to: {share['before']:.1%} "
            f"before, {share['after']:.1%} after (other sequences {share['others_after']:.1%}, "
            f"evenly spread {share['uniform']:.1%})"
        )

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
