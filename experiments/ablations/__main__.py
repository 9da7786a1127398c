"""Command line of the ablations: ``python -m experiments.ablations --help``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.ablations.config import PRESETS, Config
from experiments.ablations.grid import BASE, RowConfig, make_rows
from experiments.ablations.problems import check
from experiments.ablations.report import gather, write_report
from experiments.ablations.train import is_done, train_row
from experiments.common.cli import (
    EXIT_NON_FINITE,
    EXIT_REFUSED,
    DirectoryOptions,
    exit_code,
    parse,
)
from experiments.common.launch import run_commands
from experiments.common.loop import NonFiniteError, end_of
from experiments.common.options import changed_options

DESCRIPTION = """Ablations of the Relational Memory Core: a base, and rows that differ from it in
one setting each. Trains the unfinished rows, several at once, and writes the table (CSV,
Markdown), the figure and the findings. Options override the preset's base for all rows."""


@dataclasses.dataclass(frozen=True)
class GridOptions(DirectoryOptions):
    """Where and how to run the grid; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the grid's report, with a subdirectory for the run of each row. With an existing
    directory finished rows are skipped and others resume. Default: runs/ablations/<preset>."""
    jobs: int = 2
    """Rows at once, each a process with one thread. 1: in this process, one after the other."""
    only: tuple[str, ...] = ()
    """Names of rows to train; the report includes all finished rows and needs the base. Default:
    all."""
    list: bool = False
    """Print the rows, and do nothing."""
    train: bool = True
    """Train unfinished rows before the report."""
    report: bool = True
    """Write the report of the finished rows."""
    results: Path | None = None
    """Directory that gets a copy of table, figure, findings and numbers. Rows without a run keep
    the numbers of a copy there."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {self.jobs}")


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    config, options = parse(
        PRESETS,
        "ablations",
        DESCRIPTION,
        args,
        GridOptions(),
        check,
        lambda config: Path(config.preset),
    )
    run_dir = options.run_dir
    assert run_dir is not None
    rows = make_rows(config)
    if options.list:
        for row in rows.values():
            what = f"{row.factor} {row.label}" if row.factor else "the base"
            print(f"{row.row}: {what}")
        return 0
    unknown = [name for name in options.only if name not in rows]
    if unknown:
        what = f"--only {' '.join(unknown)}: no such row; there are {', '.join(rows)}"
        print(f"error: {what}", file=sys.stderr)
        return EXIT_REFUSED
    codes: list[int] = []

    def action() -> None:
        chosen = [rows[name] for name in options.only or rows]
        todo = [row for row in chosen if not is_done(row, run_dir / row.row)]
        if options.train:
            print(f"{len(chosen) - len(todo)} of {len(chosen)} rows are done", flush=True)
            codes.extend(_train(config, todo, run_dir, options))
        if not options.report:
            return
        is_partial = options.train and options.only and BASE not in options.only
        if is_partial and BASE not in gather(rows, run_dir, options.results):
            print("no report yet: the base is missing (--only base)")
            return
        print(write_report(config, rows, run_dir, options.results))

    return exit_code(action) or next(filter(None, codes), 0)


def command_of(name: str, run_dir: Path, config: Config) -> list[str]:
    """The command that trains one row of a grid in its own process.

    >>> " ".join(command_of("heads_1", Path("runs/a"), PRESETS["quick"])[3:])
    '--preset quick --run-dir runs/a --only heads_1 --jobs 1 --no-report --no-progress'
    """
    changes = changed_options(config, PRESETS[config.preset])
    return [
        *(sys.executable, "-m", "experiments.ablations", "--preset", config.preset, *changes),
        *("--run-dir", str(run_dir), "--only", name, "--jobs", "1", "--no-report"),
        "--no-progress",
    ]


def _train(
    config: Config, todo: Sequence[RowConfig], run_dir: Path, options: GridOptions
) -> list[int]:
    """Trains rows; returns the exit codes. A row whose loss became NaN is a valid result."""
    if options.jobs > 1:
        commands = {run_dir / row.row: command_of(row.row, run_dir, config) for row in todo}
        codes = run_commands(commands, options.jobs, options.progress, config.train.minutes)
        return [code for code in codes.values() if code != EXIT_NON_FINITE]
    until = end_of(config.train)
    for row in todo:
        try:
            summary = train_row(row, run_dir / row.row, options.progress, until)
        except NonFiniteError as error:
            print(f"{row.row}: {error}")
            continue
        values = ", ".join(f"{value:.1%}" for value in summary["evaluation"]["accuracy"])
        print(f"{row.row}: {values}")
    return []


if __name__ == "__main__":
    sys.exit(main())
