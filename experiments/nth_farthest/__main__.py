"""Command line of Nth Farthest: ``python -m experiments.nth_farthest --help``."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.cli import parse, run_command
from experiments.nth_farthest.config import PRESETS, check
from experiments.nth_farthest.train import TITLES, evaluate, train

DESCRIPTION = """Nth Farthest: which object is n-th farthest from object m? Trains the Relational
Memory Core, then an LSTM, and draws both. Options override the preset's defaults."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    config, options = parse(PRESETS, "nth_farthest", DESCRIPTION, args, check=check)
    return run_command(config, options, train, evaluate, describe)


def describe(results: Mapping[str, Any]) -> str:
    """The accuracy of each model, by seed."""
    lines = []
    for name, result in results.items():
        found = result.get("test", result["evaluation"])
        values = ", ".join(f"{accuracy:.1%}" for accuracy in found["accuracy"])
        lines.append(f"{TITLES[name]}: {values} on fresh sequences")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
