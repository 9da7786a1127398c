"""Command line of program evaluation: ``python -m experiments.program_evaluation --help``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.cli import RunOptions, exit_code, parse
from experiments.program_evaluation import table
from experiments.program_evaluation.config import PRESETS, Config
from experiments.program_evaluation.train import TITLES, check, evaluate, train

DESCRIPTION = """Program evaluation and memorization: reads a program or a number, character by
character, and writes the answer. Trains the Relational Memory Core and the other models, one after
the other, and plots them. Options override the preset's defaults. The command `table`, before all
options, trains missing runs, several at once, and prints the paper's Table 1."""


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
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] == ["table"]:
        return table.main(args[1:])
    config, run = parse(
        *(PRESETS, "program_evaluation", DESCRIPTION, args, default_dir), Options(), check
    )
    run_dir = run.run_dir
    assert run_dir is not None

    def action() -> None:
        if run.eval_only:
            results = evaluate(config, run_dir)
        else:
            results = train(config, run_dir, resume=run.must_resume, progress=run.progress)
            print(f"Plots: {run_dir / 'plots'}")
        for task, models in results.items():
            for name, result in models.items():
                accuracies = result["evaluation"]["accuracy"]
                values = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
                print(f"{task}, {TITLES[name]}: {values} of characters at full difficulty")

    return exit_code(action)


def default_dir(config: Config) -> Path:
    """Where a run of `config` goes: a single one where the run of all would put it."""
    directory = Path(config.preset)
    return directory / config.task / config.model if config.is_single else directory


if __name__ == "__main__":
    sys.exit(main())
