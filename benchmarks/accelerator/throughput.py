"""The throughput suite in the order of its worth, so that a cut by time leaves the most valuable.

Every point is a call of `benchmarks.scan_throughput`, which skips rows that are there already.
Points with flags for XLA run in a process of their own: flags are read once, when JAX starts.
"""

import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import scan_throughput, table
from benchmarks.accelerator.deadline import Deadline, Pace, alarm
from benchmarks.accelerator.files import read_json_lines
from benchmarks.records import append_rows

FILE = "throughput.jsonl"
CALLS_FILE = "throughput_calls.jsonl"

FLAGS = {
    "while": "--xla_gpu_enable_command_buffer=+WHILE",
    "while_unrolled": "--xla_gpu_enable_command_buffer=+WHILE "
    "--xla_gpu_command_buffer_unroll_loops=true",
    "no_command_buffers": "--xla_gpu_enable_command_buffer=",
    "no_triton_gemm": "--xla_gpu_enable_triton_gemm=false",
    "concurrent": "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT",
}
"""Flags to try, by name. A loop within a command buffer has crashed others: not the default."""

_INTERRUPTED = 130
_GRACE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A call of the suite.

    Attributes:
      kind: what takes about as long.
      options: of `benchmarks.scan_throughput`.
      flags: for XLA; none: in this process.
    """

    kind: str
    options: tuple[str, ...]
    flags: str = ""


Child = Callable[[Sequence[str], str, float], int]
"""``child(arguments, flags, seconds)``: runs the suite apart, and returns its exit code."""


def plan(settings: Sequence[str], dtypes: Sequence[str]) -> Iterator[Point]:
    """All points, the most valuable first.

    >>> points = list(plan(["rl"], ["float32", "bfloat16"]))
    >>> " ".join(points[0].options)
    '--setting rl --dtype float32 --mode train --variants auto lstm_width cudnn_lstm_width'
    """

    def point(
        setting: str,
        dtype: str,
        mode: str,
        *names: str,
        more: tuple[str, ...] = (),
        flags: str = "",
    ) -> Point:
        options = ("--setting", setting, "--dtype", dtype, "--mode", mode, "--variants", *names)
        return Point(f"{setting} {len(names)} {more} {bool(flags)}", (*options, *more), flags)

    first, *others = dtypes
    for setting in settings:
        yield point(setting, first, "train", "auto", "lstm_width", "cudnn_lstm_width")
    for dtype in others:
        for setting in settings:
            yield point(setting, dtype, "train", "auto", "lstm_width")
    # What the loop costs: more steps in an iteration, or the loop within a command buffer.
    for setting in settings:
        yield point(setting, first, "train", "auto_unroll4", "auto_unroll8", "plain_unroll8")
        for flags in FLAGS.values():
            yield point(setting, first, "train", "auto", flags=flags)
    for dtype in dtypes:
        for setting in settings:
            yield point(setting, dtype, "forward", "auto", "lstm_width")
    for setting in settings:
        yield point(setting, first, "train", "torch", "scan")
        yield point(setting, first, "train", "lstm_params", "cudnn_lstm_params", "gru_width")
    for setting in settings:
        for dtype in dict.fromkeys((first, dtypes[-1])):
            for axis in ("B", "T", "S", "F"):
                more = ("--sweep", "--axes", axis)
                yield point(setting, dtype, "train", "auto", more=more)
    for setting in settings:
        yield point(setting, first, "train", "auto", more=("--slope",))
        yield point(setting, first, "train", "torch_compile")


def throughput_part(
    points: Sequence[Point],
    out: Path,
    deadline: Deadline,
    *,
    rounds: int = 10,
    min_seconds: float = 0.2,
    first_guess: float = 45.0,
    child: Child | None = None,
) -> tuple[int, int]:
    """Measures the points that are not done yet, as long as there is time.

    Args:
      points: in order.
      out: where ``throughput.jsonl`` is.
      deadline: when all must be done; what runs then is interrupted, and its rounds are kept.
      rounds: samples of each variant.
      min_seconds: shortest time of a sample.
      first_guess: seconds that a point is taken to need before one was measured.
      child: runs a point with flags (default: a process).

    Returns:
      How many points are done, and how many there are. One whose variants failed or disagreed is
      done too; its rows say so.
    """
    child = run_child if child is None else child
    done = {(tuple(row["options"]), row["flags"]) for row in read_json_lines(out / CALLS_FILE)}
    pace = Pace(first_guess)
    for point in points:
        if (point.options, point.flags) in done:
            continue
        if not pace.fits(point.kind, deadline):
            continue  # Another kind may be quicker.
        arguments = [
            *point.options,
            *("--rounds", str(rounds), "--min-seconds", str(min_seconds)),
            *("--out", str(out / FILE)),
        ]
        started = time.perf_counter()
        if point.flags:
            print(f"XLA_FLAGS={point.flags}", flush=True)
            code = child(arguments, point.flags, deadline.left())
        else:
            code = run_here(arguments, deadline)
        seconds = time.perf_counter() - started
        pace.note(point.kind, seconds)
        if code == _INTERRUPTED:
            break
        done.add((point.options, point.flags))
        row = {"options": point.options, "flags": point.flags, "code": code}
        append_rows(out / CALLS_FILE, [row | {"seconds": round(seconds, 1)}])
    return sum((point.options, point.flags) in done for point in points), len(points)


def run_here(arguments: Sequence[str], deadline: Deadline) -> int:
    """Runs the suite in this process; its exit code, 130 if the deadline cut it off."""
    try:
        with alarm(deadline):
            return scan_throughput.main(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as error:  # Such as a dtype that the device does not have.
        return error.code if isinstance(error.code, int) else 1


def run_child(arguments: Sequence[str], flags: str, seconds: float) -> int:
    """Runs the suite in a process with flags for XLA; its exit code, 130 if cut off."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # This process has memory of its own.
    }
    command = [sys.executable, "-m", "benchmarks.scan_throughput", *arguments]
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait(max(seconds - _GRACE_SECONDS, 0.1))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.send_signal(signal.SIGINT)  # Keeps the rounds that are done.
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            return _INTERRUPTED


def describe(out: Path) -> str:
    """All rows as tables."""
    if not (out / FILE).exists():
        return "no rows"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        table.main([str(out / FILE), "--details"])
    return text.getvalue()
