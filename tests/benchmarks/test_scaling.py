"""Scaling: collectives are read from programs, times are those of the model, workers measure."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import scaling
from benchmarks.collectives import Collective, all_reduce_seconds, efficiency, find_collectives
from benchmarks.program import UnavailableError
from experiments.common.records import read_rows

PROGRAM = """
%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body.1 (state: (s32[], bf16[4,2])) -> (s32[], bf16[4,2]) {
  %all-gather.3 = bf16[4,2]{1,0} all-gather(%part), channel_id=3, dimensions={0}
}

ENTRY %main (w: f32[300]) -> f32[300] {
  %loop = (s32[], bf16[4,2]) while(%start), condition=%condition.1, body=%body.1
  %all-reduce-start = f32[300]{0} all-reduce-start(%gradient), channel_id=1, to_apply=%add
  %all-reduce-done = f32[300]{0} all-reduce-done(%all-reduce-start)
  %all-reduce.2 = (f32[], f32[2]{0}) all-reduce(%loss, %right), channel_id=2, to_apply=%add
}
"""


def test_collectives_of_a_program():
    assert find_collectives(PROGRAM) == [
        Collective("all-reduce", 1200, False),
        Collective("all-gather", 16, True),
        Collective("all-reduce", 12, False),
    ]
    assert find_collectives("%a = f32[3] add(%all-reduce.1, %b)") == []
    with pytest.raises(ValueError, match=r"program must have collectives of pred, .*, got f8e5m2"):
        find_collectives("%a = f8e5m2[3] all-reduce(%b)")


@pytest.mark.parametrize(
    ("kind", "types", "size"),
    [
        ("all-gather", "(f32[2,4]{1,0:T(8,128)}, f32[8,4]{1,0:T(8,128)})", 128),
        ("all-gather", "((f32[2]{0}, s32[]), (f32[8]{0}, s32[4]{0}))", 48),
        ("collective-permute", "(bf16[6]{0}, bf16[6]{0}, u32[]{:S(2)}, u32[]{:S(2)})", 12),
        ("reduce-scatter", "((f32[8]{0}), f32[2]{0}, u32[])", 8),
        ("all-reduce", "((f32[8]{0:T(128)(2,1)}, f32[]), (f32[8]{0}, f32[]))", 36),
        ("all-reduce", "(f32[8]{0}, f32[])", 36),
    ],
)
def test_the_size_of_an_asynchronous_collective_is_that_of_its_results(kind, types, size):
    found = find_collectives(f"  %a = {types} {kind}-start(%b), channel_id=1")
    assert found == [Collective(kind, size, False)]


def test_times_by_hand():
    megabyte = 1e6
    within = 2 * 7 / 8 * megabyte / 450e9 + 8.4e-6 + 2 * 7 * 4e-6
    assert all_reduce_seconds(megabyte, 8) == pytest.approx(within)
    across = within + 2 * 7 / 8 * megabyte / 8 / 50e9 + 2 * 3 * 14e-6
    assert all_reduce_seconds(megabyte, 64) == pytest.approx(across)
    times = [all_reduce_seconds(megabyte, gpus) for gpus in (1, 2, 8, 16, 64, 1024)]
    assert times == sorted(times)
    assert efficiency(across, megabyte, 64) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [("--gpus", "8"), ("--gpus", "--tpus", "4")])
def test_a_step_compiled_for_devices_has_one_all_reduce_of_its_gradient(devices, tmp_path):
    out = tmp_path / "rows.jsonl"
    options = ["--devices", "--processes", *devices, "--rows", "2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *options],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "not compiled" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    (row,) = read_rows(out)
    found = row["collectives"]
    large = [each for each in found if each["size"] > 1000]
    assert [(each["kind"], each["repeats"]) for each in large] == [("all-reduce", False)]
    assert sum(each["size"] for each in found if each["size"] <= 1000) < 100  # The metrics.


def test_report_of_measured_and_compiled_rows(monkeypatch, tmp_path, capsys):
    def measure(given, devices, processes):
        found = {"updates_per_second": 8.0 / devices, "median_updates_per_second": 1.0}
        return {"kind": "measured", "devices": devices, "processes": processes} | found

    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr(scaling, "compile_update", lambda problem, devices, target: PROGRAM)
    out = tmp_path / "rows.jsonl"
    options = ["--gpus", "8", "--tpus", "4", "--step-ms", "1", "--out", str(out)]
    assert scaling.main(options) == 0
    printed = capsys.readouterr().out
    assert "| 2 | 1 | 4 | 0.50 |\n" in printed
    assert "all-reduce of 1.2 KiB, all-gather of 16.0 B at every step of a loop" in printed
    assert "| 1024 | 260 µs | 79.3% |" in printed
    assert "Compiled for 4 chips of a TPU v5e, one update has: all-reduce of 1.2 KiB" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["measured"] * 4 + ["compiled"] * 2
    assert rows[-1]["bytes"] == 1228

    def unavailable(problem, devices, target):
        raise UnavailableError("it needs packages")

    monkeypatch.setattr(scaling, "compile_update", unavailable)
    assert scaling.main(["--gpus", "8"]) == 0
    assert "not compiled for 8 GPUs: it needs packages" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_measure_devices_and_processes(capsys):
    sizes = ["--batch-size", "8", "--chunks", "1", "--gpus"]
    assert scaling.main([*sizes, "--devices", "1", "2", "--processes", "2"]) == 0
    printed = capsys.readouterr().out
    assert "| 2 | 2 | " in printed


def test_the_median_of_an_even_number_of_chunks(monkeypatch):
    ends = iter([0, 9, 0, 1, 0, 2, 0, 4, 0, 5])  # The first chunk is not timed.
    programs = SimpleNamespace(
        init=lambda: None, compile=lambda *_: None, train_chunk=lambda *_: (None, None)
    )
    monkeypatch.setattr(scaling, "Programs", lambda *_: programs)
    monkeypatch.setattr(scaling, "time", SimpleNamespace(perf_counter=lambda: next(ends)))
    config = scaling.make_config("small", 8)
    row = scaling.work(config, 4, devices=1, processes=1, index=0, coordinator="")
    assert row["updates_per_second"] == scaling._STEPS / 1
    assert row["median_updates_per_second"] == scaling._STEPS / 3


def test_bad_options(capsys):
    for options, message in (
        (["--chunks", "0"], "argument --chunks: must be at least 1, got 0"),
        (["--step-ms", "0"], "argument --step-ms: must be positive, got 0"),
        (["--devices", "1", "3"], "--devices must divide --batch-size=256, got [3]"),
        (["--gpus", "4", "12"], "--gpus must be at most 8 or a multiple of it, got [12]"),
    ):
        with pytest.raises(SystemExit):
            scaling.main(options)
        assert message in capsys.readouterr().err
