"""The report of a grid: table, figure, findings."""

import csv
import dataclasses
import io
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.ablations.collect import RowNumbers, collect, read_kept, threshold_of
from experiments.ablations.config import PRESETS, Config
from experiments.ablations.findings import describe, describe_base
from experiments.ablations.grid import BASE, RowConfig, base_values
from experiments.ablations.problems import describe_task
from experiments.common import markdown
from experiments.common.loop import NonFiniteError
from experiments.common.options import changed_options
from experiments.common.records import replacing, write_json, write_text
from experiments.common.report import points, spread
from rrnn_jax.visualize import bars_figure

FILES = {
    "table.csv": "{}.csv",
    "table.md": "{}.md",
    "findings.md": "{}_findings.md",
    "ablations.png": "{}.png",
    "numbers.json": "{}.json",
}
"""The report's files, and the names of their copies among results, by preset."""
MISSING = "-"


def write_report(
    config: Config, rows: Mapping[str, RowConfig], run_dir: Path, results: Path | None = None
) -> str:
    """Writes the files of `FILES` into the grid's directory.

    Args:
      config: the grid's config.
      rows: all its rows.
      run_dir: the directory above those of the rows.
      results: a directory for a copy, or None, see `gather`.

    Returns:
      Findings and table in Markdown.

    Raises:
      FileNotFoundError: the base is not finished.
      NonFiniteError: the base's loss became NaN or infinite.
      RefusedError: see `gather`.
    """
    numbers = gather(rows, run_dir, results)
    if BASE not in numbers:
        raise FileNotFoundError(f"the base is not trained in {run_dir}: nothing to compare with")
    if not numbers[BASE].accuracy:
        raise NonFiniteError(f"the base's loss became NaN in {run_dir}: nothing to compare with")
    missing = [name for name in rows if name not in numbers]
    findings = describe(config, numbers, missing)
    table = to_markdown(numbers)
    environment = numbers[BASE].environment | {
        "command": grid_command(config, rows, numbers),
        "processors": list(dict.fromkeys(n.environment["processor"] for n in numbers.values())),
    }
    write_text(run_dir / "table.md", f"{describe_base(config)}\n\n{table}")
    write_text(run_dir / "table.csv", to_csv(numbers))
    write_text(run_dir / "findings.md", findings)
    content = {
        "task": describe_task(config),
        "base": base_values(config),
        "config": dataclasses.asdict(config),
        "environment": environment,
        "commits": sorted({c for n in numbers.values() for c in n.environment["git_commits"]}),
        "not_run": missing,
        "rows": {name: _numbers(row, numbers[BASE]) for name, row in numbers.items()},
    }
    write_json(run_dir / "numbers.json", content)
    figure = bars_figure(
        **_effects(numbers, base_values(config)),
        title=f"Ablations: {describe_task(config)}, {config.train.steps:,} updates",
        reference=("", BASE),
        x_label="accuracy minus the base's with the same seed (points); dots: seeds, lines: 95 %",
    )
    with replacing(run_dir / "ablations.png") as temporary:
        figure.savefig(temporary, dpi=200)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        for name, copy in FILES.items():
            with replacing(results / copy.format(config.preset)) as temporary:
                shutil.copyfile(run_dir / name, temporary)
    return f"{findings}\n{table}"


def gather(
    rows: Mapping[str, RowConfig], run_dir: Path, results: Path | None
) -> dict[str, RowNumbers]:
    """The numbers of the finished rows, by name.

    Rows without a finished run have the numbers of the copy in `results`, so a grid may be trained
    on several machines.

    Raises:
      RefusedError: the copy is of a grid with another config.
    """
    found = collect(rows, run_dir)
    if results is not None:
        copy = FILES["numbers.json"].format(rows[BASE].config.preset)
        found = read_kept(rows, results / copy) | found
    return {name: found[name] for name in rows if name in found}


