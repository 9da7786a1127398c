"""The share of a training step spent on drawing its batch of programs.

The step is that of `experiments.program_evaluation`, which draws the batch. Drawing is also timed
separately, interleaved with the whole step.
"""

import argparse
import dataclasses
from typing import Any

import jax

from benchmarks.timing import interleave
from experiments.common.steps import make_programs
from experiments.program_evaluation.config import PRESETS, Config
from experiments.program_evaluation.data import make_task
from experiments.program_evaluation.train import make_problem
from rrnn_jax.tasks import curriculum

MODELS = ("rmc", "lstm")
"""The two models that the paper compares most."""


def measure_share(
    config: Config, rounds: int, min_seconds: float
) -> tuple[list[dict[str, Any]], bool]:
    """Times a training step of one task and model, and the drawing of its batch.

    Args:
      config: of a single run of program evaluation.
      rounds: samples of both.
      min_seconds: shortest time that a sample may span.

    Returns:
      The row (none if nothing was timed), and whether Ctrl-C ended it early.
    """
    programs = make_programs(make_problem(config), config.train)
    task = make_task(config)
    level = curriculum.initial_state(task.config)
    state = programs.init()
    programs.compile(state, 1, None)
    batch_size = config.train.batch_size
    draw = jax.jit(lambda key: task.sample(key, level, batch_size)).lower(jax.random.key(0))
    compiled = draw.compile()
    kept = {"state": state}
    keys = list(jax.random.split(jax.random.key(0), 64))

    def run_step() -> None:
        kept["state"], metrics = programs.train_chunk(kept["state"], 1)
        jax.block_until_ready(metrics)

    def run_draw() -> None:
        keys.append(keys.pop(0))
        jax.block_until_ready(compiled(keys[0]))

    result = interleave(
        {"step": run_step, "draw": run_draw}, rounds=rounds, warmup=1, min_seconds=min_seconds
    )
    timings = result.summaries()
    if set(timings) != {"step", "draw"}:
        return [], result.interrupted
    row = {
        "task": config.task,
        "length": config.difficulty.length,
        "nesting": config.difficulty.nesting,
        "curriculum": config.difficulty.curriculum,
        "batch": batch_size,
        "variant": "training_step",
        "preset": config.preset,
        "model": config.model,
        "seconds": dataclasses.asdict(timings["step"]),
        "draw_seconds": dataclasses.asdict(timings["draw"]),
        "share": timings["draw"].median / timings["step"].median,
    }
    return [row], result.interrupted


def configs(given: argparse.Namespace) -> list[Config]:
    """The configs of the preset's tasks and models."""
    if given.training is None:
        return []
    preset = PRESETS[given.training]
    return [
        dataclasses.replace(preset, task=task, model=model)
        for task in given.task
        for model in MODELS
    ]


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    return (
        f"{row['task']}, {row['model']} of preset {row['preset']}, B {row['batch']}: a training "
        f"step takes {row['seconds']['median'] * 1e3:,.1f} ms, drawing its batch "
        f"{row['draw_seconds']['median'] * 1e3:,.3f} ms: {row['share']:.2%}"
    )
