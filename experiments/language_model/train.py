"""Training of one model, or of both, on one text."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from experiments.common import loop
from experiments.common.cells import TITLES as TITLES
from experiments.common.metrics import curve, read_metrics
from experiments.common.plots import plot_curves
from experiments.common.problem import Problem
from experiments.common.records import write_json
from experiments.common.refused import RefusedError
from experiments.common.run_directory import check_run, open_run, write_evaluation
from experiments.language_model.config import Config
from experiments.language_model.data.token_files import VOCABULARY_FILE, Tokens, prepare
from experiments.language_model.model import make_model
from experiments.language_model.problem import make_problem, per_unit, unigram_nats, unit_of
from experiments.language_model.samples import make_show

MODELS = ("rmc", "lstm")
TEXT_FILE = "text.json"
"""The manifest of the text a run was trained on, in its directory."""
TOKENS_DIR = Path("runs/language_model/tokens")


def train(
    config: Config,
    run_dir: Path,
    *,
    tokens_dir: Path = TOKENS_DIR,
    resume: bool | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the models of `config.model`, draws the plots, and returns the summary.

    One model is trained in `run_dir`, both in subdirectories with their names.

    Args:
      config: the run's config.
      run_dir: the run's directory, with the vocabulary; an unfinished run resumes.
      tokens_dir: the directory of token files, for all runs on the same text.
      resume: see `experiments.common.run_directory.open_run`.
      progress: whether to draw a progress bar.

    Returns:
      For each model: steps, parameters, loss by seed in all units, training time; also written to
      ``summary.json``.

    Raises:
      RefusedError: the text cannot be read or used, or the run was made on another text.
    """
    tokens = prepare(config.data, tokens_dir)
    runs = list_runs(config, run_dir)
    # Errors come before a directory is created.
    problems = {name: with_samples(one, tokens) for name, (_, one) in runs.items()}
    for directory, one in runs.values():
        check_text(directory, tokens)
        open_run(directory, one, resume)
        keep_text(directory, tokens)
    summary: dict[str, Any] = {}
    for name, (directory, one) in runs.items():
        outcome = loop.train(problems[name], one.train, directory, name, progress)
        summary[name] = loop.summarise(outcome, one.train)
        summary[name]["by_unit"] = by_unit(tokens, summary[name])
        plot(tokens, {name: directory}, directory)
        write_json(directory / "summary.json", summary[name])
    if len(runs) > 1:
        plot(tokens, {name: directory for name, (directory, _) in runs.items()}, run_dir)
        write_json(run_dir / "summary.json", summary)
    return summary


def evaluate(config: Config, run_dir: Path, tokens_dir: Path = TOKENS_DIR) -> dict[str, Any]:
    """Evaluates the newest checkpoints of a run; writes ``evaluation.json``."""
    tokens = prepare(config.data, tokens_dir)
    results: dict[str, Any] = {}
    for name, (directory, one) in list_runs(config, run_dir).items():
        check_text(directory, tokens)
        check_run(directory, one)
        problem = make_problem(one, tokens)
        result: dict[str, Any] = {"seeds": list(one.train.seeds)}
        for key, split in (("evaluation", "valid"), ("test", "test")):
            if split in problem.evaluations:
                step, result[key] = loop.evaluate_run(problem, one.train, directory, split)
                result["step"] = step
        result["by_unit"] = by_unit(tokens, result)
        write_evaluation(directory, result)
        results[name] = result
    return results


def list_runs(config: Config, run_dir: Path) -> dict[str, tuple[Path, Config]]:
    """The run's directory and the config of each model of a config."""
    if config.model != "all":
        return {config.model: (run_dir, config)}
    return {name: (run_dir / name, dataclasses.replace(config, model=name)) for name in MODELS}


def with_samples(config: Config, tokens: Tokens) -> Problem:
    """The problem of one model, which writes a sample at every evaluation."""
    model = make_model(config, tokens.vocabulary.size)
    return make_problem(config, tokens, make_show(model, tokens.vocabulary))


def by_unit(tokens: Tokens, result: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """For "valid" and "test" the losses of a result in all units, by seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for split, key in (("valid", "evaluation"), ("test", "test")):
        if key in result:
            units = [per_unit(tokens.splits[split], nats) for nats in result[key]["nats"]]
            found[split] = {name: [unit[name] for unit in units] for name in units[0]}
    return found


def check_text(run_dir: Path, tokens: Tokens, hint: str = "choose another --run-dir") -> None:
    """Raises, with a hint, unless a run, if there is one, was made on this text."""
    path = run_dir / TEXT_FILE
    if not path.exists():
        return
    found = json.loads(path.read_text())
    if found != tokens.manifest:
        names = [source["name"] for source in found["sources"]]
        raise RefusedError(
            f"the run in {run_dir} was made on another text ({', '.join(names[:3])}): the sha256 "
            f"of a file, or the vocabulary, is not the same; {hint}"
        )


def keep_text(run_dir: Path, tokens: Tokens) -> None:
    """Writes the manifest of the text and the vocabulary into the run's directory."""
    write_json(run_dir / TEXT_FILE, tokens.manifest)
    write_json(run_dir / VOCABULARY_FILE, tokens.vocabulary.state())


def plot(tokens: Tokens, directories: dict[str, Path], run_dir: Path) -> list[Path]:
    """Draws the losses of all models and seeds from their metrics files."""
    rows = {TITLES[name]: read_metrics(directory) for name, directory in directories.items()}
    source = tokens.manifest["sources"][0]["name"].split(".")[0]
    return [
        plot_curves(
            run_dir / "plots" / "valid.png",
            {name: curve(r, "valid", "nats") for name, r in rows.items()},
            title=f"Language modelling: {source}",
            y_label=f"nats per {unit_of(tokens)} of the validation text",
            trivial=unigram_nats(tokens),
        ),
        plot_curves(
            run_dir / "plots" / "loss.png",
            {name: curve(r, "train", "nats") for name, r in rows.items()},
            title=f"Language modelling: {source}",
            y_label=f"training loss (nats per {unit_of(tokens)})",
        ),
    ]
