"""Several devices and processes: the same numbers, one stop, and no process is left waiting."""

import dataclasses
import functools
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.common import cells
from experiments.common.run_directory import hold
from tests.experiments.toys import wait_for

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.experiments.parallel_program"
SAME = "tests.experiments.same_numbers"
QUICK = ("language_model",)
OWN = ("nth_farthest", "program_evaluation", "language_model", "box_world", "mini_pacman")
ALL = (*OWN, "ablations", "counting")


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return {**os.environ, **cpu, "XLA_FLAGS": flags}


def start(
    directory: Path, devices: int, *arguments: str, program: str = PROGRAM
) -> list[subprocess.Popen]:
    """One process; or two, if `devices` is negative, each with so many."""
    count = 1 if devices > 0 else 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in range(count):
        connect = ["--coordinator", address, "--num-processes", "2", "--process-id", str(index)]
        command = [sys.executable, "-m", program, str(directory), *arguments]
        processes.append(
            subprocess.Popen(
                [*command, *connect] if count == 2 else command,
                env=environment(abs(devices)),
                **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
            )
        )
    return processes


def end(processes: list[subprocess.Popen], timeout: float = 900) -> list[tuple[int, str]]:
    """Exit codes and what was written on stderr."""
    try:
        texts = [process.communicate(timeout=timeout)[1] for process in processes]
        return [(p.returncode, text) for p, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()


def found(directory: Path) -> np.ndarray:
    return np.load(directory / "found.npy")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """``numbers(devices, names)``: what `SAME` finds; one run gives those of 1 and of 4 devices."""

    @functools.cache
    def run(devices: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        directory = tmp_path_factory.mktemp("numbers")
        counts = ["1", "4"] if devices == 4 else ["4"]
        options = ["--devices", *counts, "--only", *names]
        ends = end(start(directory, devices, *options, program=SAME))
        assert [code for code, _ in ends] == [0] * len(ends), ends
        return dict(np.load(directory / "found.npz"))

    return run


def check_same(one, several, names):
    for name in names:
        before, after = one[f"{name} before 1"], one[f"{name} after 1"]
        assert np.max(np.abs(after - before)) > 0.1, name
        np.testing.assert_array_equal(several[f"{name} before 4"], before)
        np.testing.assert_allclose(
            several[f"{name} after 4"], after, rtol=0, atol=1e-5, err_msg=name
        )


def test_four_devices_train_as_one_does(numbers):
    """Parameters after 20 updates of gradient descent with momentum, seeds and rows divided."""
    both = numbers(4, QUICK)
    check_same(both, both, QUICK)


def test_two_processes_of_two_devices_train_as_one_device_does(numbers):
    check_same(numbers(4, QUICK), numbers(-2, QUICK), QUICK)


def test_a_core_of_ones_own_trains_in_every_experiment_with_one_registration(numbers):
    found = numbers(4, QUICK)
    assert found["option"] == 3
    assert {name: str(found[f"{name} cell"]) for name in OWN} == dict.fromkeys(OWN, "GRUCell")
    importlib.import_module("experiments.nth_farthest")
    own = dataclasses.make_dataclass("Own", [("own_width", int, 3)], bases=(cells.Core,))
    with pytest.raises(RuntimeError, match="before an experiment is imported"):
        cells.register("own", own)
    with pytest.raises(ValueError, match=r"name must differ from rmc, .*, got 'lstm'"):
        cells.register("lstm", cells.LSTMConfig)
    with pytest.raises(ValueError, match=r"'bank' must have .*, mem_slots, .* RMCConfig has"):
        cells.register("bank", cells.RMCConfig)


@pytest.mark.slow
def test_every_experiment_trains_alike_on_all_devices_and_processes(numbers):
    both = numbers(4, ALL)
    check_same(both, both, ALL)
    check_same(both, numbers(-2, ALL), ALL)


def wait(path: Path, processes: list[subprocess.Popen]) -> None:
    wait_for(path, 200, *processes, log=functools.partial(end, processes))


def check_a_death_ends_both(processes: list[subprocess.Popen]) -> None:
    """Kills the second process; the first one ends within a minute, and says why."""
    processes[1].kill()
    since = time.time()
    ends = end(processes, 60)
    assert time.time() - since < 60
    assert ends[0][0] not in (0, 130)
    assert "another process of this run has ended" in ends[0][1] or ends[0][0] < 0, ends


LONG = ["--steps", "400"]


@pytest.mark.slow
def test_one_process_stops_or_dies_and_the_run_goes_on(tmp_path):
    """SIGTERM to one saves and stops both; kill -9 ends the other, too; then to the same bits."""
    whole = tmp_path / "whole"
    ends = end(start(whole, -1, *LONG))
    assert [code for code, _ in ends] == [0, 0], ends
    broken = tmp_path / "broken"

    processes = start(broken, -1, *LONG, "--slow")
    wait(broken / "run" / "checkpoints" / "10", processes)
    processes[1].send_signal(signal.SIGTERM)
    ends = end(processes, 60)
    assert [code for code, _ in ends] == [130, 130], ends
    step = max(int(p.name) for p in (broken / "run" / "checkpoints").iterdir())
    assert all(f"stopped at step {step}" in text for _, text in ends)

    processes = start(broken, -1, *LONG, "--slow")
    wait(broken / "run" / "checkpoints" / str(step + 20 - step % 10), processes)
    check_a_death_ends_both(processes)

    assert [code for code, _ in end(start(broken, -1, *LONG))] == [0, 0]
    np.testing.assert_array_equal(found(broken), found(whole))
    metrics = [(d / "run" / "metrics.jsonl").read_bytes() for d in (broken, whole)]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_process_may_compile_for_longer_than_collectives_wait(tmp_path):
    """The other one waits, for 40 s here; it does not wait for a process that dies."""
    ends = end(start(tmp_path, -2, "--late", "40"))
    assert [code for code, _ in ends] == [0, 0], ends

    dies = tmp_path / "dies"
    processes = start(dies, -2, "--late", "400")
    wait(dies / "late", processes)
    check_a_death_ends_both(processes)


@pytest.mark.slow
def test_processes_must_share_the_run_directory(tmp_path):
    ends = end(start(tmp_path, -1, "--apart"))
    assert [code for code, _ in ends] == [2, 2], ends
    assert all("all processes must share --run-dir" in text for _, text in ends), ends


@pytest.mark.slow
def test_both_processes_end_if_one_refuses(tmp_path):
    ends = end(start(tmp_path, -1, "--alone"), 120)
    assert [code for code, _ in ends] == [2, 2], ends
    assert "another process of this run has refused it" in ends[0][1]
    assert "there is no text here" in ends[1][1]


@pytest.mark.slow
def test_both_processes_refuse_a_busy_directory(tmp_path):
    assert end(start(tmp_path, 1, "--steps", "5"))[0][0] == 0
    with hold(tmp_path / "run"):
        ends = end(start(tmp_path, -1, "--steps", "5"), 120)
    assert [code for code, _ in ends] == [2, 2], ends
    assert "is in use by process" in ends[0][1]


@pytest.mark.slow
def test_a_run_goes_on_with_other_devices(tmp_path):
    """Saved on 4 devices, on 1, on 2 processes."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert end(start(whole, 1))[0][0] == 0
    assert end(start(cut, 4, "--steps", "5"))[0][0] == 0
    assert end(start(cut, 1, "--steps", "10"))[0][0] == 0
    ends = end(start(cut, -1))
    assert [code for code, _ in ends] == [0, 0], ends
    np.testing.assert_allclose(found(cut), found(whole), rtol=0, atol=1e-5)
