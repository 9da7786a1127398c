"""The one training loop: Python logs, evaluates, saves and moves the bar; the device trains."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.common.checkpoint import Checkpoints
from experiments.common.interrupts import StopRequest
from experiments.common.metrics import MetricsWriter
from experiments.common.problem import Problem
from experiments.common.run_directory import note_session
from experiments.common.samples import SamplesWriter
from experiments.common.steps import Programs, TrainState, make_programs
from experiments.common.train_config import TrainConfig

Values = Mapping[str, np.ndarray]

Enough = Callable[[int, Values], bool]
"""``enough(step, evaluation)``: whether to save and end after this chunk; see `train`."""

TIMINGS_FILE = "timings.jsonl"


class NonFiniteError(FloatingPointError):
    """The loss, a metric or the gradient became NaN or infinite."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """Training stopped on request, after saving."""


class Outcome(NamedTuple):
    """What training returns.

    Attributes:
      state: the final state, on the host.
      metrics: the last evaluation's means by name, one value per seed.
      seconds: time spent in training chunks, all sessions together; without compilation,
        evaluation and saving.
      wall_seconds: all time from the start of training to its last step, all sessions together.
    """

    state: TrainState
    metrics: dict[str, list[float]]
    seconds: float
    wall_seconds: float


def train(
    problem: Problem,
    config: TrainConfig,
    run_dir: Path,
    name: str = "",
    progress: bool = True,
    enough: Enough | None = None,
) -> Outcome:
    """Trains from the newest checkpoint in `run_dir`, or from the start, to the last step.

    Args:
      problem: task and model.
      config: how to train.
      run_dir: an open run directory (`run_directory.open_run`).
      name: stands before the progress bar.
      progress: whether to draw one.
      enough: asked after every chunk with the step and the newest evaluation, one value per seed
        of each metric; True saves and ends there, and another call goes on.

    Returns:
      The `Outcome`.

    Raises:
      NonFiniteError: NaN or infinity; the last good checkpoint stays.
      Interrupted: Ctrl-C or SIGTERM; the state has been saved.
    """
    started = time.perf_counter()
    programs = make_programs(problem, config)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    try:
        restored = checkpoints.restore_latest(jax.eval_shape(programs.init))
        if restored is None:
            state = programs.init()
        else:
            state = jax.device_put(restored[1])
            if restored[0] < config.steps:
                print(f"{name}: resumes at step {restored[0]}")
        clock = _Clock(run_dir / TIMINGS_FILE, int(state.step), started)
        return _run(programs, config, run_dir, checkpoints, state, clock, name, progress, enough)
    finally:
        checkpoints.close()


def evaluate_run(problem: Problem, config: TrainConfig, run_dir: Path) -> tuple[int, Values]:
    """Evaluates the newest checkpoint of a run.

    Returns:
      Its step, and the means by name, one value per seed.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    programs = make_programs(problem, config)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    try:
        restored = checkpoints.restore_latest(jax.eval_shape(programs.init))
    finally:
        checkpoints.close()
    if restored is None:
        raise FileNotFoundError(f"no checkpoint in {run_dir}; train first")
    step, state = restored
    return step, jax.device_get(programs.evaluate(state.params))


