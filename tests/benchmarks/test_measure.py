"""Which variants are timed, and the contents of rows."""

import functools
import json

import numpy as np
import pytest

from benchmarks import agreement, measure, variants
from benchmarks.problem import make_problem
from benchmarks.roofline import Limits
from benchmarks.timing import Rounds
from tests.benchmarks.fakes import COMMON, TOY, builder, program

cached_problem = functools.cache(make_problem)
OPTIONS = measure.Options(rounds=3, warmup=1, min_seconds=0.0)


@pytest.fixture
def build(monkeypatch):
    monkeypatch.setattr(measure, "make_problem", cached_problem)

    def use(**programs):
        monkeypatch.setattr(variants, "build", builder(programs))

    return use


def rows_of(names, mode="forward", setting=TOY, options=OPTIONS, **more):
    rows = measure.measure(setting, mode, names, options, COMMON, **more)
    return {row["variant"]: row for row in rows}


def test_a_wrong_variant_is_not_timed(build):
    ran = []
    build(
        plain=program((1.0, 2.0)),
        auto=program((1.0, 2.0 + 1e-6)),
        scan=program((1.0, 2.1), run=lambda: ran.append("scan")),
        hoisted=program((1.0, np.nan), run=lambda: ran.append("hoisted")),
        lstm_width=program((7.0,), comparable=False),
    )
    rows = rows_of(["auto", "scan", "hoisted", "lstm_width"])
    assert {name: row["status"] for name, row in rows.items()} == {
        "plain": "ok",
        "auto": "ok",
        "scan": "disagrees",
        "hoisted": "disagrees",
        "lstm_width": "ok",
    }
    assert rows["scan"]["agreement"]["error"] == pytest.approx(0.1 / 5**0.5)
    assert "outputs is off by 4.47e-02" in rows["scan"]["reason"]
    assert rows["hoisted"]["agreement"]["error"] == np.inf
    assert "seconds" not in rows["scan"]
    assert ran == []
    assert "agreement" not in rows["lstm_width"]


def test_rows_of_timed_variants(build):
    build(plain=program(), auto=program())
    row = rows_of(["auto"])["auto"]
    json.dumps(row)
    assert row["seconds"]["n"] == len(row["samples"]) == 3
    assert row["sequences_per_second"] == pytest.approx(TOY.batch / row["seconds"]["median"])
    assert row["steps_per_second"] == pytest.approx(TOY.steps * row["sequences_per_second"])
    assert row["setting"]["width"] == 8
    assert row["slope"] is None
    limits, least = row["roofline"]["limits"], row["roofline"]["least_seconds"]
    assert least["compute"] == row["roofline"]["flops"] / limits["flops_per_second"]
    assert row["roofline"]["share"] == least["compute"] / row["seconds"]["median"]
    assert row["roofline"]["bound"] in ("compute", "memory", "launch")


def test_limits_are_the_best_of_all_looks(monkeypatch):
    looks = iter([Limits(2.0, 5.0, 0.1), Limits(3.0, 4.0, 0.2), Limits(1.0, 9.0, 0.05)])
    monkeypatch.setattr(measure, "_best_limits", {})
    monkeypatch.setattr(measure, "measure_limits", lambda dtype: next(looks))
    assert measure.limits_of("float32") == Limits(2.0, 5.0, 0.1)
    assert measure.limits_of("float32") == Limits(3.0, 5.0, 0.1)
    assert measure.limits_of("float32") == Limits(3.0, 9.0, 0.05)


def test_speedup_is_by_rounds(build, monkeypatch):
    build(plain=program(), auto=program())
    samples = {"plain": [1.0, 9.0, 4.0], "auto": [0.5, 3.0, 4.0]}
    monkeypatch.setattr(measure, "interleave", lambda programs, **_: Rounds(dict(samples)))
    rows = rows_of(["auto"])
    assert rows["auto"]["speedup"] == {"median": 2.0, "q1": 1.5, "q3": 2.5, "min": 1.0, "n": 3}
    assert rows["plain"]["speedup"]["q1"] == 1.0


def test_what_cannot_run(build):
    build(plain=program(), auto=RuntimeError("out of memory"))
    rows = rows_of(["auto", "torch"])
    assert (rows["auto"]["status"], rows["torch"]["status"]) == ("failed", "skipped")
    assert rows["auto"]["reason"] == "RuntimeError: out of memory"
    assert rows["torch"]["reason"] == "not here"


def test_results_of_another_shape_fail_that_variant_only(build):
    build(plain=program(), auto=program((1.0, 2.0, 3.0)), scan=program())
    rows = rows_of(["auto", "scan"])
    assert (rows["auto"]["status"], rows["scan"]["status"]) == ("failed", "ok")
    assert "outputs must have shape (2,), got (3,)" in rows["auto"]["reason"]


def test_nothing_is_timed_unchecked(build):
    build(plain=RuntimeError("out of memory"), auto=program(), gru_width=program(comparable=False))
    rows = rows_of(["auto", "gru_width"])
    assert rows["auto"]["status"] == "failed"
    assert "reference" in rows["auto"]["reason"]
    assert (rows["gru_width"]["status"], rows["gru_width"]["speedup"]) == ("ok", None)


def test_short_dtypes_are_compared_with_float32(build, monkeypatch):
    monkeypatch.setattr(measure, "float32_results", lambda *_: {"outputs": np.array([1.0, 2.0])})
    build(plain=program((1.0, 2.1)), auto=program((1.0, 1.9)), scan=program((1.0, 2.3)))
    rows = rows_of(["auto", "scan"], setting=TOY.replace(dtype="bfloat16"))
    assert rows["auto"]["status"] == "ok"
    assert rows["scan"]["status"] == "disagrees"
    assert rows["plain"]["agreement"]["tolerance"] == pytest.approx(0.2 / 5**0.5)


def test_interruption_keeps_the_rows_so_far(build):
    calls = []

    def run():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    build(plain=program(), auto=program(run=run))
    with pytest.raises(measure.Interrupted) as caught:
        rows_of(["auto", "torch"])
    rows = {row["variant"]: row for row in caught.value.rows}
    assert rows["auto"]["seconds"]["n"] == 1
    assert rows["torch"]["status"] == "skipped"


def test_slope(build):
    build(plain=program(), auto=program())
    options = measure.Options(rounds=3, warmup=1, min_seconds=0.0, slope=True)
    slope = rows_of(["auto"], options=options)["auto"]["slope"]
    assert slope["steps"] == [1, 3]
    assert slope["seconds_per_step"]["n"] == 3


def test_errors_name_what_differs():
    a, b = np.array([3.0, 4.0]), np.array([0.0, 1e-9])
    found = agreement.errors({"a": a, "b": b}, {"a": a, "b": 2 * b})
    # b is at the level of a's rounding.
    assert found["a"] == 0.0
    assert found["b"] < 1e-6
    assert agreement.worst({"a": 0.1, "b": float("nan")}) == ("b", float("inf"))
    with pytest.raises(ValueError, match=r"must have the names \['a'\], got \['b'\]"):
        agreement.errors({"b": b}, {"a": a})
    with pytest.raises(ValueError, match=r"a must have shape \(2,\), got \(1,\)"):
        agreement.errors({"a": a[:1]}, {"a": a})
