"""The command line of experiments with an actor-critic."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.actor_critic import runs
from experiments.common.actor_critic.problem import check_minibatch
from experiments.common.cli import RunOptions, exit_code, parse


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Where and how to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the run: config, metrics, checkpoints, plots; with --model all, of the runs, in
    <model> below it. Unfinished runs in an existing directory resume. Default:
    runs/<experiment>/<preset>/<model>."""
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

    def default_dir(config: Any) -> Path:
        directory = Path(config.preset)
        return directory if config.model == "all" else directory / config.model

    config, options = parse(
        presets, experiment, description, args, default_dir, Options(), check_minibatch
    )
    run_dir = options.run_dir
    assert run_dir is not None

    def action() -> None:
        game = make_game(config)
        if options.policies_only:
            results = runs.measure_policies(config, game, run_dir)
        elif options.eval_only:
            results = runs.evaluate(config, game, run_dir)
        else:
            results = runs.train(
                config, game, run_dir, resume=options.must_resume, progress=options.progress
            )
            print(f"Plots: {run_dir / 'plots'}")
        print(runs.table(results, game))

    return exit_code(action)
