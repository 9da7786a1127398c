"""The accelerator's command: correctness, throughput and profile, cut off and taken up again."""

import doctest
import functools
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, measure, scan_throughput, variants
from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import correctness, profiling, throughput, training
from benchmarks.accelerator.deadline import Deadline, alarm
from benchmarks.accelerator.files import read_json_lines
from benchmarks.problem import make_problem
from benchmarks.program import UnavailableError
from benchmarks.settings import SETTINGS
from experiments.common import cli
from experiments.common.loop import NonFiniteError
from experiments.nth_farthest.__main__ import main as nth_farthest
from tests.benchmarks.fakes import builder, program
from tests.core import golden
from tests.core.compiling import quick_jit

compute_results = correctness.golden_results


@functools.cache
def results_of(name):
    return compute_results(golden.load(name), "hoisted", jit=quick_jit)


def golden_results(case, runner):
    """Compiled once, and without XLA's optimisations."""
    del runner
    return results_of(case.name)


LONG = Deadline(1e6)
OVER = Deadline(-1.0)
cached_problem = functools.cache(make_problem)


@pytest.fixture
def fakes(monkeypatch):
    """Variants that compute nothing: plain, and a fast one of our choice."""

    def use(fast=(1.0, 2.0), plain=(1.0, 2.0), exact=(1.0, 2.0)):
        programs = builder(
            {"plain": program(plain), "auto": program(fast), "hoisted": program(fast)}
        )
        monkeypatch.setattr(variants, "build", programs)
        monkeypatch.setattr(correctness, "make_problem", cached_problem)
        monkeypatch.setattr(correctness, "float32_results", lambda *_: {"outputs": np.array(exact)})

    return use


def test_resets_and_mask_of_the_kernels_are_checked_where_they_run(monkeypatch):
    check = correctness.flags_check(SETTINGS["toy"], "hoisted")
    assert check["ok"]
    assert check["error"] < 1e-5
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    names = [name for _, name, _ in correctness._checks(["toy", "language"], 1)]
    assert "toy flags" in names
    assert "language flags" not in names
    assert "toy train tf32 fused" in names
    assert "language train tf32 fused" not in names


