"""Files that outlive a crash: JSON lines, and whole files that are replaced in one piece."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.common.refused import RefusedError

Row = dict[str, Any]

_state = {"writes": True}


def only_read() -> None:
    """This process writes no files from now on: another process of the same run does."""
    _state["writes"] = False


def writes() -> bool:
    """Whether this process writes files."""
    return _state["writes"]


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: a reader, or a crash, sees the old or the new one, whole."""
    if not writes():
        return
    # Named by the process, so that two writers never fill one temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """As `write_text`, for JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      FileNotFoundError: there is none.
      RefusedError: it is empty or torn; the message names the file.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # Of JSON, or of its encoding.
        raise RefusedError(f"{path} is empty or damaged ({error})") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; none if there is no file.

    What a crash leaves at the end, half a row or zero bytes, is left out with a message.

    Raises:
      RefusedError: a line before that is no row; the message names the file and the line.
    """
    rows, _ = _read(path)
    return rows


class RowWriter:
    """Appends rows to a JSON-lines file; each is handed to the system as a whole line at once.

    Args:
      path: the file; it and its directory are made if missing. What a crash left at its end is cut
        off.
      keep: how many of its rows to keep (default: all).

    Attributes:
      count: rows in the file.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self._file: Any = None
        if not writes():
            self.count = 0
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, ends = _read(path)
        self.count = len(rows) if keep is None else min(keep, len(rows))
        if path.exists():
            os.truncate(path, ends[self.count])
        # Nothing is buffered here: what failed to be written is not tried again at the exit.
        self._file = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row; numbers that JSON lacks become null."""
        if self._file is None:
            return
        line = json.dumps(finite(row), allow_nan=False).encode() + b"\n"
        while line:
            line = line[self._file.write(line) :]
        self.count += 1

    def sync(self) -> None:
        """Brings all rows to the disk; to be called before what counts on them is written."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows at the end of a file."""
    writer = RowWriter(path)
    try:
        for row in rows:
            writer.write(row)
        writer.sync()
    finally:
        writer.close()


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for.

    >>> finite({"loss": float("nan"), "steps": [1, 2.0]})
    {'loss': None, 'steps': [1, 2.0]}
    """
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> tuple[list[Row], list[int]]:
    """The rows, and the byte at which each of 0, 1, ... rows ends."""
    content = path.read_bytes() if path.exists() else b""
    lines = content.splitlines(keepends=True)
    # A crash leaves half a line, or zeros where the system had made room but not written yet.
    while lines and (not lines[-1].endswith(b"\n") or b"\0" in lines[-1]):
        lines.pop()
    ends = [0]
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RefusedError(f"{path}, line {number}: not a row of JSON: {line[:60]!r}")
        rows.append(row)
        ends.append(ends[-1] + len(line))
    if ends[-1] < len(content):
        torn = len(content) - ends[-1]
        print(f"{path}: {torn} bytes of a torn last row are left out", file=sys.stderr)
    return rows, ends
