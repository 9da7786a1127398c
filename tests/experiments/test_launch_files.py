"""Launch files: their syntax, that their commands are understood, two processes of a machine."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common import parallel
from experiments.common.cli import parse
from experiments.nth_farthest.config import PRESETS
from tests.experiments.test_training import ROOT, TINY

LAUNCH = ROOT / "experiments" / "cluster"
COMMAND = re.compile(r"python -m experiments\.nth_farthest (.*)")


def command_of(name: str) -> list[str]:
    text = (LAUNCH / name).read_text()
    # Of continued lines, YAML's folded ones and the shell's, one is made.
    start = text.index("python -m experiments.nth_farthest")
    end = min(i for i in (text.find("resources:"), len(text)) if i > start)
    (found,) = COMMAND.findall(" ".join(text[start:end].replace("\\\n", " ").split()))
    return [
        os.path.expandvars(word)
        for word in shlex.split(re.sub(r"\$\{(\w+):[^}]*\}", r"$\1", found))
    ]


@pytest.mark.parametrize(
    ("name", "connected"),
    [
        ("slurm.sbatch", (None, None, None)),
        ("kubernetes.yaml", ("rrnn-jax-0.rrnn-jax:12355", 2, 1)),
    ],
)
def test_commands_are_understood(name, connected, monkeypatch):
    monkeypatch.setenv("RUN_DIR", "/runs/a")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    asked = []
    monkeypatch.setattr(parallel, "connect", lambda *how: asked.append(how))
    config, run = parse(PRESETS, "nth_farthest", "", command_of(name))
    assert config.preset == "paper"
    assert str(run.run_dir) in ("/runs/a", "/runs/paper")
    assert asked == [connected]
    # All 16 GPUs are used, as must be.
    seeds, rows = parallel.divide(config.train.num_seeds, config.train.batch_size, 16)
    assert seeds * rows == 16


@pytest.mark.parametrize("name", ["slurm.sbatch", "ssh.sh"])
def test_syntax_of_scripts(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


def test_pods_are_as_many_as_processes():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    options = shlex.split(job["spec"]["template"]["spec"]["containers"][0]["args"][0])
    count = int(options[options.index("--num-processes") + 1])
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == count
    first = options[options.index("--coordinator") + 1].partition(":")[0]
    assert first == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def fake_ssh(tmp_path: Path, body: str) -> dict[str, str]:
    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\nhost=$1; shift\n{body}\n")
    script.chmod(0o755)
    return os.environ | {"SSH": str(script), "DIRECTORY": str(ROOT), "PYTHON": sys.executable}


def test_ssh_starts_a_process_on_each_host_and_returns_its_code(tmp_path):
    environment = fake_ssh(tmp_path, 'echo "$host: $@"; [ "$host" != b ] || exit 3')
    done = subprocess.run(
        [LAUNCH / "ssh.sh", "a,b", "experiments.it", "--name", "two words"],
        **{"env": environment | {"PYTHON": "python"}, "capture_output": True, "text": True},
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"{host}: cd {ROOT} && exec python -m experiments.it --name two\\ words "
        f"--coordinator a:12355 --num-processes 2 --process-id {i} "
        for i, host in enumerate("ab")
    ]


@pytest.mark.slow
def test_ssh_trains_in_two_processes_over_loopback(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = fake_ssh(tmp_path, 'exec sh -c "$*"') | {"PORT": port}
    options = [*TINY, "--steps", "10", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [LAUNCH / "ssh.sh", "localhost,localhost", "experiments.nth_farthest", *options],
        **{"env": environment, "capture_output": True, "text": True, "timeout": 300},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoints" / "10").is_dir()
