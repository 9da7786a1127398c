"""The checks and profiles of a device, also when interrupted and resumed."""

import functools
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import correctness, profile, variants
from benchmarks.problem import make_problem
from benchmarks.settings import SETTINGS
from benchmarks.timing import time_limit
from experiments.common.records import append_rows, read_rows
from tests.benchmarks.fakes import builder, program
from tests.core import golden

compute_results = correctness.golden_results
cached_problem = functools.cache(make_problem)


@functools.cache
def results_of(name):
    return compute_results(golden.load(name), "hoisted")


def golden_results(case, runner):
    """Compiled once."""
    del runner
    return results_of(case.name)


def command(out, *more):
    return ["--setting", "toy", "--golden-cases", "1", "--out", str(out), *more]


@pytest.fixture
def fakes(monkeypatch):
    """Variants that compute nothing: plain, and a fast one of our choice."""

    def use(fast=(1.0, 2.0), plain=(1.0, 2.0)):
        programs = builder(
            {"plain": program(plain), "auto": program(fast), "hoisted": program(fast)}
        )
        monkeypatch.setattr(variants, "build", programs)
        monkeypatch.setattr(correctness, "make_problem", cached_problem)
        exact = {"outputs": np.array([1.0, 2.0])}
        monkeypatch.setattr(correctness, "float32_results", lambda *_: exact)

    return use


@pytest.mark.slow
def test_resets_and_mask_of_the_kernels_are_checked_where_they_run(monkeypatch):
    check = correctness.flags_check(SETTINGS["toy"], "hoisted")
    assert check["ok"]
    assert check["error"] < 1e-5
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    names = [name for name, _ in correctness._checks(["toy", "language"], 1)]
    assert "toy flags" in names
    assert "language flags" not in names
    assert "toy train tf32 fused" in names
    assert "language train tf32 fused" not in names


def test_a_recorded_case_and_all_that_is_asked(tmp_path, fakes, capsys, monkeypatch):
    fakes()
    monkeypatch.setattr(correctness, "golden_results", golden_results)
    out = tmp_path / "rows.jsonl"
    assert correctness.main(command(out)) == 0
    rows = read_rows(out)
    assert [row["name"] for row in rows] == [
        "golden rmc_00_unit_h1 hoisted",
        *(f"toy train {dtype} hoisted" for dtype in ("float32", "bfloat16", "tf32")),
        "golden rmc_00_unit_h1 plain",
        *(f"toy forward {dtype} hoisted" for dtype in ("float32", "bfloat16", "tf32")),
    ]
    assert rows[0]["ok"]
    assert 0 < rows[0]["error"] < 1
    assert 0 < rows[0]["absolute_error_of_outputs"] < 2e-5
    assert rows[3]["skipped"] == "tf32 needs a GPU, got cpu"
    printed = capsys.readouterr().out
    assert "golden rmc_00_unit_h1 hoisted: largest error" in printed
    assert "8 checks, 0 over their limits: none" in printed
    # Made before: nothing is computed again, and what is not asked for does not count.
    append_rows(out, [rows[0] | {"name": "rl train float32 hoisted", "ok": False}])
    before = out.read_text()
    assert correctness.main(command(out)) == 0
    assert out.read_text() == before
    assert "8 checks, 0 over their limits: none" in capsys.readouterr().out


def test_an_error_over_its_limit_fails_the_command(tmp_path, fakes, capsys, monkeypatch):
    fakes(fast=(1.0, 2.01))
    monkeypatch.setattr(correctness, "golden_check", lambda *_: {"skipped": "here"})
    assert correctness.main(command(tmp_path / "rows.jsonl")) == 1
    printed = capsys.readouterr().out
    assert (
        "toy train float32 hoisted: largest error 4.47e-03 (outputs), at most 1.00e-03" in printed
    )
    assert "TOO LARGE" in printed
    assert "8 checks, 4 over their limits: toy train float32 hoisted, toy train b" in printed


