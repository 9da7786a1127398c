"""What a call leaves behind: few small files, to be brought back from another machine.

A run directory is kept as one archive, cut into pieces. It holds the newest checkpoint alone, and
nothing that can be made again.
"""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

MAX_FILES = 8
"""Files that a call may leave."""

MAX_BYTES = 60 * 2**20
"""Bytes that they may have together."""

PIECE_BYTES = 15 * 2**20
"""Bytes of a piece of an archive, at most."""

OVERHEAD_BYTES = 2 * 2**20
"""Room for what is beside the arrays of a run: metrics, timings, the checkpoint's own records."""

_LEFT_OUT = ("tensorboard", "plots")
_PIECE = re.compile(r"(.+)\.tar\.(\d\d)-of-(\d\d)")


class TooLargeError(ValueError):
    """A call would leave more than can be brought back."""


def state_bytes(state: Any) -> int:
    """Bytes of a tree of arrays, or of the `jax.eval_shape` of one."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def count_pieces(size: int) -> int:
    """Pieces of an archive of a run whose state has so many bytes.

    >>> count_pieces(2**20), count_pieces(16 * 2**20)
    (1, 2)
    """
    return -(-(size + OVERHEAD_BYTES) // PIECE_BYTES)


def check_fits(states: Mapping[str, int], other_files: int) -> None:
    """Refuses what would not fit, before any of it is made.

    Args:
      states: bytes of the state of each run to be kept, by name.
      other_files: files that are left beside these.

    Raises:
      TooLargeError: too many files, or too many bytes.
    """
    pieces = sum(count_pieces(size) for size in states.values())
    total = sum(size + OVERHEAD_BYTES for size in states.values())
    if pieces + other_files > MAX_FILES or total > MAX_BYTES:
        sizes = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in states.items())
        raise TooLargeError(
            f"one call may leave {MAX_FILES} files of {MAX_BYTES / 2**20:.0f} MiB together; these "
            f"checkpoints ({sizes}) would come to {pieces + other_files} files of "
            f"{total / 2**20:.1f} MiB. Ask for fewer seeds, or for one training part in a call."
        )


def pack(run_dir: Path, out: Path, name: str) -> list[Path]:
    """Writes a run directory as ``<name>.tar.00-of-02`` and so on; replaces what was there.

    Args:
      run_dir: with its newest checkpoint.
      out: where the pieces go.
      name: the run's.

    Returns:
      The pieces, in order.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in _kept(run_dir):
            archive.add(path, path.relative_to(run_dir).as_posix(), recursive=False)
    content = buffer.getbuffer()
    starts = range(0, len(content), PIECE_BYTES)
    paths = [out / f"{name}.tar.{i:02d}-of-{len(starts):02d}" for i in range(len(starts))]
    temporary = [path.with_name(path.name + ".tmp") for path in paths]
    for path, start in zip(temporary, starts, strict=True):
        path.write_bytes(content[start : start + PIECE_BYTES])
    for old in pieces(out, name):
        old.unlink()
    for new, path in zip(temporary, paths, strict=True):
        new.replace(path)
    return paths


def unpack(out: Path, name: str, run_dir: Path) -> bool:
    """Restores a run directory from its pieces.

    Args:
      out: where the pieces are.
      name: the run's.
      run_dir: where it goes.

    Returns:
      Whether there was anything to restore.

    Raises:
      ValueError: a piece is missing or damaged.
    """
    found = pieces(out, name)
    if not found:
        return False
    number = int(found[0].name[-2:])
    wanted = [f"{name}.tar.{i:02d}-of-{number:02d}" for i in range(number)]
    if [path.name for path in found] != wanted:
        have = ", ".join(path.name for path in found)
        raise ValueError(f"{out} must hold {', '.join(wanted)}, got {have}")
    buffer = io.BytesIO(b"".join(path.read_bytes() for path in found))
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=buffer, mode="r") as archive:
            archive.extractall(run_dir, filter="data")
    except tarfile.TarError as error:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{names} in {out} are not a whole archive: {error}") from error
    return True


def pieces(out: Path, name: str) -> list[Path]:
    """The pieces of a run in a directory, in order."""
    matches = ((path, _PIECE.fullmatch(path.name)) for path in out.glob(f"{name}.tar.*"))
    return sorted(path for path, match in matches if match and match[1] == name)


def bring(source: Path, out: Path) -> None:
    """Copies what another call left, without its access rights; `source` may be read-only.

    Raises:
      FileNotFoundError: `source` is no directory.
      FileExistsError: `out` holds results already.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"--resume-from: there is no directory {source}")
    if source.resolve() == out.resolve():
        return
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise FileExistsError(
            f"--out {out} holds results already; leave --resume-from out to go on with them, or "
            "choose another --out"
        )
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, out / path.name)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file. A torn last line is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _kept(run_dir: Path) -> list[Path]:
    """What of a run directory goes into its archive."""
    checkpoints = run_dir / "checkpoints"
    steps = [path for path in checkpoints.glob("*") if path.name.isdigit()]
    newest = max(steps, key=lambda path: int(path.name), default=None)
    found = []
    for path in sorted(run_dir.rglob("*")):
        parts = path.relative_to(run_dir).parts
        if parts[0] in _LEFT_OUT:
            continue
        if len(parts) > 1 and parts[0] == "checkpoints" and checkpoints / parts[1] != newest:
            continue
        found.append(path)
    return found
