"""Signals: at any time one line and exit code 130; children do not outlive their parent."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.common import launch
from tests.experiments.toys import wait_for
from tests.grids import mostly_slow

ROOT = Path(__file__).parents[2]
# As an experiment that has got so far: in its imports, in its compiler, in its chunks.
COMMAND = """
import pathlib, sys, time
sys.argv, sys.orig_argv = ["-m"], [sys.executable, "-m", "experiments.it"]
import experiments
from experiments.common.interrupts import StopRequest
where, ready = sys.argv_given
if where == "importing":
    ready.touch()
    time.sleep(60)
with StopRequest() as stop:
    ready.touch()
    try:
        while not stop.requested:
            time.sleep(0.01)
        print("asked", flush=True)
        if where == "saving":
            time.sleep(60)
    finally:
        ready.with_name("finally").touch()
        if where == "stuck":
            time.sleep(60)  # As the thread of a library that is waited for.
print("saved", flush=True)
"""


# The tests may run under nohup.
DEFAULT = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
NOHUP = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
# Makes the terminal the one that controls the session.
CONTROL = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR))\n"


def code(where: str, ready: Path, before: str = "") -> str:
    given = f"import sys, pathlib; sys.argv_given = ({where!r}, pathlib.Path({str(ready)!r}))"
    return f"{DEFAULT}{before}{given}\n{COMMAND}"


def start(where: str, ready: Path, before: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", code(where, ready, before)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(ready)
    return process


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", mostly_slow(SIGNALS, keep=[signal.SIGINT]))
def test_before_training_a_signal_ends_it_with_one_line(tmp_path, number):
    process = start("importing", tmp_path / "ready")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err == "\nstopped immediately; the same command resumes a run from its last checkpoint\n"


@pytest.mark.parametrize("number", mostly_slow(SIGNALS, keep=[signal.SIGTERM]))
def test_in_training_a_signal_lets_it_save(tmp_path, number):
    process = start("training", tmp_path / "ready")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "asked\nsaved\n", "")


@pytest.mark.parametrize("where", ["saving", "stuck"])
def test_a_second_signal_ends_it_whatever_it_waits_for(tmp_path, where):
    process = start(where, tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert len(err.strip().splitlines()) == 1


def test_a_closed_terminal_lets_it_save(tmp_path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code("training", tmp_path / "ready", CONTROL)],
        **{"cwd": ROOT, "stdin": slave, "stdout": slave, "stderr": slave},
        start_new_session=True,
    )
    os.close(slave)
    wait_for(tmp_path / "ready")
    os.close(master)
    assert process.wait(timeout=20) == 0
    assert (tmp_path / "finally").exists()


def test_nohup_is_heeded(tmp_path):
    process = start("training", tmp_path / "ready", NOHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    assert process.communicate(timeout=20)[0] == "asked\nsaved\n"


PARENT = """
import pathlib, sys
sys.path.insert(0, {root!r})
from experiments.common.launch import run_commands
directory = pathlib.Path({directory!r})
run_commands({{directory: [sys.executable, "-c", {child!r}]}}, 2, progress=False)
"""


@pytest.mark.parametrize(
    "number", mostly_slow([signal.SIGKILL, signal.SIGHUP], keep=[signal.SIGKILL])
)
def test_children_save_and_end_with_their_parent(tmp_path, number):
    child = code("training", tmp_path / "ready")
    text = DEFAULT + PARENT.format(root=str(ROOT), directory=str(tmp_path / "run"), child=child)
    parent = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "ready")
    parent.send_signal(number)
    parent.wait(timeout=20)
    wait_for(tmp_path / "finally", seconds=10)
    log = tmp_path / "run" / launch.LOG_FILE
    end = time.time() + 10
    while log.read_text() != "asked\nsaved\n":
        assert time.time() < end, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow  # Programs that have got as far are stopped above.
def test_ctrl_c_while_an_experiment_starts(tmp_path):
    """The real one: in its imports, then in its compiler."""
    for seconds in (0.6, 4.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.nth_farthest", "--run-dir", str(tmp_path / "run")],
            **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.strip().splitlines()[-1].startswith("stopped ")
        assert "Traceback" not in err
