"""All measurements of the CUDA kernels on a GPU: ``python -m benchmarks.cuda --help``.

Each part is a separate process with a time limit, the most important first. If one fails, the
others still run, and finished rows stay in ``--out-dir``.
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

from benchmarks import stages
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
from rrnn_jax.scan.cuda import launch, nvrtc, support
from rrnn_jax.scan.cuda.launch import ptx_call
from rrnn_jax.scan.cuda.layout import Layout, Shape, layout_of
from rrnn_jax.scan.gpu import Arguments
from rrnn_jax.scan.relational.input_terms import terms_of_inputs
from rrnn_jax.scan.relational.weights import Dtypes, core_weights

THROUGHPUT = {
    "time": "--setting nth_farthest rl --dtype bfloat16 --variants cuda fused hoisted torch",
    "lstm": "--setting rl --dtype tf32 --variants cudnn_lstm_width",
    "language": "--setting language --dtype bfloat16 --variants hoisted",
}
"""Options of `benchmarks.scan_throughput` for the parts that it measures."""

LIMITS = {
    "probe": 60,
    "check": 100,
    "time": 120,
    "stages": 60,
    "kernels": 120,
    "l2": 40,
    "lstm": 60,
    "language": 90,
}
PARTS = tuple(LIMITS)
"""The parts, the most important first, with time limits in seconds."""

QUEUED = 8
"""Training steps enqueued at once, see `_kernels`."""

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
    add_shared(result.add_argument, minutes=9.0)
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
    # To choose among Triton's products takes most of the time of compiling.
    flags = "" if given.toy else "--xla_gpu_enable_triton_gemm=false"
    if part not in THROUGHPUT:
        toy = ["--toy"] if given.toy else []
        return [sys.executable, "-m", "benchmarks.cuda", "--here", part, *toy], flags
    options = THROUGHPUT[part].split()
    if given.toy:
        dtype = options.index("--dtype")
        options = ["--setting", "toy", "--dtype", "bfloat16", *options[dtype + 2 :]]
    options += ["--mode", "train", "--rounds", "1" if given.toy else "5"]
    options += ["--minutes", str(LIMITS[part] / 60 - 0.2)]
    options += ["--out", str(given.out_dir / f"{part}.jsonl")]
    return [sys.executable, "-m", "benchmarks.scan_throughput", *options], flags


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


def _stages(toy: bool) -> Iterator[dict[str, Any]]:
    """Cycles of the stages of a step, by the clock of the first block's first thread."""
    for setting in _settings(toy):
        problem = make_problem(setting)
        if reason := _why_not(problem):
            yield {"setting": setting.name, "skipped": reason}
            continue
        with mock.patch.object(launch, "kernel_ptx", _marked_ptx):
            forward, backward = jax.jit(partial(_both_kernels, problem))(
                problem.params["cell"], problem.inputs
            )
        for kernel, found in (("forward", forward), ("backward", backward)):
            cycles = np.asarray(found).view(np.uint32).ravel() / setting.steps
            names = [name for _, name in stages.MARKS[kernel]]
            row = {"setting": setting.name, "kernel": kernel}
            yield row | {"cycles_a_step": dict(zip(names, map(round, cycles), strict=False))}


def _marked_ptx(kernel: str, layout: Layout, save: bool) -> str:
    macros = [f"-D{name}={value}" for name, value in layout.macros(save).items()]
    return nvrtc.compile_ptx(stages.marked(kernel), f"{kernel}.cu", macros, layout.architecture)


def _both_kernels(problem: Problem, params: Any, x: jax.Array) -> tuple[Any, Any]:
    """The outputs of both kernels in which `stages.marked` leaves the cycles."""
    cell, low = problem.cell, jnp.dtype(jnp.bfloat16)
    inputs = jnp.swapaxes(x, 0, 1)[:, :, None]
    terms = terms_of_inputs(cell, False, Dtypes(low, low, low), params, inputs)
    carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
    arguments = Arguments(core_weights(cell, params), carry, None, terms, None, None)
    kernels = cuda.kernels_of(cell, low, arguments)
    results, kept = kernels.forward(arguments, True)
    found = kernels.backward(arguments, kept, jax.tree.map(jnp.ones_like, results))
    return kept[-1], found.carry


def _why_not(problem: Problem) -> str | None:
    reason = support.why_not(problem.cell, jnp.bfloat16, problem.setting.batch)
    return reason or support.why_not_here()


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