def _run(
    programs: Programs,
    config: TrainConfig,
    run_dir: Path,
    checkpoints: Checkpoints,
    state: TrainState,
    clock: "_Clock",
    name: str,
    progress: bool,
    enough: Enough | None,
) -> Outcome:
    step = int(state.step)
    if step < config.steps:
        note_session(run_dir)
        # Compile before the bar starts: its estimate would count compilation.
        started = time.perf_counter()
        train_chunk = programs.train_chunk.lower(state, config.chunk_steps).compile()
        print(f"{name}: compiled in {time.perf_counter() - started:.1f} s")
    else:
        train_chunk = None
    evaluation: Values = jax.device_get(programs.evaluate(state.params))
    writer = MetricsWriter(run_dir, step)
    samples = None if programs.show is None else SamplesWriter(run_dir, step, programs.show)
    bar = tqdm(total=config.steps, initial=step, desc=name, disable=not progress, unit="step")
    try:
        with bar, StopRequest() as stop:
            if step == 0:
                writer.write(0, "eval", config.seeds, evaluation)
                if samples is not None:
                    samples.write(0, state.params)
            while step < config.steps:
                num_steps = min(config.chunk_steps, config.steps - step)
                started = time.perf_counter()
                if num_steps == config.chunk_steps and train_chunk is not None:
                    state, metrics = train_chunk(state)
                else:  # The last chunk may be shorter.
                    state, metrics = programs.train_chunk(state, num_steps)
                metrics = jax.device_get(metrics)
                step += num_steps
                clock.add(step, num_steps, time.perf_counter() - started)
                _check_finite(metrics, config, step)
                writer.write(step, "train", config.seeds, metrics)
                if _due(step, num_steps, config.eval_every, config.steps):
                    evaluation = jax.device_get(programs.evaluate(state.params))
                    writer.write(step, "eval", config.seeds, evaluation)
                    if samples is not None:
                        samples.write(step, state.params)
                ends = stop.requested or (enough is not None and enough(step, evaluation))
                if ends or _due(step, num_steps, config.checkpoint_every, config.steps):
                    writer.flush()
                    checkpoints.save(step, state)
                bar.update(num_steps)
                bar.set_postfix_str(_describe(metrics, evaluation))
                if stop.requested and step < config.steps:
                    raise Interrupted(
                        f"stopped at step {step}; the same command goes on from there"
                    )
                if ends:
                    break
    finally:
        writer.close()
    final = jax.device_get(state)
    means = {key: [float(v) for v in values] for key, values in evaluation.items()}
    return Outcome(final, means, clock.seconds, clock.wall_seconds)


class _Clock:
    """Training time, kept over sessions in a file of its own: metrics must not depend on it."""

    def __init__(self, path: Path, step: int, started: float) -> None:
        self._path = path
        self._started = started
        self.seconds = self.wall_seconds = 0.0
        if path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines() if line[-1:] == "}"]
            kept = [row for row in rows if row["step"] <= step]
            if kept:
                self.seconds, self.wall_seconds = kept[-1]["seconds"], kept[-1]["wall_seconds"]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def add(self, step: int, num_steps: int, seconds: float) -> None:
        """Notes a chunk."""
        now = time.perf_counter()
        # As it is written: a run that is read back gives the same summary, to the last digit.
        self.seconds = round(self.seconds + seconds, 3)
        self.wall_seconds = round(self.wall_seconds + now - self._started, 3)
        self._started = now
        row = {
            "step": step,
            "seconds": self.seconds,
            "wall_seconds": self.wall_seconds,
            "steps_per_second": round(num_steps / seconds, 3),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _due(step: int, num_steps: int, every: int, last: int) -> bool:
    """Whether a multiple of `every` lies in the chunk just run, or it was the last."""
    return step >= last or step // every > (step - num_steps) // every


def _check_finite(metrics: Values, config: TrainConfig, step: int) -> None:
    for name, values in metrics.items():
        for seed, value in zip(config.seeds, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name} became {value} (seed {seed}) in the {config.chunk_steps} steps before "
                    f"step {step}; the last good checkpoint is kept. A lower --learning-rate or a "
                    "--clip-norm may help."
                )


def _describe(metrics: Values, evaluation: Values) -> str:
    loss, accuracy = (float(np.mean(metrics[name])) for name in ("loss", "accuracy"))
    judged = float(np.mean(evaluation["accuracy"]))
    return f"loss {loss:.3f}, accuracy {accuracy:.1%}, fresh {judged:.1%}"


def summarise(outcome: Outcome, config: TrainConfig) -> dict[str, Any]:
    """The numbers of a finished run that a table wants."""
    leaves = jax.tree.leaves(outcome.state.params)
    return {
        "steps": int(outcome.state.step),
        "seeds": list(config.seeds),
        "parameters": sum(leaf[0].size for leaf in leaves),
        "train_seconds": round(outcome.seconds, 1),
        "wall_seconds": round(outcome.wall_seconds, 1),
        "evaluation": outcome.metrics,
    }
