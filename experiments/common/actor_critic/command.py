"""The command line of experiments with an actor-critic."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.actor_critic import runs
from experiments.common.actor_critic.problem import check
from experiments.common.cli import RunOptions, exit_code, model_dir, parse, run_command
from experiments.common.options import is_given


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Where and how to run; the numbers do not depend on it."""

    policies_only: bool = False
    """Do not train, but play the test's number of episodes with the random policy and the
    heuristic; writes policies.json. Default directory: runs/<experiment>/<preset>/policies."""

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
    args = list(sys.argv[1:] if args is None else args)
    policies_only = is_given("policies_only", args)

    def check_game(config: Any) -> None:
        if policies_only and any(is_given(name, args) for name in ("model", "seed", "num_seeds")):
            raise ValueError("--policies-only excludes --model, --seed and --num-seeds")
        game = make_game(config)
        check(config, game.env, game.easy)

    def default_dir(config: Any) -> Path:
        return Path(config.preset, "policies") if policies_only else model_dir(config)

    given = presets, experiment, description, args
    config, options = parse(*given, Options(), check_game, default_dir)
    game, batch_size = make_game(config), config.train.batch_size
    if options.policies_only:
        assert options.run_dir is not None
        measure = functools.partial(runs.measure_policies, config, game, options.run_dir)
        return exit_code(lambda: print(runs.table(measure(), game, batch_size)))
    train, evaluate = (functools.partial(each, make_game) for each in (runs.train, runs.evaluate))
    return run_command(
        config, options, train, evaluate, lambda found: runs.table(found, game, batch_size)
    )
