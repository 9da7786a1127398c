"""Time by operations of the device: ``python -m benchmarks.profile --help``.

Command buffers are disabled while JAX profiles, which increases the time between operations, but
not the time of the operations.
"""

import argparse
import collections
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import variants
from benchmarks.options import REQUIRED, add_shared
from benchmarks.problem import make_problem
from benchmarks.program import UnavailableError
from benchmarks.records import read_finished
from benchmarks.settings import DTYPES, SETTINGS
from benchmarks.table import human_seconds
from benchmarks.timing import time_limit
from experiments.common import markdown
from experiments.common.environment import describe_environment
from experiments.common.records import append_rows

_CALLS = 5
_LISTED, _PRINTED = 40, 12


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.profile",
        description="Lists the longest operations of a training step; skips those that --out has.",
    )
    add = result.add_argument
    add("--setting", nargs="+", choices=SETTINGS, default=["nth_farthest", "rl"], metavar="NAME",
        help="sizes (default: nth_farthest rl)")  # fmt: skip
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"], help="of products")
    add("--variants", nargs="+", default=["auto"], metavar="VARIANT",
        help="as in benchmarks.scan_throughput (default: auto)")  # fmt: skip
    add_shared(add, minutes=None, out=REQUIRED)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    given = parser().parse_args(args)
    try:
        names = [variants.check_name(name) for name in given.variants]
        with time_limit(given.minutes):
            make_profiles(given.setting, given.dtype, names, given.out)
    except (UnavailableError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command to resume.", file=sys.stderr)
        return 130
    return 0


def make_profiles(
    settings: Sequence[str], dtypes: Sequence[str], names: Sequence[str], out: Path
) -> None:
    """Makes the profiles that a file does not contain yet, appends them, and prints all."""
    device = jax.devices()[0].device_kind
    rows = read_finished(out, _key)
    for dtype, setting, name in itertools.product(dtypes, settings, names):
        wanted = {"setting": setting, "dtype": dtype, "variant": name, "device": device}
        if (row := rows.get(_key(wanted))) is None:
            problem = make_problem(SETTINGS[setting].replace(dtype=dtype))
            row = wanted | profile(variants.build(name, problem, "train").run)
            append_rows(out, [row | {"environment": describe_environment()}])
        print(describe(row), flush=True)


def profile(run: Callable[[], Any]) -> dict[str, Any]:
    """Runs a program, given as a function that waits for its end, under the profiler.

    Returns:
      ``seconds_per_call`` wall time, ``busy_seconds_per_call`` within operations of the device,
      ``events_per_call``, and ``operations``: the longest, by name.
    """
    run()
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        with jax.profiler.trace(directory):
            for _ in range(_CALLS):
                run()
            wall = time.perf_counter() - started
        files = sorted(Path(directory).rglob("*.xplane.pb"))
        events = [event for file in files for event in _events(file)]
    total: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for name, nanoseconds in events:
        total[name] += nanoseconds * 1e-9  # type: ignore[assignment]
        count[name] += 1
    operations = [
        {"name": name, "seconds_per_call": seconds / _CALLS, "times_per_call": count[name] / _CALLS}
        for name, seconds in total.most_common(_LISTED)
    ]
    return {
        "seconds_per_call": wall / _CALLS,
        "busy_seconds_per_call": sum(total.values()) / _CALLS,
        "events_per_call": sum(count.values()) / _CALLS,
        "operations": operations,
    }


def describe(row: dict[str, Any]) -> str:
    """A profile as a table of the longest operations."""
    busy = row["busy_seconds_per_call"]
    head = ["Operation", "Time per call", "Share", "Times per call"]
    lines = [
        [
            f"`{entry['name'][:70]}`",
            human_seconds(entry["seconds_per_call"]),
            f"{entry['seconds_per_call'] / busy:.0%}",
            f"{entry['times_per_call']:.0f}",
        ]
        for entry in row["operations"][:_PRINTED]
    ]
    title = (
        f"{row['setting']}, {row['dtype']}, {row['variant']}: "
        f"{human_seconds(row['seconds_per_call'])} a call, {human_seconds(busy)} in "
        f"{row['events_per_call']:.0f} operations"
    )
    return f"{title}\n\n{markdown.table(head, lines)}\n"


def _events(file: Path) -> list[tuple[str, float]]:
    """Name and nanoseconds of the operations on the device.

    A GPU has a plane with a line for each stream. On a CPU the operations are on the lines of
    XLA's threads, among calls that enclose them.
    """
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    lines = [line for plane in devices or planes for line in plane.lines]
    streams = [line for line in lines if line.name.startswith("Stream")]
    # A TPU has no streams but a line of operations; its other lines repeat them.
    wanted = "XLA Ops" if devices else "XLA"
    chosen = streams or [line for line in lines if wanted in line.name]
    return [(event.name, event.duration_ns) for line in chosen for event in line.events]


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return row["setting"], row["dtype"], row["variant"], row["device"]


if __name__ == "__main__":
    sys.exit(main())
