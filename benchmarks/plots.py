"""Plots of measurements: ``python -m benchmarks.plots FILE.jsonl --out-dir DIRECTORY``."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.records import Row, axis_points, flags, is_base, read_or_exit
from benchmarks.settings import AXES
from benchmarks.table import TITLES
from benchmarks.variants import REFERENCE
from rrnn_jax.visualize.style import COLOURS, WIDTH, new_figure

HATCHES = ("", "//", "..", "xx")
MARKERS = ("o", "s", "^", "D")


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.plots", description="Draws measurements into PNG files."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--out-dir", type=Path, required=True, help="where the plots go")
    parser.add_argument("--variants", nargs="+", help="what to draw, in order (default: all)")
    given = parser.parse_args(args)
    rows = [row for row in read_or_exit(given.files) if row["status"] == "ok"]
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


Value = Callable[[Row], tuple[float, float, float]]
"""Median and quartiles of a row's plotted value."""


class Look(NamedTuple):
    """The style of a variant in all figures."""

    colour: str
    hatch: str
    marker: str


def looks(variants: Iterable[str]) -> dict[str, Look]:
    """The styles of variants by name: black for the reference, a colour for each of the others.

    With more variants than colours the colours repeat with the next hatch and marker.

    >>> found = looks(["plain", *"abcdefg"])
    >>> found["plain"].colour, found["a"].colour == found["g"].colour, found["g"].hatch
    ('black', True, '//')
    """
    found = {REFERENCE: Look("black", "", "o")}
    for number, name in enumerate(name for name in variants if name != REFERENCE):
        again, place = divmod(number, len(COLOURS))
        again %= len(HATCHES)
        found[name] = Look(COLOURS[place], HATCHES[again], MARKERS[again])
    return found


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """All figures of the rows, with their names: one set for each machine, mode and dtype."""
    look = looks(dict.fromkeys(row["variant"] for row in rows))
    places = _place_names(rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        key = places[_place(row)], row["mode"], row["setting"]["dtype"]
        groups.setdefault(key, []).append(row)
    for (place, mode, dtype), group in groups.items():
        suffix = f"{place}_{mode}_{dtype}"
        title = f"{mode}, {dtype}, {_device(group[0])}"
        named = [row for row in group if is_base(row)]
        others = [row for row in named if row["variant"] != REFERENCE and row["speedup"]]
        if others:
            heading = f"{title}: speed-up over flax.linen.RNN"
            yield f"speedup_{suffix}", bars_figure(others, look, _speedup, heading, reference=1.0)
        if named:
            heading = f"{title}: products alone, % of the time taken"
            yield f"share_{suffix}", bars_figure(named, look, _share, heading)
        if named and mode == "streaming":
            yield f"rate_{suffix}", bars_figure(named, look, _rate, f"{title}: steps per second")
        if mode == "streaming":
            continue
        for setting in dict.fromkeys(row["setting"]["name"] for row in group):
            figure = sweep_figure(group, look, setting, f"{setting}, {title}")
            if figure is not None:
                yield f"sweep_{setting}_{suffix}", figure


def bars_figure(
    rows: Sequence[Row],
    look: Mapping[str, Look],
    value: Value,
    title: str,
    reference: float | None = None,
) -> Figure:
    """A bar for each variant and setting, with quartiles as whiskers.

    Args:
      rows: rows of one machine, mode and dtype.
      look: the style of each variant, in the order of the bars.
      value: the plotted value.
      title: title of the figure.
      reference: a value drawn as a line.
    """
    settings = list(dict.fromkeys(row["setting"]["name"] for row in rows))
    present = [name for name in look if any(row["variant"] == name for row in rows)]
    width = 0.84 / len(present)
    figure = new_figure(max(WIDTH, 0.8 + 0.16 * len(settings) * len(present)), 3.2)
    axes = figure.add_subplot()
    for i, name in enumerate(present):
        bars = [row for row in rows if row["variant"] == name]
        middle, low, high = zip(*map(value, bars), strict=True)
        offset = (i - (len(present) - 1) / 2) * width
        axes.bar(
            [settings.index(row["setting"]["name"]) + offset for row in bars],
            middle,
            width,
            yerr=np.abs(np.array([low, high]) - middle),
            label=_title(name),
            color=look[name].colour,
            hatch=look[name].hatch,
            edgecolor="white",
            linewidth=0.5,
            error_kw={"linewidth": 0.8, "ecolor": "grey" if name == REFERENCE else "black"},
        )
    if reference is not None:
        axes.axhline(reference, color="black", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(settings)), settings)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.25, axis="y")
    axes.tick_params(labelsize=8)
    figure.legend(loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def sweep_figure(
    rows: Sequence[Row], look: Mapping[str, Look], setting: str, title: str
) -> Figure | None:
    """Time against each swept size, a panel for each; None without a sweep."""
    panels = {}
    for size, letter in AXES.items():
        points = axis_points(rows, setting, size)
        if len({row["setting"][size] for row in points}) > 1:
            panels[letter] = "width" if size == "head_size" else size, points
    if not panels:
        return None
    figure = new_figure(1.0 + 2.1 * len(panels), 3.0)
    for number, (letter, (size, points)) in enumerate(panels.items()):
        first = figure.axes[0] if number else None
        axes = figure.add_subplot(1, len(panels), number + 1, sharey=first)
        _draw_panel(axes, points, size, look)
        axes.set_xlabel(letter, fontsize=8)
        axes.set_ylabel("" if number else "ms per call", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=9)
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def _draw_panel(axes: Axes, points: Sequence[Row], size: str, look: Mapping[str, Look]) -> None:
    for name in look:
        line = [row for row in points if row["variant"] == name]
        if not line:
            continue
        x = [row["setting"][size] for row in line]
        low, middle, high = (
            [1e3 * row["seconds"][part] for row in line] for part in ("q1", "median", "q3")
        )
        style = {"marker": look[name].marker, "markersize": 3, "linewidth": 1.2}
        axes.fill_between(x, low, high, color=look[name].colour, alpha=0.2, linewidth=0)
        axes.plot(x, middle, color=look[name].colour, label=_title(name), **style)
    values = sorted({row["setting"][size] for row in points})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=7)


