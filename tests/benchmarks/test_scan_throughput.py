"""The command line from end to end, in the smallest setting."""

import json
import os

import pytest

from benchmarks import jax_programs, measure, scan_throughput, variants
from benchmarks.problem import make_problem
from benchmarks.settings import SETTINGS, SWEEPS
from experiments.common import environment
from experiments.common.records import read_rows

TOY = ["--setting", "toy", "--rounds", "2", "--warmup", "1", "--min-seconds", "0"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Rows of two variants in both modes, and of streaming."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    # Of so few rows "auto" would be the plain scan.
    command = [*TOY, "--variants", "hoisted", "--out", str(path)]
    for more in (["--mode", "forward", "--slope"], ["--mode", "train"], ["--streaming"]):
        assert scan_throughput.main([*command, *more]) == 0
    return path


def test_rows(out):
    rows = {(row["mode"], row["variant"]): row for row in read_rows(out)}
    modes = ("forward", "train", "streaming")
    assert set(rows) == {(mode, name) for mode in modes for name in ("plain", "hoisted")}
    for (mode, name), row in rows.items():
        assert row["status"] == "ok", row["reason"]
        assert row["seconds"]["n"] == row["speedup"]["n"] == 2
        assert row["costs"]["compile_seconds"] > 0
        assert row["costs"]["trace_seconds"] > 0
        assert row["costs"]["temporary_bytes"] > 0
        assert 0 <= row["agreement"]["error"] < 1e-5
        assert (row["agreement"]["error"] == 0) == (name == "plain")
        assert row["threads"] == environment.count_cores()
        assert row["environment"]["packages"]["jax"]
        assert (row["slope"] is not None) == (mode == "forward")
    train = rows["train", "hoisted"]
    assert train["parameters"] == rows["train", "plain"]["parameters"] == 776
    assert train["agreement"]["array"] != "outputs"
    assert train["costs"]["program"] != rows["train", "plain"]["costs"]["program"]
    sizes = rows["streaming", "hoisted"]["setting"]
    assert (sizes["batch"], sizes["steps"]) == (1, 1)


def test_the_plain_scan_is_the_reference_s_own_program(out):
    scan = variants.build("scan", make_problem(SETTINGS["toy"]), "train")
    (plain,) = (
        row for row in read_rows(out) if (row["mode"], row["variant"]) == ("train", "plain")
    )
    assert scan.costs.program == plain["costs"]["program"] is not None


def test_finished_rows_are_not_measured_again(out, monkeypatch, capsys):
    command = [*TOY, "--variants", "hoisted", "--out", str(out), "--mode", "forward"]
    before = out.read_text()

    def refuse(*_):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(scan_throughput, "measure", refuse)
        assert scan_throughput.main([*command, "--slope"]) == 0
        assert out.read_text() == before
        assert "already measured" in capsys.readouterr().err
        with pytest.raises(AssertionError, match="measured again"):
            scan_throughput.main([*command, "--rounds", "3"])

    # A new variant is measured with the reference, whose row stays unchanged.
    asked = []

    def note(setting, mode, names, options, common, progress):
        asked.append(names)
        row = {"schema": 1, "setting": {}, "mode": mode, "status": "skipped", "reason": ""}
        return [row | {"variant": name} | common for name in ("plain", *names)]

    monkeypatch.setattr(scan_throughput, "measure", note)
    assert scan_throughput.main([*command, "--variants", "hoisted", "scan"]) == 0
    assert asked == [["scan"]]
    added = out.read_text().removeprefix(before).splitlines()
    assert [json.loads(line)["variant"] for line in added] == ["scan"]
    out.write_text(before)


def test_interruption_keeps_rows(tmp_path, monkeypatch, capsys):
    row = {"variant": "auto", "status": "skipped", "reason": "no reason"}

    def interrupt(*_):
        raise measure.Interrupted([row, row | {"variant": "not asked for"}])

    monkeypatch.setattr(scan_throughput, "measure", interrupt)
    out = tmp_path / "rows.jsonl"
    assert scan_throughput.main([*TOY, "--variants", "auto", "--out", str(out)]) == 130
    assert json.loads(out.read_text()) == row
    assert "run the same command to resume" in capsys.readouterr().err


def test_a_variant_that_disagrees_fails_the_command(monkeypatch):
    rows = [{"variant": "auto", "status": "disagrees", "reason": "wrong"}]
    monkeypatch.setattr(scan_throughput, "measure", lambda *_: rows)
    assert scan_throughput.main(TOY) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--variants", "fast"], "variant must be one of plain, auto"),
        (["--variants", "auto:some"], "or IMPLEMENTATION:REMAT"),
        (["--threads", "9999"], "threads must be from 1 to"),
        (["--dtype", "tf32"], "tf32 needs a GPU"),
        (["--slope", "--streaming"], "--slope has no meaning"),
        (["--rounds", "0"], "must be at least 1"),
        (["--min-seconds=-1"], "must be finite and at least 0, got -1"),
        (["--minutes", "nan"], "must be positive, got nan"),
    ],
)
def test_what_is_refused(given, message, capsys):
    with pytest.raises(SystemExit) as caught:
        scan_throughput.main([*TOY, *given])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_plan():
    parse = scan_throughput.parser().parse_args
    points = list(scan_throughput.plan(parse(["--setting", "toy", "rl", "--mode", "train"])))
    assert points == [(SETTINGS["toy"], "train"), (SETTINGS["rl"], "train")]

    # The setting itself is a point of every axis, and measured once.
    swept = list(scan_throughput.plan(parse(["--setting", "toy", "--sweep", "--mode", "train"])))
    assert len(swept) == 3
    assert {(s.batch, s.steps) for s, _ in swept} == {(2, 3), (1, 3), (2, 2)}
    one = list(scan_throughput.plan(parse(["--setting", "toy", "--sweep", "--axes", "T"])))
    assert {(s.batch, s.steps) for s, _ in one} == {(2, 3), (2, 2)}

    streaming = list(scan_throughput.plan(parse(["--setting", "cpu", "--streaming"])))
    assert [(s.batch, s.steps, s.slots, mode) for s, mode in streaming] == [(1, 1, 8, "streaming")]


def test_every_setting_has_a_sweep():
    assert SWEEPS.keys() == SETTINGS.keys()


def test_remat_is_one_more_variant(monkeypatch):
    asked = []
    monkeypatch.setattr(scan_throughput, "measure", lambda *args: asked.append(args[2]) or [])
    given = ["--mode", "train", "--variants", "scan", "gru_width", "--remat", "full"]
    scan_throughput.main([*TOY, *given])
    assert asked == [["plain", "scan", "gru_width", "scan:full"]]


def test_every_implementation_can_be_asked_for():
    for name in (*variants.NAMES, *(f"{name}:full" for name in variants.IMPLEMENTATIONS)):
        assert variants.check_name(name) == name


def test_threads(monkeypatch):
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3, 5}, raising=False)
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda _, processors: kept.append(processors), raising=False
    )
    assert environment.count_cores() == 3
    environment.limit_threads(2)
    assert kept == [[3, 5]]
    with pytest.raises(ValueError, match="threads must be from 1 to 3, got 4"):
        environment.limit_threads(4)


def test_caches_do_not_shorten_compiling():
    args = (jax_programs.jnp.ones(3),)
    traced = []

    def noted(x):
        traced.append(1)
        return x * 2

    jax_programs.jax.jit(noted).lower(*args)
    compiled, _ = jax_programs.compile_apart(noted, args)
    assert len(traced) == 2
    assert compiled(*args).tolist() == [2.0] * 3
