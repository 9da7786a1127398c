"""Plots of measurements: ``python -m benchmarks.plots FILE.jsonl --out-dir DIRECTORY``."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.records import Row, axis_points, is_base, read_rows
from benchmarks.settings import AXES
from benchmarks.table import TITLES
from rrnn_jax.visualize.style import COLOURS, WIDTH, new_figure

HATCHES = ("", "//", "..", "xx")
MARKERS = ("o", "s", "^", "D")
"""The colours come again with the next hatch or marker."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.plots", description="Draws measurements into PNG files."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--out-dir", type=Path, required=True, help="where the plots go")
    parser.add_argument("--variants", nargs="+", help="what to draw, in order (default: all)")
    given = parser.parse_args(args)
    rows = [row for row in read_rows(given.files) if row["status"] == "ok"]
    if given.variants:
        wanted = [row for row in rows if row["variant"] in given.variants]
        rows = sorted(wanted, key=lambda row: given.variants.index(row["variant"]))
    if not rows:
        print("there are no rows to draw", file=sys.stderr)
        return 2
    given.out_dir.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(rows):
        path = given.out_dir / f"{name}.png"
        figure.savefig(path, dpi=150)
        print(path)
    return 0


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """All figures that the rows make, with their names: one set for each machine, mode, dtype."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        environment = row["environment"]
        place = environment["platform"], row["threads"], environment["xla_flags"]
        groups.setdefault((*place, row["mode"], row["setting"]["dtype"]), []).append(row)
    flags = list(dict.fromkeys(key[2] for key in groups))
    for (platform, threads, xla_flags, mode, dtype), group in groups.items():
        number = flags.index(xla_flags)
        place = f"{platform}_{threads}" + (f"_flags{number}" if number else "")
        suffix = f"{place}_{mode}_{dtype}"
        title = f"{mode}, {dtype}, {_device(group[0])}"
        named = [row for row in group if is_base(row)]
        if named:
            yield (
                f"speedup_{suffix}",
                bars_figure(
                    named,
                    variants,
                    _speedup,
                    f"{title}: speed-up over flax.linen.RNN",
                    reference=1.0,
                ),
            )
            yield (
                f"share_{suffix}",
                bars_figure(
                    named, variants, _share, f"{title}: products alone, % of the time taken"
                ),
            )
        if named and mode == "streaming":
            yield (
                f"rate_{suffix}",
                bars_figure(named, variants, _rate, f"{title}: steps per second"),
            )
        if mode == "streaming":
            continue
        for setting in dict.fromkeys(row["setting"]["name"] for row in group):
            figure = sweep_figure(group, variants, setting, f"{setting}, {title}")
            if figure is not None:
                yield f"sweep_{setting}_{suffix}", figure


Value = Callable[[Row], tuple[float, float, float] | None]
"""Median and quartiles of what is drawn of a row; None if it has none."""


def bars_figure(
    rows: Sequence[Row],
    variants: Sequence[str],
    value: Value,
    title: str,
    reference: float | None = None,
) -> Figure:
    """Bars of the variants beside each other, for each setting; quartiles as whiskers.

    Args:
      rows: of one mode and dtype.
      variants: all variants; each keeps its colour from figure to figure.
      value: what is drawn.
      title: of the figure.
      reference: a value drawn as a line.
    """
    settings = list(dict.fromkeys(row["setting"]["name"] for row in rows))
    present = [name for name in variants if any(row["variant"] == name for row in rows)]
    width = 0.84 / len(present)
    figure = new_figure(max(WIDTH, 0.8 + 0.16 * len(settings) * len(present)), 3.2)
    axes = figure.add_subplot()
    for i, name in enumerate(present):
        label = _title(name)
        for row in rows:
            found = value(row) if row["variant"] == name else None
            if found is None:
                continue
            middle, low, high = found
            position = settings.index(row["setting"]["name"]) + (i - (len(present) - 1) / 2) * width
            axes.bar(
                position, middle, width, label=label, color=_colour(variants, name),
                hatch=_again(HATCHES, variants, name), edgecolor="white", linewidth=0.5,
                yerr=[[middle - low], [high - middle]], error_kw={"linewidth": 0.8},
            )  # fmt: skip
            label = None
    if reference is not None:
        axes.axhline(reference, color="black", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(settings)), settings)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.25, axis="y")
    axes.tick_params(labelsize=8)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def sweep_figure(
    rows: Sequence[Row], variants: Sequence[str], setting: str, title: str
) -> Figure | None:
    """Time against each size that was swept, a panel for each; None if none was."""
    panels = {}
    for size, letter in AXES.items():
        points = axis_points(rows, setting, size)
        if len({row["setting"][size] for row in points}) > 1:
            panels[letter] = "width" if size == "head_size" else size, points
    if not panels:
        return None
    figure = new_figure(1.0 + 2.1 * len(panels), 3.0)
    for number, (letter, (size, points)) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        for name in variants:
            line = [row for row in points if row["variant"] == name]
            if not line:
                continue
            x = [row["setting"][size] for row in line]
            colour = _colour(variants, name)
            low, middle, high = (
                [1e3 * row["seconds"][part] for row in line] for part in ("q1", "median", "q3")
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                x, middle, color=colour, marker=_again(MARKERS, variants, name), markersize=3,
                linewidth=1.2, label=_title(name) if number == 0 else None,
            )  # fmt: skip
        values = sorted({row["setting"][size] for row in points})
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        axes.set_xlabel(letter, fontsize=8)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=7)
        if number == 0:
            axes.set_ylabel("ms per call", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def _speedup(row: Row) -> tuple[float, float, float] | None:
    speedup = row["speedup"]
    return speedup and (speedup["median"], speedup["q1"], speedup["q3"])


def _share(row: Row) -> tuple[float, float, float]:
    seconds, least = row["seconds"], row["roofline"]["least_seconds"]["compute"]
    low, middle, high = (100 * least / seconds[part] for part in ("q3", "median", "q1"))
    return middle, low, high


def _rate(row: Row) -> tuple[float, float, float]:
    seconds, steps = row["seconds"], row["setting"]["batch"] * row["setting"]["steps"]
    low, middle, high = (steps / seconds[part] for part in ("q3", "median", "q1"))
    return middle, low, high


def _colour(variants: Sequence[str], name: str) -> str:
    return COLOURS[variants.index(name) % len(COLOURS)]


def _again(looks: Sequence[str], variants: Sequence[str], name: str) -> str:
    """The next look every time that the colours have run out."""
    return looks[variants.index(name) // len(COLOURS) % len(looks)]


def _title(name: str) -> str:
    return TITLES.get(name, name).replace("`", "")


def _device(row: Row) -> str:
    environment = row["environment"]
    if environment["platform"] == "cpu":
        return f"{row['threads']} CPU threads"
    return environment["device"]


if __name__ == "__main__":
    sys.exit(main())
