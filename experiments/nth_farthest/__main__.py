"""Command line of Nth Farthest: ``python -m experiments.nth_farthest --help``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.cli import RunOptions, exit_code, parse
from experiments.nth_farthest.config import PRESETS, Config
from experiments.nth_farthest.train import TITLES, evaluate, train

DESCRIPTION = """Nth Farthest: which object is n-th farthest from object m? Trains the Relational
Memory Core, then an LSTM, and draws both. Options override the preset's defaults."""


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Where and how to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the run: config, metrics, checkpoints, plots; with --model all, of the runs, in
    <model> below it. Unfinished runs in an existing directory resume. Default:
    runs/nth_farthest/<preset>, or <model> in it if one is named."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    config, run = parse(PRESETS, "nth_farthest", DESCRIPTION, args, default_dir, Options())
    run_dir = run.run_dir
    assert run_dir is not None

    def action() -> None:
        if run.eval_only:
            results = evaluate(config, run_dir)
        else:
            results = train(config, run_dir, resume=run.must_resume, progress=run.progress)
            print(f"Plots: {run_dir / 'plots'}")
        for name, result in results.items():
            accuracies = result["evaluation"]["accuracy"]
            values = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
            print(f"{TITLES[name]}: {values} on fresh sequences")

    return exit_code(action)


def default_dir(config: Config) -> Path:
    """Where a run of `config` goes: one model where the run of all would put it."""
    directory = Path(config.preset)
    return directory if config.model == "all" else directory / config.model


if __name__ == "__main__":
    sys.exit(main())
