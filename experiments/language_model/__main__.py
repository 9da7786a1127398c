"""Command line of the language model: ``python -m experiments.language_model --help``."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.common.cli import RunOptions, exit_code, parse
from experiments.language_model.config import PRESETS, Config
from experiments.language_model.train import TITLES, TOKENS_DIR, evaluate, train

DESCRIPTION = """Language modelling: predicts the next token of a text. Trains the Relational
Memory Core, then an LSTM, and plots both; without --path on the included plays. Options override
the preset's defaults. `python -m experiments.language_model.generate` writes text,
`python -m experiments.language_model.report` makes the paper's tables of a trained run."""


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Where and how to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the run: config, metrics, checkpoints, plots, vocabulary; with --model all, of
    the runs, in <model> below it. Unfinished runs in an existing directory resume. Default:
    runs/language_model/<preset>, or <model> in it if one is named."""
    tokens_dir: Path = TOKENS_DIR
    """Directory of token files, shared by all runs."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    config, run = parse(PRESETS, "language_model", DESCRIPTION, args, default_dir, Options())
    run_dir = run.run_dir
    assert run_dir is not None

    def action() -> None:
        if run.eval_only:
            results = evaluate(config, run_dir, run.tokens_dir)
        else:
            results = train(
                config,
                run_dir,
                tokens_dir=run.tokens_dir,
                resume=run.must_resume,
                progress=run.progress,
            )
            print(f"Plots: {run_dir / 'plots'}")
        for name, result in results.items():
            for split, units in result["by_unit"].items():
                print(f"{TITLES[name]}, {split}: {describe(units)}")

    return exit_code(action)


def describe(units: dict[str, list[float]]) -> str:
    """The losses of all seeds in all units, in one line."""
    parts = (
        ("nats", "{:.4f}", "nats per token"),
        ("bits_per_byte", "{:.4f}", "bits per byte"),
        ("word_perplexity", "{:.2f}", "perplexity per word"),
    )
    return "; ".join(
        f"{', '.join(text.format(value) for value in units[key])} {name}"
        for key, text, name in parts
    )


def default_dir(config: Config) -> Path:
    """Where a run of `config` goes: one model where the run of both would put it."""
    directory = Path(config.preset)
    return directory if config.model == "all" else directory / config.model


if __name__ == "__main__":
    sys.exit(main())
