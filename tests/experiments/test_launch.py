"""Parallel commands: their number, exit codes, logs, and Ctrl-C."""

import os
import signal
import sys
import threading
import time

import pytest

from experiments.common.interrupts import Interrupted
from experiments.common.launch import run_commands


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_exit_codes_and_logs(tmp_path, capsys):
    commands = {
        tmp_path / "a": python("print('first'); print('done')"),
        tmp_path / "b": python("import os; print(os.environ['NPROC']); raise SystemExit(3)"),
    }
    codes = run_commands(commands, jobs=2, progress=False)
    assert codes == {tmp_path / "a": 0, tmp_path / "b": 3}
    assert (tmp_path / "a" / "log.txt").read_text() == "first\ndone\n"
    assert (tmp_path / "b" / "log.txt").read_text() == "1\n"  # One thread each.
    printed = capsys.readouterr().out
    assert "first" not in printed
    assert "b: failed with exit code 3:\n1" in printed


def test_one_alone_may_use_all_threads(tmp_path, monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    run_commands({tmp_path: python("import os; print('NPROC' in os.environ)")}, 1, progress=False)
    assert (tmp_path / "log.txt").read_text() == "False\n"


@pytest.mark.parametrize("own", [None, "glibc.malloc.check=0"])
def test_large_pages_unless_the_environment_has_other_wishes(tmp_path, monkeypatch, own):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    code = "import os; print(os.environ['GLIBC_TUNABLES'])"
    run_commands({tmp_path: python(code)}, 1, progress=False)
    assert (tmp_path / "log.txt").read_text().strip() == (own or "glibc.malloc.hugetlb=1")


def test_after_its_minutes_nothing_starts_and_what_runs_is_stopped(tmp_path):
    commands = {tmp_path / name: python("import time; time.sleep(60)") for name in "ab"}
    with pytest.raises(Interrupted):
        run_commands(commands, jobs=1, progress=False, minutes=0.01)
    assert not (tmp_path / "b").exists()


def test_no_more_than_asked_for_at_once(tmp_path):
    code = (
        "import pathlib, time; here = pathlib.Path({0!r}); mark = here / {1!r}; mark.touch(); "
        "print(len(list(here.glob('mark_*')))); time.sleep(0.3); mark.unlink()"
    )
    commands = {
        tmp_path / str(i): python(code.format(str(tmp_path), f"mark_{i}")) for i in range(4)
    }
    run_commands(commands, jobs=2, progress=False)
    counts = [int((tmp_path / str(i) / "log.txt").read_text()) for i in range(4)]
    assert max(counts) <= 2


def test_one_signal_stops_all_and_starts_no_more(tmp_path):
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(130)))\n"
        "pathlib.Path({!r}).touch()\n"
        "time.sleep(60)\n"
    )
    commands = {
        tmp_path / str(i): python(code.format(str(tmp_path / f"ready_{i}"))) for i in range(3)
    }

    def press() -> None:
        deadline = time.time() + 60
        while not all((tmp_path / f"ready_{i}").exists() for i in range(2)):
            if time.time() > deadline:
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(Interrupted, match="run the same command to resume"):
        run_commands(commands, jobs=2, progress=False)
    thread.join()
    for i in range(2):
        assert (tmp_path / str(i) / "log.txt").read_text() == "saved\n"
    assert not (tmp_path / "2").exists()
