"""Command line of Mini-Pacman: ``python -m experiments.mini_pacman --help``."""

import sys
from collections.abc import Sequence

from experiments.common.actor_critic.command import run
from experiments.mini_pacman.config import PRESETS
from experiments.mini_pacman.train import make_game

DESCRIPTION = """Mini-Pacman: eat food and avoid ghosts, observing 5 x 5 cells. Trains an
actor-critic with the Relational Memory Core, another core, or all of them. Options override the
preset's defaults."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    return run(PRESETS, "mini_pacman", DESCRIPTION, make_game, args)


if __name__ == "__main__":
    sys.exit(main())
