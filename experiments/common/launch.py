"""Runs several commands at once, each as a process with its own run directory."""

import math
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from experiments.common.interrupts import PARENT, Interrupted, StopRequest

LOG_FILE = "log.txt"

# For each of several processes at once. XLA takes its number of threads from NPROC.
_ONE_THREAD = {
    "NPROC": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
# Large pages, with which XLA's arrays are faster to allocate and access.
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_POLL_SECONDS = 0.2


def run_commands(
    commands: Mapping[Path, Sequence[str]],
    jobs: int,
    progress: bool = True,
    minutes: float | None = None,
) -> dict[Path, int]:
    """Runs commands, `jobs` at a time; their output goes into ``log.txt`` of their directories.

    With more than one at a time each uses one thread. Commands use large memory pages
    (``GLIBC_TUNABLES``), unless the environment sets it. When this process ends, for any reason,
    the experiments save and end too.

    Args:
      commands: by run directory, in the order to start them.
      jobs: number of commands at a time.
      progress: whether to draw a progress bar of runs.
      minutes: stop after this time.

    Returns:
      The exit codes by directory.

    Raises:
      Interrupted: Ctrl-C, SIGTERM or the end of `minutes`; the commands were stopped too.
    """
    waiting = list(commands.items())[::-1]
    running: dict[subprocess.Popen, Path] = {}
    codes: dict[Path, int] = {}
    has_asked = False
    ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
    bar = tqdm(total=len(commands), desc="runs", disable=not progress, unit="run")
    try:
        with bar, StopRequest() as stop:
            while running or (waiting and not stop.requested):
                stop.requested |= time.monotonic() > ends
                while waiting and len(running) < jobs and not stop.requested:
                    directory, command = waiting.pop()
                    running[_start(directory, command, is_alone=jobs == 1)] = directory
                if stop.requested and not has_asked:
                    has_asked = True  # A second signal would keep them from saving.
                    _terminate(running)
                for process in [p for p in running if p.poll() is not None]:
                    directory = running.pop(process)
                    codes[directory] = process.returncode
                    tqdm.write(_report(directory, process.returncode))
                    bar.update(1)
                time.sleep(_POLL_SECONDS)
            if stop.requested:
                raise Interrupted("stopped; run the same command to resume")
    finally:
        _terminate(running)
    return codes


def _start(run_dir: Path, command: Sequence[str], is_alone: bool) -> subprocess.Popen:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOG_FILE).open("a") as log:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_LARGE_PAGES
            | os.environ
            | ({} if is_alone else _ONE_THREAD)
            | {PARENT: str(os.getpid())},
            # Only the parent gets Ctrl-C; it then signals each child once.
            process_group=0,
        )


def _terminate(processes: Mapping[subprocess.Popen, Path]) -> None:
    for process in processes:
        process.terminate()


def _report(run_dir: Path, code: int) -> str:
    lines = (run_dir / LOG_FILE).read_text().splitlines()
    if code == 0:
        return "\n".join(lines[-1:])
    return "\n".join([f"{run_dir}: failed with exit code {code}:", *lines[-5:]])
