"""The runs of an experiment: of one model, or of several in directories of their own."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.common import loop
from experiments.common.problem import Problem
from experiments.common.records import write_json
from experiments.common.run_directory import SUMMARY_FILE, check_run, open_run, write_evaluation

KeyT = TypeVar("KeyT")


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
    plot: Callable[[Mapping[str, Path], Path], Any],
    *,
    begin: Callable[[Path], Any] = lambda directory: None,
    resume: bool | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains or resumes runs; writes plots and ``summary.json`` of each and of all.

    Args:
      runs: directory and config by model.
      run_dir: the directory of all.
      make_problem: ``make_problem(config)``; its errors come before a directory is created.
      finish: ``finish(summary, directory, config, outcome)`` returns more numbers of the summary.
      plot: ``plot(directories by model, run_dir)``.
      begin: ``begin(directory)``, after a run was opened.
      resume: see `experiments.common.run_directory.open_run`.
      progress: whether to draw a progress bar.

    Returns:
      The summary of each model.
    """
    problems = {name: make_problem(config) for name, (_, config) in runs.items()}
    for directory, config in runs.values():
        open_run(directory, config, resume)
        begin(directory)
    summary: dict[str, Any] = {}
    for name, (directory, config) in runs.items():
        outcome = loop.train(problems[name], config.train, directory, name, progress)
        summary[name] = loop.summarise(outcome, config.train)
        summary[name] |= finish(summary[name], directory, config, outcome)
        plot({name: directory}, directory)
        write_json(directory / SUMMARY_FILE, summary[name])
    if len(runs) > 1:
        plot({name: directory for name, (directory, _) in runs.items()}, run_dir)
        write_json(run_dir / SUMMARY_FILE, summary)
    return summary


def evaluate_runs(
    runs: Mapping[KeyT, tuple[Path, Any]],
    make_problem: Callable[[Any], Problem],
    streams: Mapping[str, str] = {"evaluation": "valid", "test": "test"},
    finish: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda result: {},
) -> dict[KeyT, dict[str, Any]]:
    """Evaluates the newest checkpoint of each run; writes ``evaluation.json`` of each.

    Args:
      runs: directory and config by name.
      make_problem: ``make_problem(config)``.
      streams: the evaluations by their names in the result; those that a problem lacks are skipped.
      finish: ``finish(result)`` returns more numbers.

    Returns:
      For each run ``step``, ``seeds``, and the means of each stream by seed.
    """
    results = {}
    for name, (directory, config) in runs.items():
        check_run(directory, config)
        problem = make_problem(config)
        result: dict[str, Any] = {"seeds": list(config.train.seeds)}
        for key, stream in streams.items():
            if stream in problem.evaluations:
                found = loop.evaluate_run(problem, config.train, directory, stream)
                result["step"], result[key] = found
        results[name] = {**result, **finish(result)}
        write_evaluation(directory, results[name])
    return results
