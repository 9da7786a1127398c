"""Throughput of the program generator: ``python -m benchmarks.task_throughput --help``.

A sample draws a batch with all its masks and lengths, on one thread by default. The jitted
generator is interleaved with one in plain Python, which represents data sets made on the host.
``--training PRESET`` also times a training step that draws its batch, for the share of drawing.
"""

import argparse
import dataclasses
import itertools
import random
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import python_programs
from benchmarks.jax_programs import compile_apart
from benchmarks.options import add_shared, limit_threads_or_exit, positive
from benchmarks.records import about
from benchmarks.timing import Rounds, Run, interleave
from experiments.common.environment import count_cores
from experiments.common.records import append_rows
from experiments.common.steps import Programs
from experiments.program_evaluation.config import PRESETS, Config
from experiments.program_evaluation.data import make_task
from experiments.program_evaluation.train import make_problem
from rrnn_jax.tasks import curriculum
from rrnn_jax.tasks import learn_to_execute as lte

SETTINGS = ((5, 2), (6, 3))
"""Length and nesting: table 1 of the paper, and its harder curves (figure 8)."""
MODELS = ("rmc", "lstm")
"""The trained models: the two that the paper compares most."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.task_throughput",
        description="Times the generator of learning to execute: programs per second.",
    )
    add = result.add_argument
    add("--task", nargs="+", choices=lte.TASKS, default=["addition", "control", "program"],
        metavar="TASK", help=f"of {', '.join(lte.TASKS)}")  # fmt: skip
    add("--setting", nargs="+", type=_setting, default=list(SETTINGS), metavar="LENGTH,NESTING",
        help="sizes of programs (default: 5,2 6,3)")  # fmt: skip
    add("--curriculum", nargs="+", choices=("fixed", "mix"), default=["fixed", "mix"],
        help="how sizes are drawn")  # fmt: skip
    add("--batch", nargs="+", type=positive, default=[128, 1024], help="programs drawn at once")
    add_shared(add, rounds=10, min_seconds=0.2, threads=1, out=None)
    add("--no-python", action="store_true", help="leave the generator in plain Python out")
    add("--training", choices=("quick", "paper"),
        help="also time training steps of that preset of program evaluation")  # fmt: skip
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    arguments = parser()
    given = arguments.parse_args(args)
    limit_threads_or_exit(arguments, given.threads)
    try:
        configs = [
            (lte.Config(task, length, nesting, curriculum), batch)
            for task in given.task
            for length, nesting in given.setting
            for curriculum in given.curriculum
            for batch in given.batch
        ]
    except ValueError as error:
        arguments.error(str(error))
    jax.config.update("jax_enable_compilation_cache", False)  # Compile time is measured.
    common = about("task_throughput", threads=count_cores())
    generators = ((describe, measure(config, batch, given)) for config, batch in configs)
    steps = (
        (describe_share, measure_share(config, given.rounds, given.min_seconds))
        for config in training_configs(given)
    )
    for line, (rows, interrupted) in itertools.chain(generators, steps):
        for row in rows:
            print(line(row), flush=True)
        if given.out is not None:
            append_rows(given.out, [common | row for row in rows])
        if interrupted:
            return 130
    return 0


def measure(
    config: lte.Config, batch: int, given: argparse.Namespace
) -> tuple[list[dict[str, Any]], bool]:
    """Times both generators; the rows, and whether Ctrl-C ended it early."""
    compiled, costs = compile_apart(
        lambda key: lte.sample(key, config, batch), (jax.random.key(0),)
    )
    compile_seconds = (costs.trace_seconds or 0) + (costs.compile_seconds or 0)
    keys = iter(_keys())

    def run_jitted() -> None:
        jax.block_until_ready(compiled(next(keys)))

    generator = random.Random(0)
    programs: dict[str, Run] = {"jitted": run_jitted}
    if not given.no_python:
        programs["python"] = lambda: python_programs.draw_batch(generator, config, batch)
    result = interleave(programs, rounds=given.rounds, min_seconds=given.min_seconds, progress=_bar)
    return _rows(config, batch, result, compile_seconds), result.interrupted


def _rows(
    config: lte.Config, batch: int, result: Rounds, compile_seconds: float
) -> list[dict[str, Any]]:
    rows = []
    for name, timing in result.summaries().items():
        rows.append(
            {
                "task": config.task,
                "length": config.length,
                "nesting": config.nesting,
                "curriculum": config.curriculum,
                "batch": batch,
                "variant": name,
                "seconds": dataclasses.asdict(timing),
                "programs_per_second": {
                    "median": batch / timing.median,
                    "q1": batch / timing.q3,
                    "q3": batch / timing.q1,
                },
                "compile_seconds": compile_seconds if name == "jitted" else None,
            }
        )
    return rows


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    speed = row["programs_per_second"]
    compiling = row["compile_seconds"]
    return (
        f"{row['task']} {row['length']},{row['nesting']} {row['curriculum']} B {row['batch']}, "
        f"{row['variant']}: {speed['median']:,.0f} programs/s "
        f"({speed['q1']:,.0f} to {speed['q3']:,.0f})"
        + (f", compiled in {compiling:.1f} s" if compiling is not None else "")
    )


def measure_share(
    config: Config, rounds: int, min_seconds: float
) -> tuple[list[dict[str, Any]], bool]:
    """Times a training step of one task and model, and separately the drawing of its batch.

    Args:
      config: of a single run of program evaluation.
      rounds: samples of both.
      min_seconds: shortest time that a sample may span.

    Returns:
      The row (none if nothing was timed), and whether Ctrl-C ended it early.
    """
    programs = Programs(make_problem(config), config.train)
    task = make_task(config)
    level = curriculum.initial_state(task.config)
    kept = {"state": programs.init()}
    programs.compile(kept["state"], 1, None)
    draw = jax.jit(lambda key: task.sample(key, level, config.train.batch_size))
    compiled = draw.lower(jax.random.key(0)).compile()
    keys = iter(_keys())

    def run_step() -> None:
        kept["state"], metrics = programs.train_chunk(kept["state"], 1)
        jax.block_until_ready(metrics)

    result = interleave(
        {"step": run_step, "draw": lambda: jax.block_until_ready(compiled(next(keys)))},
        rounds=rounds,
        warmup=1,
        min_seconds=min_seconds,
    )
    timings = result.summaries()
    if set(timings) != {"step", "draw"}:
        return [], result.interrupted
    row = {
        "task": config.task,
        "length": config.difficulty.length,
        "nesting": config.difficulty.nesting,
        "curriculum": config.difficulty.curriculum,
        "batch": config.train.batch_size,
        "variant": "training_step",
        "preset": config.preset,
        "model": config.model,
        "seconds": dataclasses.asdict(timings["step"]),
        "draw_seconds": dataclasses.asdict(timings["draw"]),
        "share": timings["draw"].median / timings["step"].median,
    }
    return [row], result.interrupted


def training_configs(given: argparse.Namespace) -> list[Config]:
    """The configs of the preset's tasks and models."""
    if given.training is None:
        return []
    preset = PRESETS[given.training]
    return [
        dataclasses.replace(preset, task=task, model=model)
        for task in given.task
        for model in MODELS
    ]


def describe_share(row: dict[str, Any]) -> str:
    """A row of a training step in one line."""
    return (
        f"{row['task']}, {row['model']} of preset {row['preset']}, B {row['batch']}: a training "
        f"step takes {row['seconds']['median'] * 1e3:,.1f} ms, drawing its batch "
        f"{row['draw_seconds']['median'] * 1e3:,.3f} ms: {row['share']:.2%}"
    )


def _keys() -> Iterable[jax.Array]:
    """Precomputed random keys, repeated endlessly."""
    keys = list(jax.random.split(jax.random.key(0), 64))
    while True:
        yield from keys


def _bar(rounds: Iterable[int]) -> Iterable[int]:
    return tqdm(rounds, leave=False, unit="round", disable=not sys.stderr.isatty())


def _setting(text: str) -> tuple[int, int]:
    try:
        length, nesting = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be LENGTH,NESTING, got {text}") from None
    return length, nesting


if __name__ == "__main__":
    sys.exit(main())
