"""Rows of measurements: keys for replacement, and selection by setting or sweep."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.settings import SETTINGS, Setting
from experiments.common.environment import describe_environment
from experiments.common.records import Row, read_rows

SCHEMA = 1
"""Version of rows; increased whenever a field changes its meaning."""


def about(benchmark: str, **more: Any) -> Row:
    """The fields common to all rows of a benchmark: schema, its name, `more`, and environment."""
    return {"schema": SCHEMA, "benchmark": benchmark, **more, "environment": describe_environment()}


def key(row: Mapping[str, Any]) -> str:
    """The key of a row's point and machine: later rows with the same key replace earlier ones."""
    environment = row["environment"]
    parts = {name: row[name] for name in ("setting", "mode", "variant", "threads")}
    parts["device"] = environment["device"], environment["processor"]
    parts["flags"] = flags(environment)
    return json.dumps(parts, sort_keys=True)


def flags(environment: Mapping[str, Any]) -> str:
    """The flags for XLA and the C library's allocator in the environment.

    >>> flags({"xla_flags": "", "glibc_tunables": "glibc.malloc.hugetlb=1"})
    'glibc.malloc.hugetlb=1'
    """
    told = environment["xla_flags"], environment.get("glibc_tunables", "")
    return " ".join(filter(None, told))


def is_finished(row: Mapping[str, Any], rounds: int, slope: bool = False) -> bool:
    """Whether a row has enough rounds and, if requested, a slope; or was skipped."""
    if row["status"] == "skipped":
        return True
    if row["status"] != "ok" or row["seconds"]["n"] < rounds:
        return False
    return not slope or row["slope"] is not None


def read_measurements(paths: Iterable[Path]) -> list[Row]:
    """The rows of JSON-lines files, the last one of each key.

    Raises:
      FileNotFoundError: a file does not exist.
      ValueError: a row has another schema or is of another command, or a line is not a row.
    """
    rows: dict[str, Row] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no measurements in {path}")
        for row in read_rows(path):
            rows[_name_of(row, key, path)] = row
    return list(rows.values())


def read_finished(
    path: Path | None, name: Callable[[Row], Any], here: bool = False
) -> dict[Any, Row]:
    """The rows of a file that a command appends to, the last one of each name.

    A line tells how many are of another commit or of other versions of packages.

    Args:
      path: the file; without one there are no rows.
      name: what a row is about, given the row.
      here: whether to leave rows of another commit or of other versions out.

    Raises:
      ValueError: a row has another schema or is of another command.
    """
    now, kept, others = describe_environment(), {}, 0
    for row in read_rows(path) if path is not None else ():
        found, made = _name_of(row, name, path), row.get("environment", {})
        foreign = any(made.get(each) != now[each] for each in ("git_commit", "packages"))
        others += foreign
        if not (foreign and here):
            kept[found] = row
    if others:
        used = "not used" if here else "kept"
        print(f"{path}: {others} rows of another commit or other versions, {used}", file=sys.stderr)
    return kept


def _name_of(row: Row, name: Callable[[Row], Any], path: Path | None) -> Any:
    """The name of a row.

    Raises:
      ValueError: it has another schema, or is of another command.
    """
    if (schema := row.get("schema", SCHEMA)) != SCHEMA:
        raise ValueError(f"rows of {path} must have schema {SCHEMA}, got {schema}")
    try:
        return name(row)
    except (KeyError, TypeError):
        other = row.get("benchmark", "another command")
        raise ValueError(
            f"rows of {path} must be those this command reads, got those of {other}"
        ) from None


def read_or_exit(paths: Iterable[Path]) -> list[Row]:
    """As `read_measurements`, for commands: an error is a message and exit code 2."""
    try:
        return read_measurements(paths)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def is_base(row: Mapping[str, Any]) -> bool:
    """Whether a row has the sizes of its named setting, not of a point of a sweep."""
    sizes, base = row["setting"], SETTINGS.get(row["setting"]["name"])
    if base is None:
        return False
    if row["mode"] == "streaming":
        base = base.replace(batch=1, steps=1)
    return Setting(**_fields(sizes)) == base.replace(dtype=sizes["dtype"])


def axis_points(rows: Iterable[Row], setting: str, size: str) -> list[Row]:
    """The rows of a sweep: those that differ from the named setting in one size at most.

    Args:
      rows: rows of one mode and dtype.
      setting: the name of the setting at the centre of the sweep.
      size: the size that differs, a key of `settings.AXES`.

    Returns:
      The rows by rising size.
    """
    base = SETTINGS[setting]
    found = []
    for row in rows:
        sizes = row["setting"]
        changed = base.replace(**{size: sizes[size], "dtype": sizes["dtype"]})
        if sizes["name"] == setting and Setting(**_fields(sizes)) == changed:
            found.append(row)
    return sorted(found, key=lambda row: row["setting"][size])


def describe_sizes(row: Mapping[str, Any]) -> str:
    """The sizes of a row in one line."""
    return Setting(**_fields(row["setting"])).describe()


def _fields(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if name != "width"}