def grid_command(config: Config, rows: Mapping[str, RowConfig], done: Iterable[str]) -> str:
    """A command that makes the finished rows of a grid.

    >>> config = PRESETS["quick"]
    >>> rows = dict.fromkeys(("base", "slots_1", "lstm"))
    >>> grid_command(config, rows, rows)
    'python -m experiments.ablations --preset quick'
    >>> grid_command(config, rows, ["base", "lstm"])
    'python -m experiments.ablations --preset quick --only base lstm'
    """
    done = set(done)
    only = [] if done == set(rows) else ["--only", *(name for name in rows if name in done)]
    changes = changed_options(config, PRESETS[config.preset])
    start = ["python", "-m", "experiments.ablations", "--preset", config.preset]
    return shlex.join([*start, *changes, *only])


def to_markdown(numbers: Mapping[str, RowNumbers]) -> str:
    """The table."""
    base = numbers[BASE]
    threshold = threshold_of(float(base.trivial_accuracy or 0))
    head = [
        *("factor", "value", "accuracy (%), mean (lowest to highest seed)"),
        *("against base (points), 95% interval", f"updates to {threshold:.0%}, mean"),
        *("parameters", "updates/s", "seconds"),
    ]
    lines = []
    for row in numbers.values():
        cells = [row.row.factor or "base", "" if row.row.row == BASE else row.row.label]
        if not row.accuracy:
            cells += ["NaN", *[MISSING] * 5]
        else:
            cells += [
                spread(row.accuracy),
                MISSING if row is base else points(row.against(base)),
                _updates(row.updates_to),
                f"{row.parameters:,}",
                f"{row.updates_per_second:.1f}",
                f"{row.seconds:.0f}",
            ]
        lines.append(cells)
    return markdown.table(head, lines) + "\n"


def to_csv(numbers: Mapping[str, RowNumbers]) -> str:
    """The table with a line for each row and seed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = (
        "row,factor,value,seed,accuracy,updates_to_threshold,parameters,updates_per_second,seconds"
    )
    writer.writerow(names.split(","))
    for name, row in numbers.items():
        seeds = row.row.config.train.seeds
        start = [name, row.row.factor, row.row.label]
        if not row.accuracy:
            writer.writerow([*start, "", "nan", "", "", "", ""])
        for seed, accuracy, updates in zip(seeds, row.accuracy, row.updates_to, strict=False):
            reached = "" if updates is None else updates
            end = [row.parameters, row.updates_per_second, row.seconds]
            writer.writerow([*start, seed, round(accuracy, 5), reached, *end])
    return buffer.getvalue()


def _numbers(row: RowNumbers, base: RowNumbers) -> dict[str, Any]:
    """A row's numbers for JSON."""
    fields = row._asdict()
    config = fields.pop("row")
    environment = fields.pop("environment")
    fields |= {"commits": environment["git_commits"], "processor": environment["processor"]}
    has_verdict = row is not base and row.accuracy
    found = row.against(base)._asdict() if has_verdict else {}
    return {"factor": config.factor, "value": config.label, "against_base": found, **fields}


def _updates(updates: list[int | None]) -> str:
    """Mean of the seeds that reached the threshold, and their number if not all did."""
    arrived = [step for step in updates if step is not None]
    if not arrived:
        return "never"
    mean = f"{sum(arrived) / len(arrived):,.0f}"
    return mean if len(arrived) == len(updates) else f"{mean} ({len(arrived)} of {len(updates)})"


def _effects(numbers: Mapping[str, RowNumbers], base: Mapping[str, str]) -> dict[str, Any]:
    """Groups and intervals of `bars_figure`: differences from the base in points, by seed."""
    groups: dict[str, dict[str, list[float]]] = {}
    intervals: dict[tuple[str, str], tuple[float, float]] = {}
    for row in numbers.values():
        if not row.accuracy:
            continue
        factor, label = row.row.factor, row.row.label
        heading = f"{factor} (base: {base[factor]})" if factor else ""
        pairs = zip(row.accuracy, numbers[BASE].accuracy, strict=True)
        groups.setdefault(heading, {})[label] = [100 * (a - b) for a, b in pairs]
        if factor and (interval := row.against(numbers[BASE]).interval):
            intervals[heading, label] = 100 * interval[0], 100 * interval[1]
    return {"groups": groups, "intervals": intervals}
