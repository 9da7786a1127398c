"""The command line of experiments with an actor-critic."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.common.actor_critic import runs
from experiments.common.actor_critic.problem import check
from experiments.common.cli import RunOptions, exit_code, parse, run_command


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Where and how to run; the numbers do not depend on it."""

    policies_only: bool = False
    """Do not train, but play the test's number of episodes with the random policy and the
    heuristic; writes policies.json."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policies_only and (self.resume or self.fresh or self.eval_only):
            raise ValueError("--policies-only excludes --resume, --fresh and --eval-only")


def run(
    presets: Mapping[str, Any],
    experiment: str,
    description: str,
    make_game: Callable[[Any], runs.Game],
    args: Sequence[str] | None,
) -> int:
    """Runs the command line of one experiment, and returns the exit code."""

    def check_game(config: Any) -> None:
        game = make_game(config)
        check(config, game.env, game.easy)

    config, options = parse(presets, experiment, description, args, Options(), check_game)
    game, batch_size = make_game(config), config.train.batch_size
    if options.policies_only:
        assert options.run_dir is not None
        measure = functools.partial(runs.measure_policies, config, game, options.run_dir)
        return exit_code(lambda: print(runs.table(measure(), game, batch_size)))
    train, evaluate = (functools.partial(each, make_game) for each in (runs.train, runs.evaluate))
    return run_command(
        config, options, train, evaluate, lambda found: runs.table(found, game, batch_size)
    )
