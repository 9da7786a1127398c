"""Several devices and processes: the same numbers, one stop, and no process is left waiting."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # A minute and more, of starting processes and compiling.

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.experiments.parallel_program"]


def environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    return {**os.environ, **cpu, "XLA_FLAGS": flags}


def start(directory: Path, devices: int, *arguments: str) -> list[subprocess.Popen]:
    """One process; or two, if `devices` is negative, each with so many."""
    count = 1 if devices > 0 else 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for index in range(count):
        connect = ["--coordinator", address, "--num-processes", "2", "--process-id", str(index)]
        processes.append(
            subprocess.Popen(
                [*PROGRAM, str(directory), *arguments, *(connect if count == 2 else [])],
                env=environment(abs(devices)),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def end(processes: list[subprocess.Popen], timeout: float = 240) -> list[tuple[int, str]]:
    """Exit codes and what was written on stderr."""
    try:
        texts = [process.communicate(timeout=timeout)[1] for process in processes]
        return [(p.returncode, text) for p, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()


def found(directory: Path) -> dict[str, np.ndarray]:
    values = json.loads((directory / "found.json").read_text())
    return {name: np.asarray(each) for name, each in values.items()}


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    assert [code for code, text in end(start(directory, 1))] == [0]
    return directory


@pytest.mark.parametrize("devices", [4, -2])
def test_numbers_do_not_depend_on_the_devices(one, devices, tmp_path):
    """1 device, 4 devices, 2 processes of 2 devices: parameters and scores after 20 updates."""
    ends = end(start(tmp_path, devices))
    assert [code for code, _ in ends] == [0] * len(ends), ends
    expected, values = found(one), found(tmp_path)
    for name, each in values.items():
        np.testing.assert_allclose(each, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for name in values:
        rows = [(d / name / "metrics.jsonl").read_text().splitlines() for d in (one, tmp_path)]
        assert len(rows[0]) == len(rows[1])


def wait_for(path: Path, processes: list[subprocess.Popen]) -> None:
    deadline = time.time() + 200
    while not path.exists():
        assert all(process.poll() is None for process in processes), end(processes)
        assert time.time() < deadline
        time.sleep(0.01)


LONG = ["--only", "regression", "--steps", "400"]


def test_one_process_stops_or_dies_and_the_run_goes_on(tmp_path):
    """SIGTERM to one saves and stops both; kill -9 ends the other, too; then to the same bits."""
    whole = tmp_path / "whole"
    ends = end(start(whole, -1, *LONG))
    assert [code for code, _ in ends] == [0, 0], ends
    broken = tmp_path / "broken"

    processes = start(broken, -1, *LONG, "--slow")
    wait_for(broken / "regression" / "checkpoints" / "10", processes)
    processes[1].send_signal(signal.SIGTERM)
    ends = end(processes, 60)
    assert [code for code, _ in ends] == [130, 130], ends
    step = max(int(p.name) for p in (broken / "regression" / "checkpoints").iterdir())
    assert all(f"stopped at step {step}" in text for _, text in ends)

    processes = start(broken, -1, *LONG, "--slow")
    wait_for(broken / "regression" / "checkpoints" / str(step + 20 - step % 10), processes)
    processes[1].kill()
    since = time.time()
    ends = end(processes, 60)
    assert time.time() - since < 60
    assert ends[0][0] not in (0, 130)
    assert "another process of this run has ended" in ends[0][1] or ends[0][0] < 0, ends

    assert [code for code, _ in end(start(broken, -1, *LONG))] == [0, 0]
    np.testing.assert_array_equal(found(broken)["regression"], found(whole)["regression"])
    metrics = [(d / "regression" / "metrics.jsonl").read_bytes() for d in (broken, whole)]
    assert metrics[0] == metrics[1]


def test_a_run_goes_on_with_other_devices(one, tmp_path):
    """Saved on 4 devices, on 1, on 2 processes."""
    only = ["--only", "regression"]
    assert end(start(tmp_path, 4, *only, "--steps", "5"))[0][0] == 0
    assert end(start(tmp_path, 1, *only, "--steps", "10"))[0][0] == 0
    ends = end(start(tmp_path, -1, *only))
    assert [code for code, _ in ends] == [0, 0], ends
    np.testing.assert_allclose(
        found(tmp_path)["regression"], found(one)["regression"], rtol=1e-5, atol=1e-5
    )