def test_short_dtypes_may_be_off_as_far_as_the_reference_twice(fakes):
    fakes(fast=(1.0, 2.19), plain=(1.0, 2.1))
    check = correctness.setting_check("toy", "bfloat16", "forward", "hoisted")
    assert check["ok"]
    assert check["limit"] == pytest.approx(2 * check["error_of_reference"])
    fakes(fast=(1.0, 2.21), plain=(1.0, 2.1))
    assert not correctness.setting_check("toy", "bfloat16", "forward", "hoisted")["ok"]
    fakes(fast=(1.0, np.nan), plain=(1.0, np.nan))
    assert not correctness.setting_check("toy", "bfloat16", "forward", "hoisted")["ok"]


@pytest.mark.parametrize("change", ["none", "outputs", "grads/inputs"])
def test_a_wrong_device_is_found_by_the_recorded_cases(change):
    case = golden.load(golden.NAMES[0])
    changed = {change: case.arrays[change] + 1e-4} if change != "none" else {}
    wanted = golden.Golden(case.name, case.arrays | changed)
    check = correctness.judge_golden(golden, wanted, *golden_results(wanted, "hoisted"))
    assert check["ok"] == (change == "none")
    assert (check["error"] < 1) == check["ok"]
    assert ("TOO LARGE" in correctness.describe({"name": "a", **check})) != check["ok"]
    where = {"outputs": "outputs", "grads/inputs": "gradient 1"}
    assert change == "none" or check["where"] == where[change]


def test_what_is_interrupted_goes_on_with_the_next_check(tmp_path, fakes, monkeypatch, capsys):
    fakes()
    made = []
    monkeypatch.setattr(correctness, "golden_check", lambda *_: made.append(1) or {"skipped": ""})
    with monkeypatch.context() as patch:
        patch.setattr(correctness, "setting_check", lambda *_: signal.pause())
        assert correctness.main(command(tmp_path / "rows.jsonl", "--minutes", "0.002")) == 130
    assert "run the same command to resume" in capsys.readouterr().err
    assert (len(read_rows(tmp_path / "rows.jsonl")), len(made)) == (1, 1)
    assert correctness.main(command(tmp_path / "rows.jsonl")) == 0
    assert (len(read_rows(tmp_path / "rows.jsonl")), len(made)) == (8, 2)


def test_recorded_cases_are_those_of_a_clone(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tests.core", None)
    assert correctness.main(command(tmp_path / "rows.jsonl")) == 2
    assert "of a clone of the repository: run from its root" in capsys.readouterr().err


def test_profile(tmp_path, monkeypatch, capsys):
    work = jax.jit(lambda x: (x @ x).sum())
    x = jnp.ones((64, 64))
    run = program(run=lambda: work(x).block_until_ready())
    monkeypatch.setattr(variants, "build", lambda *_: run)
    monkeypatch.setattr(profile, "make_problem", lambda *_: None)
    out = tmp_path / "profile.jsonl"
    assert profile.main(["--setting", "toy", "--out", str(out)]) == 0
    (row,) = read_rows(out)
    assert any("fusion" in entry["name"] or "dot" in entry["name"] for entry in row["operations"])
    assert row["events_per_call"] >= 1
    assert row["busy_seconds_per_call"] > 0
    assert row["environment"]["device"] == row["device"] == "cpu"
    printed = capsys.readouterr().out
    assert "toy, float32, auto: " in printed
    assert "| Operation | Time per call | Share | Times per call |" in printed
    before = out.read_text()
    assert profile.main(["--setting", "toy", "--out", str(out)]) == 0
    assert out.read_text() == before
    assert profile.main(["--variants", "odd", "--out", str(out)]) == 2
    assert "odd" in capsys.readouterr().err


def test_a_time_limit_interrupts():
    with pytest.raises(KeyboardInterrupt), time_limit(1e-4):
        signal.pause()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with pytest.raises(SystemExit):
        profile.parser().parse_args(["--out", "x", "--minutes", "0"])


@pytest.mark.slow
def test_on_this_device_without_optional_packages(tmp_path):
    missing = 'import sys; sys.modules.update(dict.fromkeys(("tyro", "tensorboardX", "torch")))\n'
    commands = {
        "correctness": command(tmp_path / "rows.jsonl"),
        "profile": ["--setting", "toy", "--out", str(tmp_path / "profile.jsonl")],
    }
    for module, options in commands.items():
        code = f"{missing}from benchmarks.{module} import main\nsys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *options],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
