"""Options that several commands have, and the types of their values."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.common.environment import limit_threads

REQUIRED = object()
"""The default of an option that must be given."""


def add_shared(add: Callable[..., Any], **defaults: Any) -> None:
    """Adds those of the shared options that are named, each with its default.

    >>> arguments = argparse.ArgumentParser()
    >>> add_shared(arguments.add_argument, rounds=5, min_seconds=0.2)
    >>> arguments.parse_args(["--rounds", "3"])
    Namespace(rounds=3, min_seconds=0.2)

    Args:
      add: a parser's or group's `add_argument`.
      defaults: by option, of `rounds`, `min_seconds`, `threads`, `minutes` and `out`.
    """
    options = {
        "rounds": (positive, "samples of each"),
        "min_seconds": (duration, "shortest time that a sample may span; 0: one call"),
        "threads": (int, "processors to keep to; 0: all there are"),
        "minutes": (positive_number, "wall time after which it ends"),
        "out": (Path, "JSON-lines file to add rows to"),
    }
    for name, default in defaults.items():
        kind, text = options[name]
        option = f"--{name.replace('_', '-')}"
        if default is REQUIRED:
            add(option, type=kind, required=True, help=text)
        else:
            shown = "none" if default is None else default
            add(option, type=kind, default=default, help=f"{text} (default: {shown})")


def positive(text: str) -> int:
    """Parses an option that is a number of something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def duration(text: str) -> float:
    """Parses ``--min-seconds``."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and at least 0, got {text}")
    return value


def positive_number(text: str) -> float:
    """Parses a duration that cannot be 0, such as ``--minutes``."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def limit_threads_or_exit(arguments: argparse.ArgumentParser, threads: int) -> None:
    """As `limit_threads`, for commands: exits with a message. 0 is no limit."""
    try:
        if threads:
            limit_threads(threads)
    except ValueError as error:
        arguments.error(str(error))
