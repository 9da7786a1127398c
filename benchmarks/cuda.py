"""All measurements of the CUDA kernels on a GPU: ``python -m benchmarks.cuda --help``.

Each part is a separate process with a time limit, the most important first. If one fails, the
others still run, and finished rows stay in ``--out-dir``.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.jax_programs import ours, plain
from benchmarks.problem import Problem, make_problem
from benchmarks.settings import SETTINGS, Setting
from benchmarks.timing import interleave
from rrnn_jax.scan.cuda import nvrtc, recurrence, support
from rrnn_jax.scan.cuda.launch import ptx_call
from rrnn_jax.scan.cuda.layout import Shape, layout_of

THROUGHPUT = ("-m", "benchmarks.scan_throughput", "--dtype", "bfloat16", "--mode", "train")
OTHERS = ("fused", "hoisted", "scan", "torch", "cudnn_lstm_width")
LIMITS = {
    "probe": 60,
    "check": 150,
    "time": 200,
    "tune": 200,
    "l2": 40,
    "while": 120,
    "language": 150,
}
PARTS = tuple(LIMITS)
"""The parts, the most important first, with time limits in seconds."""

STREAM = """
extern "C" __global__ void stream(const uint4* from, const int* sizes, uint4* to) {
  uint4 sum = make_uint4(0, 0, 0, 0);
  for (int turn = 0; turn < sizes[1]; turn++)
    for (int i = threadIdx.x; i < sizes[0]; i += 4 * blockDim.x) {
      uint4 x[4];
      for (int k = 0; k < 4; k++)
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[k].x), "=r"(x[k].y), "=r"(x[k].z), "=r"(x[k].w)
                     : "l"(from + i + k * blockDim.x));
      for (int k = 0; k < 4; k++)
        sum.x ^= x[k].x, sum.y ^= x[k].y, sum.z ^= x[k].z, sum.w ^= x[k].w;
    }
  to[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser("python -m benchmarks.cuda", description=__doc__)
    result.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to ask")
    result.add_argument("--out-dir", type=Path, default=Path("runs/cuda"), help="for rows")
    result.add_argument("--minutes", type=float, default=9.0, help="after which no part begins")
    result.add_argument("--toy", action="store_true", help="sizes and rounds for trying it out")
    result.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 if every started part succeeded."""
    given = parser().parse_args(args)
    if given.here is not None:
        for row in globals()[f"_{given.here}"](given.toy):
            print(json.dumps({"part": given.here} | row), flush=True)
        return 0
    given.out_dir.mkdir(parents=True, exist_ok=True)
    end, failed = time.monotonic() + 60 * given.minutes, []
    for part in given.parts:
        seconds = min(LIMITS[part], end - time.monotonic())
        if seconds < 5:
            print(f"{part}: no time left", flush=True)
            continue
        command, flags = _command(part, given)
        environment = os.environ | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        }
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


def _command(part: str, given: argparse.Namespace) -> tuple[list[str], str]:
    """A part's command, and flags for XLA."""
    if part not in ("time", "while", "language"):
        toy = ["--toy"] if given.toy else []
        return [sys.executable, "-m", "benchmarks.cuda", "--here", part, *toy], ""
    rounds = ["--rounds", "1" if given.toy else "5", "--minutes", str(LIMITS[part] / 60 - 0.2)]
    settings = ["toy"] if given.toy else ["nth_farthest", "rl"]
    variants, flags = ["cuda", *OTHERS], ""
    if part == "while":
        variants, flags = ["cuda", "fused", "hoisted"], "--xla_gpu_enable_command_buffer=+WHILE"
    if part == "language":
        settings = ["toy"] if given.toy else ["language"]
        variants = ["hoisted", "scan", "cudnn_lstm_width"]
    out = ["--out", str(given.out_dir / f"{part}.jsonl")]
    if given.toy and part == "while":
        flags = ""  # XLA may not know them on a CPU.
    options = ["--setting", *settings, "--variants", *variants, *rounds, *out]
    return [sys.executable, *THROUGHPUT, *options], flags


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
    return [Setting("toy", 2, 3, 4, 1, 64, 5, dtype="bfloat16")]


def _gradients(model: Any, problem: Problem) -> Any:
    def loss(params: Any) -> Any:
        outputs = model.apply(params, problem.inputs)
        return jnp.mean(outputs.astype(jnp.float32) * problem.loss_weights)

    return jax.jit(jax.value_and_grad(loss))


def _check(toy: bool) -> list[dict[str, Any]]:
    """Checks gradients against the plain scan in float32, and that they are bit-reproducible."""
    rows = []
    for setting in _settings(toy):
        small = setting.replace(batch=min(setting.batch, 40), steps=min(setting.steps, 6))
        low, wide = make_problem(small), make_problem(small.replace(dtype="float32"))
        with jax.default_matmul_precision("highest"):
            exact = _gradients(plain(wide), wide)(wide.params)

        def errors(found: Any, exact: Any = exact) -> list[float]:
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
            return [
                float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel()))
                for a, b in pairs
            ]

        row: dict[str, Any] = {
            "setting": setting.name,
            "plain": max(errors(_gradients(plain(low), low)(low.params))),
        }
        reason = support.why_not(low.cell, jnp.bfloat16, small.batch) or support.why_not_here()
        if reason is not None:
            rows.append(row | {"skipped": reason})
            continue
        step = _gradients(ours(low, "cuda"), low)
        found = [step(low.params) for _ in range(3)]
        row["kernels"] = max(errors(found[0]))
        row["same_bits"] = all(
            np.array_equal(a, b) for other in found[1:]
            for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True)
        )  # fmt: skip
        row["ok"] = bool(row["kernels"] < 2 * row["plain"] and row["same_bits"])
        rows.append(row)
    return rows


