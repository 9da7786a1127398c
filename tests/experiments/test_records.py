"""What a crash leaves: a torn tail is left out, anything else is an error with its place."""

import json
import os
import subprocess
import sys

import pytest

from experiments.common.records import RowWriter, append_rows, read_json, read_rows, write_text
from experiments.common.refused import RefusedError

WHOLE = b'{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("torn", [b'{"a": 3', b"\0" * 9, b'{"a"\0\0\0\n', b"\0\0\n\0\0\n\0", b"{}"])
def test_a_torn_tail_is_left_out_and_cut_off(tmp_path, torn, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(WHOLE + torn)
    assert [row["a"] for row in read_rows(path)] == [1, 2]
    message = f"{path}: {len(torn)} bytes of a torn last row are left out\n"
    assert capsys.readouterr().err == message
    assert path.read_bytes() == WHOLE + torn  # Reading changes nothing.
    append_rows(path, [{"a": 3}])
    assert path.read_bytes() == WHOLE + b'{"a": 3}\n'
    capsys.readouterr()
    assert len(read_rows(path)) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rubbish", [b"\0\0\0\n", b"rubbish\n", b"3\n", b"\n", b"\xff\xfe\n"])
def test_rubbish_elsewhere_is_an_error_with_file_and_line(tmp_path, rubbish):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(WHOLE + rubbish + WHOLE)
    with pytest.raises(RefusedError, match=r"rows\.jsonl, line 3: not a row of JSON: b'"):
        read_rows(path)
    with pytest.raises(RefusedError, match="line 3"):
        RowWriter(path)
    assert path.read_bytes() == WHOLE + rubbish + WHOLE


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "rows.jsonl") == []
    assert not list(tmp_path.iterdir())


def test_rows_are_on_their_way_to_the_disk_as_soon_as_they_are_written(tmp_path):
    writer = RowWriter(tmp_path / "deep" / "rows.jsonl")
    writer.write({"loss": float("nan"), "steps": (1, 2)})
    assert read_rows(tmp_path / "deep" / "rows.jsonl") == [{"loss": None, "steps": [1, 2]}]
    assert writer.count == 1
    writer.close()


def test_only_so_many_rows_are_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(WHOLE)
    for keep, left in ((5, 2), (1, 1), (0, 0)):
        writer = RowWriter(path, keep)
        writer.close()
        assert writer.count == len(read_rows(path)) == left


def test_json_that_is_empty_or_torn_is_named(tmp_path):
    for content in (b"", b'{"a": ', b"\0\0", b"\xff"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(RefusedError, match=r"config\.json is empty or damaged"):
            read_json(tmp_path / "config.json")


def test_a_file_is_replaced_in_one_piece(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert len(synced) == 1

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "newer")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


FILL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
from pathlib import Path
from experiments.common.records import RowWriter
writer = RowWriter(Path(sys.argv[1]))
try:
    for step in range(1000):
        writer.write({"step": step})
except OSError as error:
    print(error.strerror, step)
writer.close()
"""


def test_a_full_disk_tears_the_last_row_alone(tmp_path):
    """The limit of a file's size stands for it."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path / "rows.jsonl")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("File too large 8\n", "", 0)
    assert (tmp_path / "rows.jsonl").stat().st_size == 100
    assert [row["step"] for row in read_rows(tmp_path / "rows.jsonl")] == list(range(8))
    assert json.dumps({"step": 8}) not in (tmp_path / "rows.jsonl").read_text()
