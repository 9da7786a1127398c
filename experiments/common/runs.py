"""The runs of an experiment: of one model, or of several in directories of their own."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from experiments.common import loop, parallel
from experiments.common.options import name_options
from experiments.common.problem import Problem, Score
from experiments.common.records import write_json
from experiments.common.refused import RefusedError
from experiments.common.run_directory import (
    SUMMARY_FILE,
    check_run,
    find_device,
    may_open,
    open_run,
    write_evaluation,
)

KeyT = TypeVar("KeyT", str, tuple[str, str])


def list_runs(config: Any, models: tuple[str, ...], run_dir: Path) -> dict[str, tuple[Path, Any]]:
    """Directory and config by model: one in `run_dir`; "all" stands for `models`, each below it."""
    if config.model != "all":
        return {config.model: (run_dir, config)}
    return {name: (run_dir / name, dataclasses.replace(config, model=name)) for name in models}


def train_runs(
    runs: Mapping[str, tuple[Path, Any]],
    run_dir: Path,
    make_problem: Callable[[Any], Problem],
    finish: Callable[..., Mapping[str, Any]],
    plot: Callable[[Mapping[str, Path], Path, Score], Any],
    **options: Any,
) -> dict[str, Any]:
    """Trains or resumes runs of an experiment's models, see `train_each`.

    Errors of ``make_problem(config)`` come before a directory is created. Writes plots and
    ``summary.json`` of each and of all, the latter into `run_dir`.
    """
    problems = {name: make_problem(config) for name, (_, config) in runs.items()}
    summary = train_each(runs, problems, finish, plot, **options)
    if len(runs) > 1:
        score = next(iter(problems.values())).score
        plot({name: directory for name, (directory, _) in runs.items()}, run_dir, score)
        write_json(run_dir / SUMMARY_FILE, summary)
    return summary


def train_each(
    runs: Mapping[KeyT, tuple[Path, Any]],
    problems: Mapping[KeyT, Problem],
    finish: Callable[..., Mapping[str, Any]],
    plot: Callable[[Mapping[KeyT, Path], Path, Score], Any],
    *,
    begin: Callable[[Path], Any] = lambda directory: None,
    resume: bool | None = None,
    progress: bool = True,
) -> dict[KeyT, Any]:
    """Trains or resumes runs, one after the other; writes plots and ``summary.json`` of each.

    Errors of a directory that does not fit, or of a model that cannot run here, come before any
    directory is changed.

    Args:
      runs: directory and config by model, or by task and model.
      problems: task and model of each.
      finish: ``finish(summary, directory, config, outcome)`` returns more numbers of the summary.
      plot: ``plot({name: directory}, directory, score)``.
      begin: ``begin(directory)``, after a run was opened.
      resume: see `experiments.common.run_directory.open_run`.
      progress: whether to draw a progress bar.

    Returns:
      The summaries.
    """
    parallel.first(lambda: [may_open(*one, resume) for one in runs.values()])
    parallel.every(lambda: _check_init(runs, problems))
    until = loop.end_of(next(iter(runs.values()))[1].train)
    summary: dict[KeyT, Any] = {}
    for name, (directory, config) in runs.items():
        open_run(directory, config, resume)
        begin(directory)
        label = name if isinstance(name, str) else ", ".join(name)
        outcome = loop.train(problems[name], config.train, directory, label, progress, until)
        summary[name] = summarise(outcome, config.train)
        summary[name] |= finish(summary[name], directory, config, outcome)
        plot({name: directory}, directory, problems[name].score)
        write_json(directory / SUMMARY_FILE, summary[name])
    return summary


def _check_init(runs: Mapping[KeyT, tuple[Path, Any]], problems: Mapping[KeyT, Problem]) -> None:
    """Traces the start of runs: some combinations of a core and a machine are refused only then.

    Raises:
      RefusedError: JAX finds no device, or a model cannot be initialised.
    """
    find_device()
    for name, (_, config) in runs.items():
        problem = problems[name]
        data = () if problem.data is None else (problem.data,)
        try:
            jax.eval_shape(problem.init, jax.random.key(0), *data)
        except ValueError as error:
            raise RefusedError(name_options(str(error), config)) from error


def evaluate_runs(
    runs: Mapping[KeyT, tuple[Path, Any]],
    make_problem: Callable[[Any], Problem],
    finish: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda result: {},
) -> dict[KeyT, dict[str, Any]]:
    """Evaluates the newest checkpoint of each run; writes ``evaluation.json`` of each.

    Args:
      runs: directory and config by name.
      make_problem: ``make_problem(config)``.
      finish: ``finish(result)`` returns more numbers.

    Returns:
      For each run ``step``, ``seeds``, and by seed the means of the stream "valid" as
      ``evaluation`` and, if the problem has it, of "test".
    """
    parallel.every(lambda: [check_run(*one) for one in runs.values()])
    results = {}
    for name, (directory, config) in runs.items():
        problem = make_problem(config)
        result: dict[str, Any] = {"seeds": list(config.train.seeds)}
        for key, stream in (("evaluation", "valid"), ("test", "test")):
            if stream in problem.evaluations:
                found = loop.evaluate_run(problem, config.train, directory, stream)
                result["step"], result[key] = found
        results[name] = {**result, **finish(result)}
        write_evaluation(directory, results[name])
    return results


def summarise(outcome: loop.Outcome, config: Any) -> dict[str, Any]:
    """The numbers of a finished run for tables.

    The parameters of the recurrent core are those named ``cell``.
    """
    params: Any = outcome.state.params
    cell = params["params"].get("cell") if "params" in params else None
    core = {} if cell is None else {"core_parameters": _count(cell)}
    test: Mapping[str, Any] = {} if outcome.test is None else {"test": outcome.test}
    return {
        "steps": int(outcome.state.step),
        "seeds": list(config.seeds),
        "parameters": _count(params),
        **core,
        "train_seconds": round(outcome.seconds, 1),
        "wall_seconds": round(outcome.wall_seconds, 1),
        "score": {"name": outcome.score.name, "goal": outcome.score.goal},
        "evaluation": outcome.metrics,
        **test,
    }


def _count(params: Any) -> int:
    """The number of parameters of one seed."""
    return sum(leaf[0].size for leaf in jax.tree.leaves(params))
