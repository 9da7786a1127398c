"""Command line of BoxWorld: ``python -m experiments.box_world --help``."""

import sys
from collections.abc import Sequence

from experiments.box_world.config import PRESETS
from experiments.box_world.train import make_game
from experiments.common.actor_critic.command import run

DESCRIPTION = """BoxWorld: open boxes in the right order to reach a gem, observing 5 x 5 cells.
Trains an actor-critic with the Relational Memory Core, another core, or all of them. Options
override the preset's defaults."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    return run(PRESETS, "box_world", DESCRIPTION, make_game, args)


if __name__ == "__main__":
    sys.exit(main())