def _tune(toy: bool) -> list[dict[str, Any]]:
    """Milliseconds of a training step with other layouts, interleaved."""
    rows = []
    for setting in _settings(toy):
        problem = make_problem(setting)
        reason = (
            support.why_not(problem.cell, jnp.bfloat16, setting.batch) or support.why_not_here()
        )
        if reason is not None:
            rows.append({"setting": setting.name, "skipped": reason})
            continue
        programs = {}
        for choice in _choices(setting.name):
            step = _compiled_with(choice, problem)
            name = " ".join(f"{key}={value}" for key, value in choice.items())
            programs[name] = lambda step=step, params=problem.params: jax.block_until_ready(
                step(params)
            )
        timed = interleave(programs, rounds=1 if toy else 5, min_seconds=0.05).summaries()
        for name, t in sorted(timed.items(), key=lambda item: item[1].median):
            times = {"median": t.median, "q1": t.q1, "q3": t.q3}
            row = {"setting": setting.name, "variant": name}
            rows.append(row | {key: round(1e3 * x, 4) for key, x in times.items()})
    return rows


def _compiled_with(choice: dict[str, Any], problem: Problem) -> Any:
    def layout(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(layout_of(*args, **kwargs), **choice)

    with mock.patch.object(recurrence, "layout_of", layout):
        return _gradients(ours(problem, "cuda"), problem).lower(problem.params).compile()


def _choices(setting: str) -> list[dict[str, Any]]:
    """Layouts to try."""
    if setting == "nth_farthest":
        tiles = [{"tiles": n} for n in (7, 6, 5, 4)]
        return [*tiles, {"tiles": 7, "ahead": 2}, {"tiles": 7, "early": True}]
    early = [
        {"tiles": 1, "early": early, "ahead": ahead} for early in (True, False) for ahead in (4, 8)
    ]
    return [*early, {"tiles": 2}]


def _l2(toy: bool) -> list[dict[str, Any]]:
    """Bytes per second from L2 to registers, for one block, few, and one per multiprocessor."""
    reason = support.why_not_here()
    if reason is not None:
        return [{"skipped": reason}]
    ptx, rows = nvrtc.compile_ptx(STREAM, "stream.cu"), []
    count, turns = (1 << 16), (2 if toy else 2000)  # 1 MB, as large as the weights.
    numbers = jnp.zeros((count, 4), jnp.uint32)
    for blocks in (1, 16, 132):
        call = jax.jit(
            ptx_call("stream", ptx, blocks, 256, 0, [Shape((blocks * 256, 4), jnp.uint32)])
        )
        seconds = []
        for n in (turns, 2 * turns):
            sizes = jnp.array([count, n], jnp.int32)
            jax.block_until_ready(call(numbers, sizes))
            start = time.perf_counter()
            jax.block_until_ready(call(numbers, sizes))
            seconds.append(time.perf_counter() - start)
        rate = blocks * 16 * count * turns / max(seconds[1] - seconds[0], 1e-9)
        rows.append({"blocks": blocks, "gigabytes_a_second": rate / 1e9})
    return rows


if __name__ == "__main__":
    sys.exit(main())
