"""Command line of program evaluation: ``python -m experiments.program_evaluation --help``."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.cli import RunOptions, parse, run_command
from experiments.program_evaluation.config import PRESETS, Config
from experiments.program_evaluation.train import TITLES, check, evaluate, train

DESCRIPTION = """Program evaluation and memorization: reads a program or a number, character by
character, and writes the answer. Trains the Relational Memory Core and the other models, one after
the other, and plots them. Options override the preset's defaults."""


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Where and how to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the run: config, metrics, checkpoints, samples, plots; with "all" tasks or
    models, of the runs, in <task>/<model> below it. Unfinished runs in an existing directory
    resume. Default: runs/program_evaluation/<preset>, or <task>/<model> in it if one of each is
    named."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    config, options = parse(
        *(PRESETS, "program_evaluation", DESCRIPTION, args, Options(), check, default_dir)
    )
    return run_command(config, options, train, evaluate, describe)


def describe(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The accuracy of each model on each task, by seed."""
    lines = []
    for task, models in results.items():
        for name, result in models.items():
            found = result.get("test", result["evaluation"])
            values = ", ".join(f"{accuracy:.1%}" for accuracy in found["accuracy"])
            lines.append(f"{task}, {TITLES[name]}: {values} of characters at full difficulty")
    return "\n".join(lines)


def default_dir(config: Config) -> Path:
    """Where a run of `config` goes: a single one where the run of all would put it."""
    directory = Path(config.preset)
    return directory / config.task / config.model if config.is_single else directory


if __name__ == "__main__":
    sys.exit(main())
