"""Checks and times the CUDA kernels on a GPU, by layout: ``python -m benchmarks.cuda --help``.

Whether the kernels can run (``probe``), gradients and repetition (``check``), and the times of a
step and of each kernel (``kernels``). Each part is a process with a time limit, the most important
first. If one fails, the others still run. `benchmarks.scan_throughput` times whole steps beside
other implementations.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.agreement import errors, worst
from benchmarks.jax_programs import named_leaves, ours, plain
from benchmarks.options import add_shared
from benchmarks.problem import Problem, make_problem
from benchmarks.profile import profile
from benchmarks.settings import SETTINGS, Setting
from benchmarks.timing import interleave
from experiments.common.environment import describe_environment
from experiments.common.records import finite
from rrnn_jax.scan import cuda
from rrnn_jax.scan.cuda import nvrtc, support
from rrnn_jax.scan.cuda.layout import Layout, layout_of

LIMITS = {"probe": 60, "check": 100, "kernels": 120}
PARTS = tuple(LIMITS)
"""The parts, the most important first, with time limits in seconds."""

QUEUED = 8
"""Training steps enqueued at once, see `_kernels`."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser("python -m benchmarks.cuda", description=__doc__)
    result.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to ask")
    result.add_argument("--out-dir", type=Path, default=Path("runs/cuda"), help="for rows")
    add_shared(result.add_argument, minutes=5.0)
    result.add_argument("--toy", action="store_true", help="sizes and rounds for trying it out")
    result.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 if every started part succeeded."""
    given = parser().parse_args(args)
    if given.here is not None:
        about = {"environment": describe_environment()}
        code = 0
        for row in globals()[f"_{given.here}"](given.toy):
            print(json.dumps(finite({"part": given.here} | row | about)), flush=True)
            code |= not row.get("ok", True)
        return code
    given.out_dir.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * given.minutes, []
    for part in given.parts:
        seconds = min(LIMITS[part], end - time.monotonic())
        if seconds < 5:
            print(f"{part}: no time left", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks.cuda", "--here", part]
        environment = dict(os.environ)
        if given.toy:
            command.append("--toy")
        else:  # To choose among Triton's products takes most of the time of compiling.
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
            environment["XLA_FLAGS"] = flags.strip()
        print(f"== {part}: {' '.join(command[1:])}", flush=True)
        with (given.out_dir / f"{part}.log").open("w") as log:
            code = _run(command, environment, seconds, log)
        print((given.out_dir / f"{part}.log").read_text()[-3000:], flush=True)
        if code != 0:
            failed.append(f"{part} ({'time' if code is None else code})")
    print(f"failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


def _run(command: list[str], environment: dict[str, str], seconds: float, log: Any) -> int | None:
    try:
        done = subprocess.run(
            command,
            env=environment,
            timeout=seconds,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def _probe(toy: bool) -> list[dict[str, Any]]:
    """Whether the kernels can run here."""
    del toy
    device: Any = jax.devices()[0]
    kinds = {
        "device": device.device_kind,
        "capability": getattr(device, "compute_capability", None),
    }
    return [kinds | {"jax": jax.__version__, "why_not": support.why_not_here()}]


def _settings(toy: bool) -> list[Setting]:
    if not toy:
        return [SETTINGS[name].replace(dtype="bfloat16") for name in ("nth_farthest", "rl")]
    return [Setting("toy", 2, 3, 4, 4, 16, 5, dtype="bfloat16")]


def _gradients(model: Any, problem: Problem) -> Any:
    """A compiled function of params and inputs."""
    weights = np.random.default_rng(0).standard_normal(problem.loss_weights.shape[-1], np.float32)

    def loss(params: Any, inputs: Any) -> Any:
        return jnp.mean(model.apply(params, inputs).astype(jnp.float32) * weights)

    return jax.jit(jax.value_and_grad(loss))


def _finish(times: int, function: Callable, *args: Any) -> None:
    jax.block_until_ready([function(*args) for _ in range(times)])


def _check(toy: bool) -> Iterator[dict[str, Any]]:
    """Checks gradients against the plain scan in float32, and that they are bit-reproducible."""
    for setting in _settings(toy):
        small = setting.replace(steps=min(setting.steps, 6))
        low, wide = make_problem(small), make_problem(small.replace(dtype="float32"))
        if reason := _why_not(low):
            yield {"setting": setting.name, "skipped": reason}
            continue
        with jax.default_matmul_precision("highest"):
            exact = named_leaves(_gradients(plain(wide), wide)(wide.params, wide.inputs))
        rounded = named_leaves(_gradients(plain(low), low)(low.params, low.inputs))
        _, rounding = worst(errors(rounded, exact))
        for name, step in _steps(low).items():
            first, *others = (named_leaves(step(low.params, low.inputs)) for _ in range(3))
            _, error = worst(errors(first, exact))
            same = all(np.array_equal(first[x], other[x]) for other in others for x in first)
            row = {"setting": setting.name, "layout": name, "plain": rounding, "kernels": error}
            yield row | {"same_bits": same, "ok": same and error < 2 * rounding < np.inf}


def _kernels(toy: bool) -> Iterator[dict[str, Any]]:
    """With several layouts: seconds of a training step, and of both kernels alone.

    A step by itself begins and ends with the host waiting; `queued_step` is one of several that are
    enqueued at once, as in training.
    """
    for setting in _settings(toy):
        problem = make_problem(setting)
        if reason := _why_not(problem):
            yield {"setting": setting.name, "skipped": reason}
            continue
        steps = _steps(problem)
        runs = {
            f"{name}, {times}": partial(_finish, times, step, problem.params, problem.inputs)
            for name, step in steps.items()
            for times in (1, QUEUED)
        }
        timed = interleave(runs, rounds=1 if toy else 5, min_seconds=0.05).summaries()
        for name in steps:
            alone, queued = timed[f"{name}, 1"], timed[f"{name}, {QUEUED}"]
            operations = profile(runs[f"{name}, 1"])["operations"]
            found = {each["name"]: each["seconds_per_call"] for each in operations}
            row = {"setting": setting.name, "layout": name, "step": alone.median}
            row |= {"quartiles": (alone.q1, alone.q3), "queued_step": queued.median / QUEUED}
            yield row | {x: found.get(f"rrnn_{x}") for x in ("forward", "backward")}


def _steps(problem: Problem) -> dict[str, Any]:
    """The compiled training step with each of `_layouts`."""
    names, layouts = zip(*_layouts(problem), strict=True)
    with ThreadPoolExecutor(8) as pool:  # NVRTC and XLA compile side by side.
        kernels = itertools.product(("forward", "backward"), layouts)
        list(pool.map(lambda each: nvrtc.kernel_ptx(*each, True), kernels))
        lowered = [_lowered_with(layout, problem) for layout in layouts]
        steps = list(pool.map(lambda each: each.compile(), lowered))
    return dict(zip(names, steps, strict=True))


def _layouts(problem: Problem) -> list[tuple[str, Layout]]:
    """Layouts to try, by name; the first is the usual one."""
    tried: list[dict[str, Any]] = [{}]
    if problem.setting.name == "nth_farthest":
        both = {"wgmma": True, "prefetch": True}
        tried += [{"prefetch": True}, {"wgmma": True}, both, both | {"tiles": 4}]
        tried += [both | {"tiles": 4, "ring": 8}, {"prefetch": True, "tiles": 4}]
    else:
        tried += [{"prefetch": True}, {"cluster": 1}, {"cluster": 1, "prefetch": True}]
        tried += [{"cluster": 1, "prefetch": True, "wgmma": True}]
    gpu, batch = support.default_gpu(), problem.setting.batch
    found = []
    for choice in tried:
        given = {key: choice[key] for key in ("tiles", "cluster") if key in choice}
        layout = layout_of(problem.cell, batch, gpu=gpu, **given)
        rest = {key: value for key, value in choice.items() if key not in given}
        name = " ".join(f"{key}={value}" for key, value in choice.items())
        found.append((name or "usual", dataclasses.replace(layout, **rest)))
    return [(name, layout) for name, layout in found if layout.bytes <= gpu.shared_bytes]


def _lowered_with(layout: Layout, problem: Problem) -> Any:
    with mock.patch.object(cuda, "layout_of", return_value=layout):
        return _gradients(ours(problem, "cuda"), problem).lower(problem.params, problem.inputs)


def _why_not(problem: Problem) -> str | None:
    reason = support.why_not(problem.cell, jnp.bfloat16, problem.setting.batch)
    return reason or support.why_not_here()


if __name__ == "__main__":
    sys.exit(main())
