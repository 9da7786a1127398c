"""Checks that a variant is never slower than another: ``python -m benchmarks.check FILE.jsonl``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import Row, describe_sizes, key, read_or_exit
from benchmarks.variants import IMPLEMENTATIONS, REFERENCE

EPILOG = """A point counts as slower if the median of the paired ratios is below 1 - TOLERANCE and
three quarters of the rounds were slower. Points where both compile the same program are ignored,
because their times differ only by chance. Exit codes: 0 no such point, 1 there are some (or the
variant failed or disagrees somewhere), 2 there is nothing to check."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.check",
        description=f"Lists the points where a variant is slower than {REFERENCE}.",
        epilog=EPILOG,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--variant", default="auto", help="the variant (default: auto)")
    parser.add_argument(
        "--tolerance", type=float, default=0.02, help="share that is no difference (default: 0.02)"
    )
    parser.add_argument(
        "--against-best",
        action="store_true",
        help="compare with the fastest of rrnn_jax.RNN's implementations at each point as well",
    )
    given = parser.parse_args(args)
    rows = read_or_exit(given.files)
    checked = [row for row in rows if row["variant"] == given.variant]
    checked = [row for row in checked if row["status"] != "skipped"]
    if not checked:
        print(f"no row of variant {given.variant}", file=sys.stderr)
        return 2
    same = [row for row in checked if is_the_reference(row, rows)]
    offenders = [
        text
        for row in checked
        if row not in same and (text := fault(row, rows, given.tolerance, given.against_best))
    ]
    for text in offenders:
        print(text)
    note = f" ({len(same)} run the reference's own program)" if same else ""
    print(f"{given.variant}: {len(checked)} points, {len(offenders)} of them at fault{note}")
    return 1 if offenders else 0


def is_the_reference(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a row's program equals the reference's at the same point and place."""
    program = row["costs"].get("program") if row["status"] == "ok" else None
    if program is None:
        return False
    reference = key(row | {"variant": row["reference"]})
    return any(
        other["status"] == "ok"
        and other["costs"].get("program") == program
        and key(other) == reference
        for other in rows
    )


def fault(row: Row, rows: Sequence[Row], tolerance: float, against_best: bool = False) -> str:
    """The fault of a row; empty if there is none.

    Args:
      row: the row of the checked variant.
      rows: all rows.
      tolerance: a ratio of medians above ``1 - tolerance`` counts as equal.
      against_best: also compare with other implementations at the same point.
    """
    where = f"{row['setting']['name']} ({describe_sizes(row)}), {row['mode']}: "
    if row["status"] != "ok":
        return f"{where}{row['status']}: {row['reason']}"
    if row["speedup"] is None:
        return f"{where}there is no reference"
    own = row["speedup"]
    if own["median"] < 1 - tolerance and own["q3"] < 1:
        spread = f"quartiles {own['q1']:.3f} to {own['q3']:.3f}, n {own['n']}"
        return f"{where}{own['median']:.3f} times as fast as {row['reference']} ({spread})"
    for other in rows if against_best else ():
        theirs = other["speedup"] if _is_rival(other, row) else None
        if theirs is None or own["q3"] >= theirs["q1"]:
            continue
        ratio = own["median"] / theirs["median"]  # Both are ratios to the same reference.
        if ratio < 1 - tolerance:
            return f"{where}{ratio:.3f} times as fast as {other['variant']}"
    return ""


def _is_rival(other: Row, row: Row) -> bool:
    """Whether a row is that of another implementation at the same point and place."""
    return (
        other["status"] == "ok"
        and other["variant"] in IMPLEMENTATIONS
        and other["variant"] != row["variant"]
        and key(other | {"variant": row["variant"]}) == key(row)
    )


if __name__ == "__main__":
    sys.exit(main())