def test_correctness_of_a_recorded_case_and_of_all_that_is_asked(
    tmp_path, fakes, capsys, monkeypatch
):
    fakes()
    monkeypatch.setattr(correctness, "golden_results", golden_results)
    arguments = ["--toy", "--parts", "correctness", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    rows = read_json_lines(tmp_path / correctness.FILE)
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
    assert "golden rmc_00_unit_h1 hoisted: largest error" in capsys.readouterr().out
    # Made before: nothing is computed again.
    before = (tmp_path / correctness.FILE).read_text()
    assert command.main(arguments) == 0
    assert (tmp_path / correctness.FILE).read_text() == before


def test_an_error_over_its_limit_fails_the_command(tmp_path, fakes, capsys, monkeypatch):
    fakes(fast=(1.0, 2.01))
    monkeypatch.setattr(correctness, "golden_check", lambda *_: {"skipped": "here"})
    assert command.main(["--toy", "--parts", "correctness", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert (
        "toy train float32 hoisted: largest error 4.47e-03 (outputs), at most 1.00e-03" in printed
    )
    assert "TOO LARGE" in printed


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


def test_correctness_stops_in_time_and_goes_on(tmp_path, fakes, monkeypatch):
    fakes()
    made = []
    monkeypatch.setattr(correctness, "golden_check", lambda *_: made.append(1) or {"skipped": ""})
    assert correctness.correctness_part(["toy"], tmp_path, OVER) == ([], False)

    def slow(*_):
        signal.raise_signal(signal.SIGALRM)

    with monkeypatch.context() as patch:
        patch.setattr(correctness, "setting_check", slow)
        checks, complete = correctness.correctness_part(["toy"], tmp_path, LONG, golden_cases=2)
    assert (len(checks), complete, len(made)) == (2, False, 2)
    checks, complete = correctness.correctness_part(["toy"], tmp_path, LONG, golden_cases=2)
    assert (len(checks), complete, len(made)) == (10, True, 4)


def test_recorded_cases_are_those_of_a_clone(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tests.core", None)
    assert command.main(["--toy", "--parts", "correctness", "--out", str(tmp_path)]) == 2
    assert "of a clone of the repository: run from its root" in capsys.readouterr().err
    with pytest.raises(UnavailableError):
        correctness.correctness_part(["toy"], tmp_path, LONG)


def test_throughput_plan_has_the_most_valuable_first():
    points = list(throughput.plan(["nth_farthest", "rl", "language"], ["float32", "bfloat16"]))
    assert len(set(points)) == len(points)
    for point in points[:3]:
        assert point.options[2:] == (
            *("--dtype", "float32", "--mode", "train", "--variants"),
            *("auto", "lstm_width", "cudnn_lstm_width"),
        )
    parse = scan_throughput.parser().parse_args
    for point in points:
        given = parse(list(point.options))
        assert scan_throughput.variant_names(given.variants, [])
    first_sweep = next(i for i, p in enumerate(points) if "--sweep" in p.options)
    assert all(not p.flags for p in points[first_sweep:])
    assert {p.flags for p in points} == {"", *throughput.FLAGS.values()}


def test_throughput_is_cut_off_by_time_and_goes_on(tmp_path, monkeypatch):
    points = [throughput.Point("a", (name,), flags) for name, flags in
              (("--one", ""), ("--two", "--xla_x"), ("--three", ""))]  # fmt: skip
    ran = []

    def suite(arguments):
        ran.append(arguments[0])
        if arguments[0] == "--three" and ran.count("--three") == 1:
            signal.raise_signal(signal.SIGALRM)
        return 1

    def child(arguments, flags, seconds):
        ran.append((arguments[0], flags))
        assert seconds > 0
        return -signal.SIGSEGV  # A crash with flags: it is noted, and not tried again.

    monkeypatch.setattr(scan_throughput, "main", suite)
    assert throughput.throughput_part(points, tmp_path, OVER, child=child) == (0, 3)
    assert ran == []
    assert throughput.throughput_part(points, tmp_path, LONG, child=child) == (2, 3)
    assert ran == ["--one", ("--two", "--xla_x"), "--three"]
    assert throughput.throughput_part(points, tmp_path, LONG, child=child) == (3, 3)
    assert ran[3:] == ["--three"]
    codes = [row["code"] for row in read_json_lines(tmp_path / throughput.CALLS_FILE)]
    assert codes == [1, -signal.SIGSEGV, 1]


def test_throughput_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variants, "build", builder({"plain": program(), "auto": program()}))
    monkeypatch.setattr(measure, "make_problem", cached_problem)
    points = [throughput.Point("a", ("--setting", "toy", "--dtype", dtype, "--mode", "train",
              "--variants", "auto")) for dtype in ("float32", "tf32")]  # fmt: skip
    done = throughput.throughput_part(points, tmp_path, LONG, rounds=2, min_seconds=0.0)
    assert done == (2, 2)
    assert "tf32 needs a GPU" in capsys.readouterr().err
    table = throughput.describe(tmp_path)
    assert "| toy | B 2, T 3, S 2, F 8, float32 | train |" in table
    assert "Of the limit" in table


def test_flags_are_those_of_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    script = '#!/bin/sh\necho "$XLA_FLAGS $XLA_PYTHON_CLIENT_PREALLOCATE $@" > "$0.log"\n'
    (tmp_path / "python").write_text(script + 'trap "exit 130" INT\nsleep $4 &\nwait\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("XLA_FLAGS", "--a")
    assert throughput.run_child(["0", "0"], "--b", 60.0) == 0
    log = (tmp_path / "python.log").read_text()
    assert log == "--a --b false -m benchmarks.scan_throughput 0 0\n"
    assert throughput.run_child(["0", "60"], "--b", 1.0) == 130


def test_unrolled_variants_are_there():
    assert set(variants.OTHERS) >= {"auto_unroll4", "auto_unroll8", "plain_unroll8"}


def test_profile(tmp_path, monkeypatch, capsys):
    work = jax.jit(lambda x: (x @ x).sum())
    x = jnp.ones((64, 64))
    run = program(run=lambda: work(x).block_until_ready())
    monkeypatch.setattr(variants, "build", lambda *_: run)
    monkeypatch.setattr(profiling, "make_problem", lambda *_: None)
    arguments = ["--toy", "--parts", "profile", "--dtype", "float32", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    (row,) = read_json_lines(tmp_path / profiling.FILE)
    assert any("fusion" in entry["name"] or "dot" in entry["name"] for entry in row["operations"])
    assert row["events_per_call"] >= 1
    assert row["busy_seconds_per_call"] > 0
    printed = capsys.readouterr().out
    assert "toy, float32, auto: " in printed
    assert "| Operation | Time per call | Share | Times per call |" in printed
    before = (tmp_path / profiling.FILE).read_text()
    assert command.main(arguments) == 0
    assert (tmp_path / profiling.FILE).read_text() == before


@pytest.mark.parametrize("module", list(pkgutil.iter_modules(accelerator.__path__)))
def test_examples(module):
    name = f"benchmarks.accelerator.{module.name}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_an_alarm_interrupts():
    with pytest.raises(KeyboardInterrupt), alarm(OVER):
        signal.pause()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("error", "code"),
    [(NonFiniteError("loss became nan"), 3), (KeyboardInterrupt(), 130), (ValueError("odd"), 2)],
)
def test_exit_codes(tmp_path, monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(command, "run_part", fail)
    assert command.main(["--parts", "profile", "--out", str(tmp_path)]) == code


def test_parts_share_what_is_left(tmp_path, monkeypatch):
    shares = []
    note = lambda part, given, share, configs: shares.append(share.left()) or True  # noqa: E731
    monkeypatch.setattr(command, "run_part", note)
    parts = ["correctness", "profile", "search"]
    assert command.main(["--parts", *parts, "--minutes", "3", "--out", str(tmp_path)]) == 0
    assert shares == [pytest.approx(60, abs=5), pytest.approx(90, abs=5), pytest.approx(180, abs=5)]


def test_tyro_is_needed_by_the_experiments_command_line_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(SystemExit, match=r"needs tyro: pip install -e '\.\[experiments\]'"):
        nth_farthest(["--steps", "1"])
    assert cli.EXIT_REFUSED == 2


MISSING = """
import sys
sys.modules.update(dict.fromkeys(("tyro", "tensorboardX", "torch")))
from benchmarks.accelerator.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
def test_all_parts_end_to_end_without_optional_packages(tmp_path):
    arguments = [
        *("--toy", "--no-progress", "--dtype", "float32", "--rounds", "2", "--out", str(tmp_path)),
        *("--seconds-each", "60", "--candidates", "fast", "--num-seeds", "2"),
        *("--minutes", "30", "--reserve-seconds", "1", "--target", "1.1"),
        *("--set", "train.steps=8", "train.chunk_steps=2", "train.eval_every=4"),
    ]
    for parts in (command.PARTS[:4], command.PARTS[4:]):  # All six would leave too many files.
        done = subprocess.run(
            [sys.executable, "-c", MISSING, *arguments, "--parts", *parts],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tensorboardX is not installed" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        *(correctness.FILE, throughput.FILE, throughput.CALLS_FILE, profiling.FILE),
        *("search.jsonl", "train_rmc.json", "train_lstm.json", "train_rmc.tar.00-of-01"),
    }
    rows = read_json_lines(tmp_path / throughput.FILE)
    assert {row["variant"] for row in rows} >= {"plain", "auto", "auto_unroll4", "lstm_width"}
    for name in ("train_rmc", "train_lstm"):
        summary = json.loads((tmp_path / f"{name}.json").read_text())["summary"]
        assert (summary["steps"], summary["ended_by"]) == (8, "steps")
    assert training.config_there(tmp_path, "train_rmc") is not None
