"""Training on several devices, measured and modelled: ``python -m benchmarks.scaling``.

Measured: updates per second with the batch divided over devices or processes. Simulated devices of
a CPU share its cores, so these rows measure the cost of division and collectives (their relative
speed should be near 1), not the gain of more hardware.

Modelled: the same step compiled for H100s (without using any), its collectives, and their cost by
`benchmarks.collectives`. For TPUs the collectives alone.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.collectives import (
    NODE,
    all_reduce_seconds,
    compile_update,
    efficiency,
    find_collectives,
)
from benchmarks.options import add_shared, positive, positive_number
from benchmarks.program import UnavailableError
from benchmarks.records import about
from benchmarks.table import human_bytes, human_seconds
from experiments.common import markdown
from experiments.common.records import append_rows
from experiments.common.steps import Programs
from experiments.common.train_config import TrainConfig
from experiments.nth_farthest.config import PRESETS, Config
from experiments.nth_farthest.train import make_problem

GPUS = (8, 64, 512, 1024)
"""Numbers of GPUs to compute the efficiency for."""
_STEPS = 5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser("python -m benchmarks.scaling", description=__doc__)
    add = result.add_argument
    add("--batch-size", type=positive, default=256, help="of a measured update (default: 256)")
    add("--devices", nargs="*", type=positive, default=[1, 2, 4], help="(default: 1 2 4)")
    add(
        "--processes", nargs="*", type=positive, default=[2], help="of one device each (default: 2)"
    )
    add("--chunks", type=positive, default=5, help=f"timed chunks of {_STEPS} updates (default: 5)")
    add(
        "--gpus",
        nargs="*",
        type=positive,
        default=[8, 64],
        help="to compile for, up to 8 or a multiple of 8 (default: 8 64)",
    )
    add("--tpus", nargs="*", type=int, default=[], choices=(4, 8),
        help="chips of a TPU v5e to compile for (default: none)")  # fmt: skip
    add("--rows", type=positive, default=1600, help="of each of these devices (default: 1600)")
    add("--step-ms", type=positive_number, default=4.8,
        help="of such an update on one GPU (default: 4.8, measured on an H100)")  # fmt: skip
    add_shared(add, out=None)
    add("--worker", type=json.loads, help=argparse.SUPPRESS)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    arguments = parser()
    given = arguments.parse_args(args)
    for name in ("devices", "processes"):
        if uneven := [n for n in getattr(given, name) if given.batch_size % n]:
            arguments.error(f"--{name} must divide --batch-size={given.batch_size}, got {uneven}")
    if uneven := [n for n in given.gpus if n > NODE and n % NODE]:
        arguments.error(f"--gpus must be at most {NODE} or a multiple of it, got {uneven}")
    if given.worker is not None:
        row = work(make_config("small", given.batch_size), given.chunks, **given.worker)
        print(json.dumps(row), flush=True)
        return 0
    common = about("scaling")
    rows = []
    for row in all_rows(given):
        print(f"{row['kind']}: done", file=sys.stderr)
        rows.append(common | row)
        if given.out is not None:
            append_rows(given.out, rows[-1:])
    print(report(rows))
    return 0


def all_rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each number of devices, of processes, and of GPUs."""
    for devices in given.devices:
        yield measure(given, devices, 1)
    for processes in given.processes:
        yield measure(given, processes, processes)
    yield from on_paper(given)


def make_config(preset: str, batch_size: int) -> Config:
    """A training step of Nth Farthest: the Relational Memory Core, Adam, no curriculum."""
    config = PRESETS[preset]
    train = TrainConfig(batch_size=batch_size, clip_norm=1.0)
    return dataclasses.replace(
        config, model="rmc", staged=False, implementation="hoisted", train=train
    )


