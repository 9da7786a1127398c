"""Command line of the language model: ``python -m experiments.language_model --help``."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.cli import RunOptions, parse, run_command
from experiments.common.train_config import TrainConfig
from experiments.language_model.config import PRESETS, Config
from experiments.language_model.train import TITLES, TOKENS_DIR, evaluate, train

DESCRIPTION = """Language modelling: predicts the next token of a text. Trains the Relational
Memory Core, then an LSTM, and plots both; without --path on the included plays. Options override
the preset's defaults. `python -m experiments.language_model.generate` writes text,
`python -m experiments.language_model.report` makes the paper's tables of a trained run."""


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Where and how to run; the numbers do not depend on it."""

    tokens_dir: Path = TOKENS_DIR
    """Directory of token files, shared by all runs."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    config, options = parse(PRESETS, "language_model", DESCRIPTION, args, Options(), _check)
    trains, evaluates = (
        functools.partial(each, tokens_dir=options.tokens_dir) for each in (train, evaluate)
    )
    return run_command(config, options, trains, evaluates, describe)


def _check(config: Config) -> None:
    if config.train.eval_samples != TrainConfig.eval_samples:
        raise ValueError("eval_samples must be left as it is: evaluations read whole texts")


def describe(results: Mapping[str, Any]) -> str:
    """The losses of all models and seeds in all units, a line for each text."""
    return "\n".join(
        f"{TITLES[name]}, {split}: {_in_units(units)}"
        for name, result in results.items()
        for split, units in result["by_unit"].items()
    )


def _in_units(units: Mapping[str, list[float]]) -> str:
    parts = (
        ("nats", "{:.4f}", "nats per token"),
        ("bits_per_byte", "{:.4f}", "bits per byte"),
        ("word_perplexity", "{:.2f}", "perplexity per word"),
    )
    return "; ".join(
        f"{', '.join(text.format(value) for value in units[key])} {name}"
        for key, text, name in parts
    )


if __name__ == "__main__":
    sys.exit(main())