def _speedup(row: Row) -> tuple[float, float, float]:
    return row["speedup"]["median"], row["speedup"]["q1"], row["speedup"]["q3"]


def _share(row: Row) -> tuple[float, float, float]:
    seconds, least = row["seconds"], row["roofline"]["least_seconds"]["compute"]
    low, middle, high = (100 * least / seconds[part] for part in ("q3", "median", "q1"))
    return middle, low, high


def _rate(row: Row) -> tuple[float, float, float]:
    seconds, steps = row["seconds"], row["setting"]["batch"] * row["setting"]["steps"]
    low, middle, high = (steps / seconds[part] for part in ("q3", "median", "q1"))
    return middle, low, high


def _place(row: Row) -> tuple[str, str, int, str]:
    environment = row["environment"]
    where = environment["device"], environment["processor"]
    return *where, row["threads"], flags(environment)


def _place_names(rows: Iterable[Row]) -> dict[tuple[str, str, int, str], str]:
    """Short names of the machines: ``cpu_2``, with a number if that is taken."""
    names: dict[tuple[str, str, int, str], str] = {}
    for row in rows:
        short = f"{row['environment']['platform']}_{row['threads']}"
        same = sum(name.split("-")[0] == short for name in names.values())
        names.setdefault(_place(row), f"{short}-{same + 1}" if same else short)
    return names


def _title(name: str) -> str:
    return TITLES.get(name, name).replace("`", "")


def _device(row: Row) -> str:
    environment = row["environment"]
    if environment["platform"] == "cpu":
        return f"{row['threads']} CPU threads"
    return environment["device"]


if __name__ == "__main__":
    sys.exit(main())
