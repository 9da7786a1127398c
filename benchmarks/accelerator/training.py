"""Nth Farthest until a target accuracy or a deadline; a later call goes on."""

import dataclasses
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator.deadline import Deadline
from benchmarks.accelerator.files import pack, state_bytes, unpack
from experiments.common import loop
from experiments.common.environment import git_commit
from experiments.common.metrics import METRICS_FILE, curve, first_step_at, read_metrics
from experiments.common.restore import read_config
from experiments.common.results import collect
from experiments.common.run_directory import check_same_config, open_run, write_json
from experiments.common.steps import make_programs
from experiments.common.train_config import TrainConfig
from experiments.nth_farthest.config import PRESETS, Config
from experiments.nth_farthest.train import make_problem

THRESHOLDS = (0.5, 0.65, 0.8, 0.9, 0.91, 0.95, 0.97)
"""Accuracies whose first evaluation is reported."""

SEQUENCES_PER_CHUNK = 160_000
"""Of all seeds: a chunk of updates is about half a second on a large GPU."""

CHUNKS_PER_EVALUATION = 10
CHUNKS_PER_CHECKPOINT = 100

RESERVE_SECONDS = 15.0
"""Kept for the last evaluation, the last checkpoint and its archive."""

CALLS_FILE = "calls.jsonl"
"""In a run directory: where each call ran, and to which update."""

_ENDLESS = 10**9  # Updates where only target and deadline end the training.


