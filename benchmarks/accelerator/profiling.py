"""Where the time goes: the operations of a training step by their time on the device.

Command buffers are off while JAX profiles, so that time between operations is overstated here; the
time within them is not.
"""

import collections
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import variants
from benchmarks.accelerator.deadline import Deadline, Pace, alarm
from benchmarks.accelerator.files import read_json_lines
from benchmarks.problem import make_problem
from benchmarks.program import Program
from benchmarks.records import append_rows
from benchmarks.settings import SETTINGS
from benchmarks.table import human_seconds, markdown

FILE = "profile.jsonl"
_CALLS = 5
_LISTED = 40


def profile_part(
    settings: Sequence[str],
    dtypes: Sequence[str],
    names: Sequence[str],
    out: Path,
    deadline: Deadline,
    *,
    first_guess: float = 30.0,
) -> list[dict[str, Any]]:
    """Profiles what is not in ``profile.jsonl`` yet, as long as there is time.

    Args:
      settings: names of sizes.
      dtypes: of products.
      names: variants.
      out: where ``profile.jsonl`` is.
      deadline: when all must be done.
      first_guess: seconds that one is taken to need before one was made.

    Returns:
      All rows there are.
    """
    rows = {_key(row): row for row in read_json_lines(out / FILE)}
    pace = Pace(first_guess)
    for dtype in dtypes:
        for setting in settings:
            for name in names:
                wanted = {"setting": setting, "dtype": dtype, "variant": name}
                if _key(wanted) in rows or not pace.fits("profile", deadline):
                    continue
                started = time.perf_counter()
                try:
                    with alarm(deadline):
                        problem = make_problem(SETTINGS[setting].replace(dtype=dtype))
                        program = variants.build(name, problem, "train")
                        rows[_key(wanted)] = row = wanted | profile(program)
                except KeyboardInterrupt:
                    return list(rows.values())
                pace.note("profile", time.perf_counter() - started)
                append_rows(out / FILE, [row])
    return list(rows.values())


def profile(program: Program) -> dict[str, Any]:
    """Runs a program under the profiler.

    Returns:
      ``seconds_per_call`` by the clock, ``busy_seconds_per_call`` within operations of the device,
      ``events_per_call``, and ``operations``: the longest, by name.
    """
    program.run()
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        with jax.profiler.trace(directory):
            for _ in range(_CALLS):
                program.run()
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
        "device": jax.devices()[0].device_kind,
        "seconds_per_call": wall / _CALLS,
        "busy_seconds_per_call": sum(total.values()) / _CALLS,
        "events_per_call": sum(count.values()) / _CALLS,
        "operations": operations,
    }


def describe(row: dict[str, Any], listed: int = 12) -> str:
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
        for entry in row["operations"][:listed]
    ]
    title = (
        f"{row['setting']}, {row['dtype']}, {row['variant']}: "
        f"{human_seconds(row['seconds_per_call'])} a call, {human_seconds(busy)} in "
        f"{row['events_per_call']:.0f} operations"
    )
    return f"{title}\n\n{markdown(head, lines)}\n"


def _events(file: Path) -> list[tuple[str, float]]:
    """Name and nanoseconds of the operations on the device.

    A GPU has a plane with a line for each stream. On a CPU the operations are on the lines of
    XLA's threads, among calls that enclose them.
    """
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    lines = [line for plane in devices or planes for line in plane.lines]
    streams = [line for line in lines if line.name.startswith("Stream")]
    # A TPU has no streams but a line of operations; all others there say the same once more.
    wanted = "XLA Ops" if devices else "XLA"
    chosen = streams or [line for line in lines if wanted in line.name]
    return [(event.name, event.duration_ns) for line in chosen for event in line.events]


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["setting"], row["dtype"], row["variant"]