def measure(given: argparse.Namespace, devices: int, processes: int) -> dict[str, Any]:
    """Updates per second on several devices, in separate processes.

    Raises:
      RuntimeError: a process failed; its last lines are in the message.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    here = "--batch-size", str(given.batch_size)
    workers = []
    for index in range(processes):
        worker = {"devices": devices, "processes": processes, "index": index}
        worker |= {"coordinator": coordinator}
        command = [sys.executable, "-m", "benchmarks.scaling", *here, "--chunks", str(given.chunks)]
        command += ["--worker", json.dumps(worker)]
        flags = f"--xla_force_host_platform_device_count={devices // processes}"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        workers.append(
            subprocess.Popen(
                command,
                env=os.environ | {"XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [worker.communicate() for worker in workers]
    for worker, (_, err) in zip(workers, said, strict=True):
        if worker.returncode:
            raise RuntimeError("\n".join(err.splitlines()[-5:]))
    return json.loads(said[0][0].splitlines()[-1])


def work(
    config: Config, chunks: int, *, devices: int, processes: int, index: int, coordinator: str
) -> dict[str, Any]:
    """One process's part of a measurement; the first chunk is not timed."""
    import jax

    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, processes, index)
    train = dataclasses.replace(config.train, devices=devices)
    programs = Programs(make_problem(config), train)
    state = programs.init()
    programs.compile(state, _STEPS, None)
    seconds: list[float] = []
    for _ in range(chunks + 1):
        started = time.perf_counter()
        state, metrics = programs.train_chunk(state, _STEPS)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - started)
    fastest = min(seconds[1:])
    return {
        "kind": "measured",
        "devices": devices,
        "processes": processes,
        "batch_size": train.batch_size,
        "updates_per_second": _STEPS / fastest,
        "median_updates_per_second": _STEPS / statistics.median(seconds[1:]),
    }


def on_paper(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each number of devices to compile for: collectives; for GPUs efficiencies, too."""
    for target, devices in [*(("gpu", n) for n in given.gpus), *(("tpu", n) for n in given.tpus)]:
        problem = make_problem(make_config("paper", given.rows * devices))
        try:
            program = compile_update(problem, devices, target)
        except UnavailableError as error:
            print(f"not compiled for {devices} {target.upper()}s: {error}", file=sys.stderr)
            continue
        found = find_collectives(program)
        size = sum(each.size for each in found)
        row = {
            "kind": "compiled", f"{target}s": devices, "batch_size": given.rows * devices,
            "collectives": [each._asdict() for each in found], "bytes": size,
        }  # fmt: skip
        if target == "gpu":
            step = given.step_ms / 1e3
            row["step_seconds"] = step
            row["all_reduce_seconds"] = {str(n): all_reduce_seconds(size, n) for n in GPUS}
            row["efficiency"] = {str(n): efficiency(step, size, n) for n in GPUS}
        yield row


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Both kinds of rows as Markdown tables."""
    measured = [row for row in rows if row["kind"] == "measured"]
    parts = []
    if measured:
        base = measured[0]["updates_per_second"]
        lines = [
            [
                *(str(row["devices"]), str(row["processes"])),
                f"{row['updates_per_second']:.3g}",
                f"{row['updates_per_second'] / base:.2f}",
            ]
            for row in measured
        ]
        head = ["Devices", "Processes", "Updates / s (fastest chunk)", "As a share of the first"]
        parts.append(markdown.table(head, lines))
    for row in rows:
        if row["kind"] == "compiled":
            parts.append(_describe_compiled(row))
    return "\n\n".join(parts)


def _describe_compiled(row: dict[str, Any]) -> str:
    found = ", ".join(
        f"{each['kind']} of {human_bytes(each['size'])}"
        + (" at every step of a loop" if each["repeats"] else "")
        for each in row["collectives"]
    )
    if "tpus" in row:
        return f"Compiled for {row['tpus']} chips of a TPU v5e, one update has: {found}."
    step = row["step_seconds"]
    lines = [
        [n, human_seconds(seconds), f"{row['efficiency'][n]:.1%}"]
        for n, seconds in row["all_reduce_seconds"].items()
    ]
    return (
        f"Compiled for {row['gpus']} H100s, one update has: {found}. Expected of "
        f"{human_bytes(row['bytes'])} in one all-reduce after an update of {human_seconds(step)} "
        "without it:\n\n" + markdown.table(["GPUs", "All-reduce", "Efficiency"], lines)
    )


if __name__ == "__main__":
    sys.exit(main())
