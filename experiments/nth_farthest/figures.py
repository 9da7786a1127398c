"""Figures of a trained memory core: ``python -m experiments.nth_farthest.figures RUN_DIR``.

Restores the newest checkpoint, runs it on fresh sequences, and writes into a directory:

- ``attention.png``: attention with the reference seen last, first and in the middle (the paper's
  Figure 3), mean of the heads; ``attention_heads.png``: the third of them, head by head;
  ``attention.gif``: the same, step by step;
- ``attention_share.png``: attention to the slot that the reference was written to, against time;
- ``dynamics.png``, ``similarity.png``, ``paths.png``: what the slots and gates do meanwhile;
- ``attention.json``: the numbers, see `measure`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.cli import exit_code
from experiments.common.environment import describe_environment
from experiments.common.restore import read_config, restore_params
from experiments.common.run_directory import write_json
from experiments.nth_farthest.config import PRESETS, Config
from experiments.nth_farthest.model import Model, make_model
from experiments.nth_farthest.train import make_problem
from rrnn_jax import RNN
from rrnn_jax.tasks import nth_farthest
from rrnn_jax.visualize import (
    attention_animation,
    attention_figure,
    attention_of,
    attention_share,
    attention_share_figure,
    captured_array,
    dynamics_figure,
    nth_farthest_figure,
    projection_figure,
    reference_cases,
    reference_steps,
    save_gif,
    share_by_lag,
    similarity_figure,
    write_shares,
)
from rrnn_jax.visualize.nth_farthest import case_steps, object_titles

DPI = 200
_STREAM = 3  # Of the seed's key; training and evaluation use those before it.


class Run(NamedTuple):
    """A model's insides over B fresh sequences, as NumPy arrays.

    Attributes:
      question: the sequences, decoded.
      is_correct: ``[B]``, whether the model answers right.
      weights: ``[B, T, blocks, H, S, S+1]``.
      memories: ``[B, T, S, F]``, after each step.
      initial: ``[S, F]``, the memory before the first.
      input_gate: ``[B, T, S, F]`` or ``[B, T, S, 1]``; None without gates.
      forget_gate: likewise.
    """

    question: nth_farthest.Question
    is_correct: np.ndarray
    weights: np.ndarray
    memories: np.ndarray
    initial: np.ndarray
    input_gate: np.ndarray | None
    forget_gate: np.ndarray | None


def run_model(config: Config, params: Any, seed: int, count: int) -> Run:
    """Runs a memory core on `count` sequences that it was not trained on."""
    model = make_model(config)
    task = nth_farthest.Config(config.task.num_objects, config.task.num_features)
    key = jax.random.fold_in(jax.random.key(seed), _STREAM)
    batch = nth_farthest.sample(key, task, count)
    logits = jnp.asarray(jax.jit(model.apply)(params, batch.inputs))
    carries, captured = _capture(model, params, batch.inputs)
    carry = model.cell.initialize_carry(jax.random.key(0), batch.inputs[0, 0].shape)
    memories, initial = (x[0] if isinstance(x, tuple) else x for x in (carries, carry))
    question = nth_farthest.decode(batch.inputs, task)
    gates = {
        f"{gate}_gate": None
        if config.rmc.gate_style == "none"
        else captured_array(captured, f"{gate}_gate")
        for gate in ("input", "forget")
    }
    return Run(
        question=jax.device_get(question),
        is_correct=np.asarray(jnp.argmax(logits, -1) == batch.targets),
        weights=captured_array(captured, "attention_weights"),
        memories=np.asarray(memories),
        initial=np.asarray(initial),
        **gates,
    )


def _capture(model: Model, params: Any, inputs: jax.Array) -> tuple[Any, Any]:
    """The carry after every step, and what the cell has sown."""
    core = {"params": {"cell": params["params"]["cell"]}}

    @jax.jit
    def run(core: Any, inputs: jax.Array) -> Any:
        return RNN(model.cell).apply(
            core, inputs, return_all_carries=True, mutable=["intermediates"]
        )

    (carries, _), captured = run(core, inputs)
    return carries, captured


def measure(run: Run) -> dict[str, Any]:
    """How much attention goes to the slot that the reference was written to.

    The definitions are those of `rrnn_jax.visualize.attention_numbers`, on the last block's mean of
    heads.

    Returns:
      ``accuracy``; ``largest_write_share`` (of the reference's step, with 1/S for comparison);
      ``share``: before and after the reference was seen, with both chance levels, in all sequences,
      by case, and by head; ``more_than_others``: the share of sequences whose slot gets more
      attention afterwards than it does in other sequences; ``by_lag``.
    """
    weights = attention_of(run.weights)
    steps = reference_steps(run.question)
    writes = write_shares(weights, run.input_gate)[np.arange(len(steps)), steps]
    slots = writes.argmax(-1)
    share = attention_share(weights, slots, steps)
    cases = case_steps(weights.shape[1])
    heads = [
        attention_share(attention_of(run.weights, head=h), slots, steps)
        for h in range(run.weights.shape[3])
    ]
    seen = steps < cases["last"]
    lags = share_by_lag(weights, slots, steps)
    return {
        "accuracy": _number(run.is_correct.mean()),
        "sequences": len(steps),
        "largest_write_share": _number(writes.max(-1).mean()),
        "even_write_share": _number(1 / weights.shape[2]),
        "share": {
            "all": _means(share, np.ones_like(seen)),
            **{f"seen {case}": _means(share, steps == step) for case, step in cases.items()},
            **{f"head {h + 1}": _means(s, np.ones_like(seen)) for h, s in enumerate(heads)},
        },
        "more_than_others": _number((share.after > share.others_after)[seen].mean()),
        "by_lag": {
            "lag": lags.lags.tolist(),
            "share": [_number(x) for x in lags.share],
            "others": [_number(x) for x in lags.others],
        },
    }


def _means(share: Any, where: np.ndarray) -> dict[str, float | None]:
    """Means over the sequences chosen; None where there is none with such a step."""
    means = {}
    for name in ("before", "after", "others_before", "others_after"):
        values = getattr(share, name)[where]
        values = values[np.isfinite(values)]
        means[name] = _number(values.mean()) if len(values) else None
    return {**means, "uniform": _number(share.uniform)}


def _number(value: Any) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def draw(run: Run, out_dir: Path) -> list[Path]:
    """Renders all figures; returns their paths."""
    weights = attention_of(run.weights)
    steps = reference_steps(run.question)
    shown = reference_cases(run.question)[-1]
    step = int(steps[shown])
    titles = object_titles(np.asarray(run.question.labels)[shown], step)
    memories = np.concatenate([run.initial[None], run.memories[shown]])
    slots = write_shares(weights, run.input_gate).argmax(-1)[np.arange(len(steps)), steps]
    figures = {
        "attention": nth_farthest_figure(weights, run.question),
        "attention_heads": attention_figure(
            np.moveaxis(run.weights[shown, :, -1], 1, 0),
            title="Nth Farthest: attention of each head\n(framed: the step that shows m)",
            row_labels=[f"head {h + 1}" for h in range(run.weights.shape[3])],
            panel_titles=[titles] * run.weights.shape[3],
            marked=[step] * run.weights.shape[3],
        ),
        "attention_share": attention_share_figure(share_by_lag(weights, slots, steps)),
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


def make_figures(run_dir: Path, out_dir: Path, seed: int | None = None, count: int = 4096) -> Any:
    """Restores a run, measures and draws it.

    Args:
      run_dir: a run of the memory core, or one of all models with the memory core's below it.
      out_dir: where the files go; made if missing.
      seed: which of the run's seeds (default: the first).
      count: fresh sequences to run.

    Returns:
      What was written to ``attention.json``.

    Raises:
      FileNotFoundError: there is no run of the memory core with a checkpoint of that seed.
    """
    if (run_dir / "rmc" / "config.json").exists():
        run_dir = run_dir / "rmc"
    config = read_config(run_dir, PRESETS["quick"])
    if config.model != "rmc":
        raise FileNotFoundError(f"no run of the memory core in {run_dir}, but of {config.model!r}")
    seed = config.train.seed if seed is None else seed
    step, params = restore_params(make_problem(config), config.train, run_dir, seed)
    run = run_model(config, params, seed, count)
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
        "run_dir", type=Path, help="a finished run, such as runs/nth_farthest/quick"
    )
    parser.add_argument(
        "--out-dir", type=Path, default=None, help="where files go (default: RUN_DIR/figures)"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the run's seeds (default: first)"
    )
    parser.add_argument("--sequences", type=int, default=4096, help="to run (default: 4096)")
    given = parser.parse_args(args)

    def action() -> None:
        out_dir = given.run_dir / "figures" if given.out_dir is None else given.out_dir
        numbers = make_figures(given.run_dir, out_dir, given.seed, given.sequences)
        share = numbers["share"]["all"]
        print(
            f"attention to the slot that m was written to: {share['before']:.1%} before, "
            f"{share['after']:.1%} after (other sequences {share['others_after']:.1%}, evenly "
            f"spread {share['uniform']:.1%})"
        )

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
