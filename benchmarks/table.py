"""Measurements as a Markdown table: ``python -m benchmarks.table FILE.jsonl``."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Row, flags, is_base, read_or_exit
from experiments.common import markdown

TITLES = {
    "plain": "`flax.linen.RNN`",
    "auto": "`rrnn_jax.RNN`",
    "torch": "PyTorch",
    "torch_compile": "PyTorch, compiled",
    "torch_bmm": "PyTorch, bmm",
    "torch_port": "PyTorch, as ports do",
    "lstm_width": "LSTM, same width",
    "lstm_params": "LSTM, same weights",
    "gru_width": "GRU, same width",
    "gru_params": "GRU, same weights",
    "cudnn_lstm_width": "cuDNN LSTM, same width",
    "cudnn_lstm_params": "cuDNN LSTM, same weights",
}
"""Display names of variants in tables and plots; others keep their names."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.table", description="Prints measurements as a Markdown table."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--variants", nargs="+", help="columns, in order (default: all)")
    parser.add_argument("--sweep", action="store_true", help="points of sweeps too")
    parser.add_argument(
        "--details", action="store_true", help="also compile time, memory and share of the limit"
    )
    given = parser.parse_args(args)
    rows = [row for row in read_or_exit(given.files) if given.sweep or is_base(row)]
    if given.variants:
        rows = [row for row in rows if row["variant"] in given.variants]
    measured = {_place(row) for row in rows if row["status"] == "ok"}
    rows = [row for row in rows if _place(row) in measured]
    if not rows:
        print("error: there are no measured rows to show", file=sys.stderr)
        return 2
    # One table for each machine, because times of different machines are not comparable.
    for place in dict.fromkeys(map(_place, rows)):
        here = [row for row in rows if _place(row) == place]
        print(table(here, given.variants))
        print()
        if given.details:
            print(details(here))
            print()
        print(caption(here))
        print()
    return 0


def table(rows: Sequence[Row], variants: Sequence[str] | None = None) -> str:
    """Median times by setting and variant, with the speed-up over the reference."""
    names = variants or list(dict.fromkeys(row["variant"] for row in rows))
    points: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        points.setdefault(_point(row), {})[row["variant"]] = row
    head = ["Setting", "Sizes", "Mode", *(TITLES.get(name, f"`{name}`") for name in names)]
    lines = [
        [*point, *(_cell(by_variant.get(name)) for name in names)]
        for point, by_variant in points.items()
    ]
    return markdown.table(head, lines)


def details(rows: Iterable[Row]) -> str:
    """Compile time, working memory, rates and share of the machine's limit, a line for each row."""
    head = [
        "Setting", "Sizes", "Mode", "Variant", "Trace + compile", "Temporary memory",
        "Sequences / s", "Steps / s", "Limit", "Products alone", "Of the limit",
    ]  # fmt: skip
    lines = []
    for row in rows:
        if row["status"] != "ok":
            continue
        costs, roofline = row["costs"], row["roofline"]
        compiling = "-"
        if costs["compile_seconds"] is not None:
            tracing = costs["trace_seconds"]
            compiling = f"{costs['compile_seconds']:.2f} s"
            compiling = f"{tracing:.2f} + {compiling}" if tracing is not None else compiling
        lines.append([
            *_point(row),
            TITLES.get(row["variant"], f"`{row['variant']}`"),
            compiling,
            human_bytes(costs["temporary_bytes"]),
            f"{row['sequences_per_second']:,.0f}",
            f"{row['steps_per_second']:,.0f}",
            roofline["bound"],
            f"{roofline['share']:.0%}",
            f"{roofline['share_of_bound']:.0%}",
        ])  # fmt: skip
    return markdown.table(head, lines)


def _short(commit: str) -> str:
    """A short commit with its suffix.

    >>> _short("0123456789abcdef-dirty")
    '0123456-dirty'
    """
    head, dash, rest = commit.partition("-")
    return head[:7] + dash + rest


def caption(rows: Sequence[Row]) -> str:
    """The machine, versions and rounds of the rows."""
    environment = rows[0]["environment"]
    versions = {name: environment["packages"][name] for name in ("jax", "jaxlib", "flax")}
    if any(row["variant"].startswith("torch") and row["status"] == "ok" for row in rows):
        versions["torch"] = environment["torch"]
    versions["Python"] = environment["python"]
    counts = sorted({row["seconds"]["n"] for row in rows if row["status"] == "ok"})
    rounds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    commits = sorted({_short(str(row["environment"]["git_commit"])) for row in rows})
    commands = dict.fromkeys(row["environment"]["command"] for row in rows)
    lines = [
        f"{_device(environment)}, {rows[0]['threads']} threads; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; commit {', '.join(commits)}. Medians of {rounds} rounds; in brackets the median of "
        "the rounds' ratios to `flax.linen.RNN`. Made by:",
        "",
        "```bash",
        *commands,
        "```",
    ]
    return "\n".join(lines)


def human_seconds(seconds: float) -> str:
    """Seconds with three digits in a suitable unit.

    >>> human_seconds(0.01234), human_seconds(1.5e-4), human_seconds(12.0)
    ('12.3 ms', '150 µs', '12.0 s')
    """
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    factor, unit = next((entry for entry in units if seconds >= entry[0]), units[-1])
    value = seconds / factor
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def human_bytes(count: int | None) -> str:
    """Bytes in a suitable unit.

    >>> human_bytes(1 << 20), human_bytes(1536), human_bytes(None)
    ('1.0 MiB', '1.5 KiB', '-')
    """
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row["status"] != "ok":
        return row["status"]
    text = human_seconds(row["seconds"]["median"])
    if row["variant"] == row["reference"] or row["speedup"] is None:
        return text
    return f"{text} ({row['speedup']['median']:.2f}x)"


def _point(row: Row) -> tuple[str, str, str]:
    sizes: dict[str, Any] = row["setting"]
    letters = {"B": "batch", "T": "steps", "S": "slots", "F": "width"}
    text = ", ".join(f"{letter} {sizes[name]}" for letter, name in letters.items())
    return sizes["name"], f"{text}, {sizes['dtype']}", row["mode"]


def _place(row: Row) -> tuple[Any, ...]:
    return _device(row["environment"]), row["threads"], flags(row["environment"])


def _device(environment: Row) -> str:
    name = environment["device"]
    if environment["platform"] == "cpu":
        name = f"{environment['processor']} (CPU)"
    told = flags(environment)
    return f"{name}, `{told}`" if told else name


if __name__ == "__main__":
    sys.exit(main())
