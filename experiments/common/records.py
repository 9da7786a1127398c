"""Crash-safe files: JSON lines, and files that are replaced atomically."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.common.refused import RefusedError

Row = dict[str, Any]

_state = {"writes": True}


def only_read() -> None:
    """From now on this process writes no files; another process of the run does."""
    _state["writes"] = False


def writes() -> bool:
    """Whether this process writes files."""
    return _state["writes"]


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically: after a crash it is the whole old or the whole new file."""
    if not writes():
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, of the same suffix, that replaces `path` in the end if nothing fails."""
    # Named after the process, so that two writers never use the same temporary file.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
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
      FileNotFoundError: the file does not exist.
      RefusedError: it is empty or incomplete; the message names the file.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # Of JSON, or of its encoding.
        raise RefusedError(f"{path} is empty or damaged ({error})") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; none if it does not exist.

    An incomplete row or zero bytes at the end, left by a crash, are ignored with a message.

    Raises:
      RefusedError: another line is not a row; the message names the file and the line.
    """
    rows, _ = _read(path)
    return rows


class RowWriter:
    """Appends rows to a JSON-lines file, each with a single write of a whole line.

    Args:
      path: the file; it and its directory are created if missing. An incomplete row at its end is
        removed.
      keep: number of rows to keep (default: all).

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
        # Unbuffered, so that a failed write is not repeated at exit.
        self._file = path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row; numbers that JSON cannot represent become null."""
        if self._file is None:
            return
        line = json.dumps(finite(row), allow_nan=False).encode() + b"\n"
        while line:
            line = line[self._file.write(line) :]
        self.count += 1

    def sync(self) -> None:
        """Writes all rows to the disk; call it before writing files that rely on them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a file."""
    writer = RowWriter(path)
    try:
        for row in rows:
            writer.write(row)
        writer.sync()
    finally:
        writer.close()


def finite(value: Any) -> Any:
    """Replaces numbers that JSON cannot represent by None.

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
    # A crash leaves an incomplete line, or zeros in allocated but unwritten space.
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
