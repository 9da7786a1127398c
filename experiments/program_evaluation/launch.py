"""Several runs at once, each a process of its own."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from experiments.common.interrupts import StopRequest
from experiments.common.loop import Interrupted
from experiments.common.run_directory import flatten
from experiments.program_evaluation.config import PRESETS, Config

LOG_FILE = "log.txt"

# For each of several processes at once. XLA takes its number of threads from NPROC.
_ONE_THREAD = {
    "NPROC": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
_POLL_SECONDS = 0.2


def run_all(runs: Sequence[tuple[Path, Config]], jobs: int, progress: bool) -> dict[Path, int]:
    """Trains in child processes; what they print goes into ``log.txt`` of their directories.

    Args:
      runs: directories, and configs of one task and one model each.
      jobs: how many at once.
      progress: whether to draw a progress bar, of runs.

    Returns:
      The exit codes by directory.

    Raises:
      Interrupted: Ctrl-C or SIGTERM; the children have saved, and the same command goes on.
    """
    waiting = list(runs)[::-1]
    running: dict[subprocess.Popen, Path] = {}
    codes: dict[Path, int] = {}
    asked = False
    bar = tqdm(total=len(runs), desc="runs", disable=not progress, unit="run")
    try:
        with bar, StopRequest() as stop:
            while running or (waiting and not stop.requested):
                while waiting and len(running) < jobs and not stop.requested:
                    directory, config = waiting.pop()
                    running[_start(directory, config, alone=jobs == 1)] = directory
                if stop.requested and not asked:
                    asked = True  # Once: a second signal would keep them from saving.
                    _terminate(running)
                for process in [p for p in running if p.poll() is not None]:
                    directory = running.pop(process)
                    codes[directory] = process.returncode
                    tqdm.write(_report(directory, process.returncode))
                    bar.update(1)
                time.sleep(_POLL_SECONDS)
            if stop.requested:
                raise Interrupted("stopped; the same command goes on from there")
    finally:
        _terminate(running)
    return codes


def command_of(config: Config, run_dir: Path) -> list[str]:
    """The command that trains `config` in `run_dir`.

    >>> config = dataclasses.replace(PRESETS["quick"], task="copy", model="rmc")
    >>> " ".join(command_of(config, Path("runs/a"))[1:])
    '-m experiments.program_evaluation --preset quick --task copy --model rmc --run-dir runs/a'
    """
    wanted = flatten(dataclasses.asdict(config))
    usual = flatten(dataclasses.asdict(PRESETS[config.preset]))
    options = []
    for name, value in wanted.items():
        if value != usual[name]:
            options += ["--" + name.rpartition(".")[2].replace("_", "-"), str(value)]
    return [
        *(sys.executable, "-m", "experiments.program_evaluation"),
        *("--preset", config.preset, *options, "--run-dir", str(run_dir)),
    ]


def _start(run_dir: Path, config: Config, alone: bool) -> subprocess.Popen:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOG_FILE).open("a") as log:
        return subprocess.Popen(
            [*command_of(config, run_dir), "--no-progress"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | ({} if alone else _ONE_THREAD),
            # Ctrl-C reaches the parent alone, which then asks each child once.
            process_group=0,
        )


def _terminate(processes: dict[subprocess.Popen, Path]) -> None:
    for process in processes:
        process.terminate()


def _report(run_dir: Path, code: int) -> str:
    lines = (run_dir / LOG_FILE).read_text().splitlines()
    if code == 0:
        return lines[-1]
    return "\n".join([f"{run_dir}: failed with exit code {code}:", *lines[-5:]])
