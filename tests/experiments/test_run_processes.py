"""Trainers as processes: on a full disk, and next to readers and other trainers."""

import os
import signal
import subprocess
import sys

import pytest

from tests.experiments.test_training import ROOT, command
from tests.experiments.toys import wait_for

pytestmark = pytest.mark.slow  # Two and three processes that compile.


def test_a_full_disk_is_named_in_the_last_line(tmp_path):
    """The limit of a file's size stands for it: a checkpoint outgrows it first."""
    limited = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *command(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "File too large" in last
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 10
    subprocess.run(command(tmp_path / "run"), cwd=ROOT, check=True, capture_output=True)


def test_evaluating_a_run_in_training_does_not_disturb_it(tmp_path):
    run_dir = tmp_path / "run"
    trainer = subprocess.Popen(
        command(run_dir), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(run_dir / "checkpoints" / "25", 120, trainer)
    trainer.send_signal(signal.SIGSTOP)  # At any point of its work.
    reader = subprocess.run(
        [*command(run_dir), "--eval-only"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    second = subprocess.run(command(run_dir), cwd=ROOT, capture_output=True, text=True, check=False)
    trainer.send_signal(signal.SIGCONT)
    _, err = trainer.communicate(timeout=120)
    assert (reader.returncode, trainer.returncode) == (0, 0), reader.stderr + err
    assert second.returncode == 2
    assert f"is in use by process {trainer.pid} on" in second.stderr.splitlines()[-1]
