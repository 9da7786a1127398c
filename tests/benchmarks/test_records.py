"""Rows on disk: the last one counts, an incomplete one does not, finished ones are skipped."""

import json
import math

import pytest

from benchmarks import records
from benchmarks.settings import SETTINGS
from experiments.common.records import append_rows
from tests.benchmarks.fakes import ENVIRONMENT, TOY, row


def test_the_last_row_of_a_key_counts(tmp_path):
    path = tmp_path / "results" / "rows.jsonl"
    append_rows(path, [row(seconds=1.0), row("plain", seconds=2.0)])
    append_rows(path, [row(seconds=3.0)])
    found = records.read_measurements([path])
    assert [(r["variant"], r["seconds"]["median"]) for r in found] == [
        ("auto", 3.0),
        ("plain", 2.0),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "train"},
        {"threads": 1},
        {"variant": "scan"},
        {"setting": row()["setting"] | {"batch": 7}},
        {"environment": ENVIRONMENT | {"xla_flags": "--xla_x"}},
        {"environment": ENVIRONMENT | {"glibc_tunables": "glibc.malloc.hugetlb=1"}},
        {"environment": ENVIRONMENT | {"device": "another"}},
    ],
)
def test_other_measurements_have_other_keys(change):
    assert records.key(row() | change) != records.key(row())
    newer = {"environment": ENVIRONMENT | {"git_commit": "else"}, "seconds": None}
    assert records.key(row() | newer) == records.key(row())


def test_a_torn_line_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row("plain"), row("auto")])
    whole = path.read_text()
    path.write_text(whole[:-30])
    assert [r["variant"] for r in records.read_measurements([path])] == ["plain"]
    append_rows(path, [row("auto")])
    assert path.read_text() == whole


def test_numbers_that_json_lacks(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [row() | {"agreement": {"errors": [math.inf, math.nan, 1.0]}}])
    assert json.loads(path.read_text())["agreement"] == {"errors": [None, None, 1.0]}


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row() | {"schema": 0}) + "\n")
    with pytest.raises(ValueError, match="must have schema 1, got 0"):
        records.read_measurements([path])


def test_rows_of_another_tree_are_announced(tmp_path, capsys):
    path, here = tmp_path / "rows.jsonl", records.describe_environment()
    other = here | {"packages": here["packages"] | {"jax": "0.1"}}
    append_rows(path, [row(x) | {"environment": e} for x, e in (("a", here), ("b", other))])
    names = {"name": lambda found: found["variant"]}
    assert [*records.read_finished(path, **names)] == ["a", "b"]
    said = f"{path}: 1 rows of another commit or other versions, "
    assert capsys.readouterr().err == f"{said}kept\n"
    assert [*records.read_finished(path, **names, here=True)] == ["a"]
    assert capsys.readouterr().err == f"{said}not used\n"
    assert records.read_finished(None, **names) == {}
    assert records.read_finished(tmp_path / "none.jsonl", **names) == {}
    assert capsys.readouterr().err == ""


def test_finished():
    assert records.is_finished(row(), rounds=10)
    assert not records.is_finished(row(), rounds=11)
    assert not records.is_finished(row() | {"status": "failed"}, rounds=1)
    assert records.is_finished(row() | {"status": "skipped", "seconds": None}, rounds=1)
    assert not records.is_finished(row(), rounds=10, slope=True)
    assert records.is_finished(row() | {"slope": {"steps": [1, 2]}}, rounds=10, slope=True)


def test_points_of_a_sweep():
    swept = [TOY.replace(batch=batch) for batch in (4, 1)]
    rows = [row(setting=setting) for setting in (*swept, TOY, TOY.replace(steps=9, batch=1))]
    assert [r["setting"]["batch"] for r in records.axis_points(rows, "toy", "batch")] == [1, 2, 4]
    assert [records.is_base(r) for r in rows] == [False, False, True, False]
    assert records.is_base(row(setting=TOY.replace(dtype="bfloat16")))
    assert not records.is_base(row(setting=TOY.replace(name="unheard of")))
    streaming = SETTINGS["cpu"].replace(batch=1, steps=1)
    assert records.is_base(row(setting=streaming, mode="streaming"))
