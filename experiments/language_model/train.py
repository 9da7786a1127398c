"""Training of one model, or of both, on one text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common import parallel
from experiments.common.cells import TITLES as TITLES
from experiments.common.plots import plot_score
from experiments.common.problem import Params, Problem, Score
from experiments.common.records import read_json, write_json
from experiments.common.refused import RefusedError
from experiments.common.run_directory import may_open
from experiments.common.runs import evaluate_runs, list_runs, train_runs
from experiments.language_model.config import Config
from experiments.language_model.data.token_files import VOCABULARY_FILE, Tokens, prepare
from experiments.language_model.model import make_model
from experiments.language_model.problem import make_problem, per_unit, unit_of
from experiments.language_model.sampling import Choice, Writer

MODELS = ("rmc", "lstm")
TEXT_FILE = "text.json"
"""The manifest of the text a run was trained on, in its directory."""
TOKENS_DIR = Path("runs/language_model/tokens")
SAMPLE_LENGTHS = {"characters": 200, "bytes": 200, "words": 40, "bpe": 60}


def train(
    config: Config,
    run_dir: Path,
    *,
    tokens_dir: Path = TOKENS_DIR,
    resume: bool | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the models of `config.model`, see `experiments.common.runs.train_runs`.

    Raises:
      RefusedError: the text cannot be read or used, or the run was made on another text.
    """
    runs = list_runs(config, MODELS, run_dir)
    # Before the text is read, so that another run's options are listed, not its text refused.
    parallel.first(lambda: [may_open(*one, resume) for one in runs.values()])
    tokens = _open_text(config, tokens_dir, runs)
    return train_runs(
        runs,
        run_dir,
        lambda one: with_samples(one, tokens),
        lambda summary, *_: {"by_unit": by_unit(tokens, summary)},
        lambda directories, to, score: plot(tokens, directories, to, score),
        begin=lambda directory: keep_text(directory, tokens),
        resume=resume,
        progress=progress,
    )


def evaluate(config: Config, run_dir: Path, tokens_dir: Path = TOKENS_DIR) -> dict[str, Any]:
    """Evaluates the newest checkpoints of a run; writes ``evaluation.json``."""
    runs = list_runs(config, MODELS, run_dir)
    tokens = _open_text(config, tokens_dir, runs)
    return evaluate_runs(
        runs,
        lambda one: make_problem(one, tokens),
        finish=lambda result: {"by_unit": by_unit(tokens, result)},
    )


def _open_text(config: Config, tokens_dir: Path, runs: Mapping[str, tuple[Path, Any]]) -> Tokens:
    """The text; raises unless it is that of the runs."""
    tokens = prepare(config.data, tokens_dir)
    parallel.every(lambda: [check_text(directory, tokens) for directory, _ in runs.values()])
    return tokens


def with_samples(config: Config, tokens: Tokens) -> Problem:
    """The problem of one model, which writes a sample at every evaluation."""
    vocabulary = tokens.vocabulary
    model = make_model(config, vocabulary.size)
    length = SAMPLE_LENGTHS[vocabulary.kind]
    writer: Writer | None = None

    def show(params: Params) -> str:
        nonlocal writer
        if writer is None:  # One program for all evaluations.
            writer = Writer(model, params, Choice(temperature=0.8), length)
        writer.params = params
        _, sample = writer.write(writer.start(vocabulary.start), length, seed=0)
        return vocabulary.decode(sample[0]).decode(errors="replace")

    return make_problem(config, tokens, show)


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
        if (run_dir / "checkpoints").exists():
            raise RefusedError(
                f"{run_dir} has checkpoints, but no {TEXT_FILE} to say of which text"
            )
        return
    found = read_json(path)
    if found != tokens.manifest:
        names = [source["name"] for source in found["sources"]]
        raise RefusedError(
            f"the run in {run_dir} was made on another text ({', '.join(names[:3])}): the name "
            f"or sha256 of a file, its split, or the vocabulary is not the same; {hint}"
        )


def keep_text(run_dir: Path, tokens: Tokens) -> None:
    """Writes the manifest of the text and the vocabulary into the run's directory."""
    write_json(run_dir / TEXT_FILE, tokens.manifest)
    write_json(run_dir / VOCABULARY_FILE, tokens.vocabulary.state())


def plot(tokens: Tokens, directories: Mapping[str, Path], run_dir: Path, score: Score) -> None:
    """Draws the losses of all models and seeds from their metrics files."""
    title = f"Language modelling: {tokens.manifest['sources'][0]['name'].split('.')[0]}"
    loss = ("nats", f"training loss (nats per {unit_of(tokens)})")
    plot_score(score, directories, run_dir, name="valid", loss=loss, title=title)