def paced(config: Config) -> Config:
    """The same with chunks, evaluations and checkpoints a sensible time apart.

    >>> train = paced(PRESETS["paper"]).train
    >>> train.batch_size, train.chunk_steps, train.eval_every, train.checkpoint_every
    (1600, 100, 1000, 10000)
    """
    train = config.train
    chunk = max(1, min(200, SEQUENCES_PER_CHUNK // (train.batch_size * train.num_seeds)))
    return _with(
        config,
        chunk_steps=chunk,
        eval_every=CHUNKS_PER_EVALUATION * chunk,
        checkpoint_every=CHUNKS_PER_CHECKPOINT * chunk,
    )


def scheduled(config: Config, minutes: float | None, steps_per_second: float | None) -> Config:
    """The same with as many updates as fit into a training time.

    Args:
      config: with chunks of the size to run.
      minutes: of training, all calls together, over which a cosine takes the rate to zero. None:
        the rate stays, and only target and deadline end the training.
      steps_per_second: updates; None: measured.
    """
    if minutes is None:
        return _with(config, steps=_ENDLESS, schedule="constant")
    if steps_per_second is None:
        steps_per_second = measure_rate(config)
    steps = max(round(60 * minutes * steps_per_second), config.train.warmup_steps, 1)
    return _with(config, steps=steps, schedule="cosine")


def measure_rate(config: Config, chunks: int = 3) -> float:
    """Updates a second, after compiling and a first chunk."""
    programs = make_programs(make_problem(config), config.train)
    state, steps = programs.init(), config.train.chunk_steps
    run = programs.train_chunk.lower(state, steps).compile()
    started = 0.0
    for i in range(chunks + 1):
        state, metrics = run(state)
        jax.device_get(metrics)
        if i == 0:
            started = time.perf_counter()
    return chunks * steps / (time.perf_counter() - started)


def training_state_bytes(config: Config) -> int:
    """Bytes of parameters and optimiser state of all seeds."""
    return state_bytes(jax.eval_shape(make_programs(make_problem(config), config.train).init))


class Stop:
    """Ends a training at a target accuracy of every seed, or in time for a deadline.

    Args:
      deadline: when all must be done.
      target: accuracy; None: none.
      reserve: seconds kept before the deadline.
      seconds: also ends it so long after its first chunk: without compiling.

    Attributes:
      reason: "target" or "time" once it has ended it, None before.
    """

    def __init__(
        self,
        deadline: Deadline,
        target: float | None,
        reserve: float,
        seconds: float | None = None,
    ) -> None:
        self.reason: str | None = None
        self._seconds = seconds
        self._deadline, self._target, self._reserve = deadline, target, reserve
        self._before: float | None = None
        self._longest = 0.0

    def __call__(self, step: int, evaluation: loop.Values) -> bool:
        """As `loop.train` asks after every chunk."""
        del step
        if self._seconds is not None:
            within = self._deadline.within(self._seconds + self._reserve)
            self._deadline, self._seconds = within, None
        left = self._deadline.left()
        if self._before is not None:  # The next chunk may come with an evaluation as well.
            self._longest = max(self._longest, self._before - left)
        self._before = left
        if self._target is not None and float(np.min(evaluation["accuracy"])) >= self._target:
            self.reason = "target"
        elif left < self._reserve + self._longest:
            self.reason = "time"
        return self.reason is not None


def train(
    config: Config,
    run_dir: Path,
    name: str,
    stop: Stop,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains in a run directory until `stop` or the last update.

    Args:
      config: the run's; a run that is there already must have the same.
      run_dir: the directory.
      name: stands before the progress bar.
      stop: when to end.
      progress: whether to draw a progress bar.

    Returns:
      Environment, config, summary, accuracies and their times, for a JSON file.

    Raises:
      ConfigMismatchError: the run there has another configuration.
      NonFiniteError, Interrupted: see `loop.train`.
    """
    open_run(run_dir, config)
    outcome = loop.train(make_problem(config), config.train, run_dir, name, progress, stop)
    summary = loop.summarise(outcome, config.train)
    summary["ended_by"] = stop.reason or "steps"
    summary["precision"] = jax.config.values["jax_default_matmul_precision"]
    summary["reached"] = reached(run_dir)
    evaluations = summary["reached"].pop("evaluations")
    write_json(run_dir / "summary.json", summary)
    device = jax.devices()[0].device_kind
    call = {"device": device, "git_commit": git_commit(), "to_step": summary["steps"]}
    with (run_dir / CALLS_FILE).open("a") as file:
        file.write(json.dumps(call) + "\n")
    calls = [json.loads(line) for line in (run_dir / CALLS_FILE).read_text().splitlines()]
    result = collect(run_dir) | {"calls": calls, "evaluations": evaluations}
    result["environment"]["command"] = without_places(result["environment"]["command"])
    return result


def train_part(
    config: Config, out: Path, name: str, stop: Stop, *, progress: bool = True
) -> dict[str, Any]:
    """Trains, and leaves ``<name>.json`` and the run's archive in `out`, whatever ends it.

    Args:
      config: as in `train`.
      out: results of this and earlier calls.
      name: of the run.
      stop: as in `train`.
      progress: as in `train`.

    Returns:
      What ``<name>.json`` holds.
    """
    with tempfile.TemporaryDirectory() as temporary:
        run_dir = Path(temporary) / name
        unpack(out, name, run_dir)
        try:
            result = train(config, run_dir, name, stop, progress=progress)
        finally:
            if (run_dir / METRICS_FILE).exists():
                pack(run_dir, out, name)
    write_json(out / f"{name}.json", result)
    return result


def without_places(command: str) -> str:
    """A command without the options that say where results are.

    >>> without_places("python -m benchmarks.accelerator --parts search --out some/where")
    'python -m benchmarks.accelerator --parts search'
    """
    return re.sub(r" --(out|resume-from)[ =]\S+", "", command)


def config_there(out: Path, name: str) -> Config | None:
    """The configuration of the run in `out`; None if there is none."""
    with tempfile.TemporaryDirectory() as temporary:
        if not unpack(out, name, Path(temporary)):
            return None
        return read_config(Path(temporary), PRESETS["paper"])


def check_same(out: Path, there: Config, wanted: Config) -> None:
    """Raises `ConfigMismatchError`, with the fields that differ, unless two configs are equal."""
    found, asked = (json.loads(json.dumps(dataclasses.asdict(c))) for c in (there, wanted))
    check_same_config(out, found, asked)


def reached(run_dir: Path) -> dict[str, Any]:
    """When each accuracy was first seen: step, training seconds and wall seconds, by seed.

    Under ``evaluations``: step and both times of every evaluation.
    """
    times = {0: {"seconds": 0.0, "wall_seconds": 0.0}} | read_times(run_dir)
    curves = curve(read_metrics(run_dir), "eval", "accuracy")
    result: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        steps = [first_step_at(*curves[seed], threshold) for seed in sorted(curves)]
        result[f"{threshold:.0%}"] = [
            None if step is None else {"step": step, **times[step]} for step in steps
        ]
    evaluated = next(iter(curves.values()))[0]
    result["evaluations"] = [{"step": step, **times[step]} for step in evaluated]
    return result


def read_times(run_dir: Path) -> dict[int, dict[str, float]]:
    """Seconds after every chunk, by step: ``seconds`` in chunks alone, and ``wall_seconds``."""
    lines = (run_dir / loop.TIMINGS_FILE).read_text().splitlines()
    names = ("seconds", "wall_seconds")
    return {row["step"]: {name: row[name] for name in names} for row in map(json.loads, lines)}


def describe(name: str, result: dict[str, Any]) -> str:
    """A result in a few lines."""
    summary = result["summary"]
    accuracies = ", ".join(f"{value:.1%}" for value in summary["evaluation"]["accuracy"])
    lines = [
        f"{name}: {summary['steps']} updates in {summary['train_seconds']:.0f} s of training "
        f"({summary['wall_seconds']:.0f} s in all), ended by {summary['ended_by']}; accuracy on "
        f"fresh sequences {accuracies}"
    ]
    for threshold, entries in summary["reached"].items():
        if any(entries):
            lines.append(f"  {threshold}: {_times_text(entries)}")
    return "\n".join(lines)


def _times_text(entries: Sequence[dict[str, float] | None]) -> str:
    return ", ".join("-" if entry is None else f"{entry['seconds']:.0f} s" for entry in entries)


def _with(config: Config, **changes: Any) -> Config:
    train: TrainConfig = dataclasses.replace(config.train, **changes)
    return dataclasses.replace(config, train=train)
