"""The paper's Table 1 and ours: ``python -m experiments.program_evaluation table --help``."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import markdown
from experiments.common.cli import DirectoryOptions, exit_code, parse
from experiments.common.environment import describe_environment
from experiments.common.launch import run_commands
from experiments.common.metrics import curve, read_metrics
from experiments.common.options import changed_options
from experiments.common.records import read_json, write_json, write_text
from experiments.common.results import without_place
from experiments.common.run_directory import SUMMARY_FILE, is_finished, read_environment
from experiments.program_evaluation.config import PRESETS, Config
from experiments.program_evaluation.data import make_task
from experiments.program_evaluation.train import TITLES, check, nested_runs, plot

DESCRIPTION = """The paper's Table 1: trains every model on every task, several at once, skips
finished runs, then prints and saves the table beside the paper's. Options apply to every run."""

# Table 1 of the paper: test accuracy of characters in percent, at nesting 2 and length 5.
PAPER = {
    "addition": {"lstm": 99.8, "entnet": 98.4, "dnc": 99.4, "rmc": 99.9},
    "control": {"lstm": 97.4, "entnet": 98.0, "dnc": 83.8, "rmc": 99.6},
    "program": {"lstm": 66.1, "entnet": 73.4, "dnc": 69.5, "rmc": 79.0},
    "copy": {"lstm": 99.8, "entnet": 91.8, "dnc": 100.0, "rmc": 100.0},
    "reverse": {"lstm": 99.7, "entnet": 100.0, "dnc": 100.0, "rmc": 100.0},
    "double": {"lstm": 99.7, "entnet": 62.3, "dnc": 100.0, "rmc": 99.8},
}
MISSING = "-"

Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The numbers of runs by task and model, see `collect`."""


@dataclasses.dataclass(frozen=True)
class TableOptions(DirectoryOptions):
    """Where and how to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the table and its plots, with the runs in <task>/<model> below it. Finished runs
    in an existing directory are skipped, others resume. Default:
    runs/program_evaluation/<preset>."""
    jobs: int = 1
    """Runs at once. Several use one CPU thread each; a single one uses all threads."""
    train: bool = True
    """Train missing runs. --no-train makes the table of finished runs."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {self.jobs}")


def main(args: Sequence[str]) -> int:
    """Runs the command line, and returns the exit code."""
    config, options = parse(
        PRESETS,
        "program_evaluation table",
        DESCRIPTION,
        args,
        TableOptions(),
        check,
        lambda config: Path(config.preset),
    )
    run_dir = options.run_dir
    assert run_dir is not None
    codes: dict[Path, int] = {}

    def action() -> None:
        if options.train:
            finished = find_finished(config, run_dir)
            commands = {
                directory: command_of(one, directory)
                for names, (directory, one) in nested_runs(config, run_dir).items()
                if names not in finished
            }
            codes.update(run_commands(commands, options.jobs, options.progress))
        print(make_table(config, run_dir))
        print(f"Also in {run_dir / 'table.md'}, table.json and plots")

    code = exit_code(action)
    return code or next(filter(None, codes.values()), 0)


def make_table(config: Config, run_dir: Path) -> str:
    """Makes the table and the plots of the runs that are finished.

    Args:
      config: the config of all runs.
      run_dir: the parent directory of ``<task>/<model>``.

    Returns:
      The table in Markdown; also written to ``table.md``, and with all numbers to ``table.json``.
    """
    runs = collect(config, run_dir)
    trivial: dict[str, float] = {}
    for task in config.tasks:
        one = dataclasses.replace(config, task=task)
        trivial[task] = make_task(one).trivial_accuracy()
        directories = {
            model: run_dir / task / model for model in config.models if model in runs[task]
        }
        if directories:
            plot(task, directories, run_dir, trivial[task], prefix=f"{task}_")
    text = to_markdown(config, runs, trivial)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "table.md", text)
    environment = describe_environment()
    environment["command"] = without_place(environment["command"])
    content = {
        "environment": environment,
        "config": dataclasses.asdict(config),
        "paper": PAPER,
        "trivial_accuracy": trivial,
        "runs": runs,
    }
    write_json(run_dir / "table.json", content)
    return text


def command_of(config: Config, run_dir: Path) -> list[str]:
    """The command that trains `config` in `run_dir`.

    >>> config = dataclasses.replace(PRESETS["quick"], task="copy", model="rmc")
    >>> " ".join(command_of(config, Path("runs/a"))[3:])
    '--preset quick --task copy --model rmc --run-dir runs/a --no-progress'
    """
    options = changed_options(config, PRESETS[config.preset])
    return [
        *(sys.executable, "-m", "experiments.program_evaluation"),
        *("--preset", config.preset, *options, "--run-dir", str(run_dir), "--no-progress"),
    ]


def find_finished(config: Config, run_dir: Path) -> dict[tuple[str, str], Path]:
    """The directories of runs that are finished with this config, by task and model.

    Raises:
      ConfigMismatchError: a run there has another config.
    """
    finished = {}
    for names, (directory, one) in nested_runs(config, run_dir).items():
        if (directory / SUMMARY_FILE).exists() and is_finished(directory, one):
            finished[names] = directory
    return finished


def collect(config: Config, run_dir: Path) -> Runs:
    """By task and model: summary, environment and curve of every finished run.

    Raises:
      ConfigMismatchError: a run there has another config.
    """
    runs: dict[str, dict[str, Any]] = {task: {} for task in config.tasks}
    for (task, model), directory in find_finished(config, run_dir).items():
        curves = curve(read_metrics(directory), "valid", "accuracy")
        environment = read_environment(directory)
        environment["command"] = without_place(environment["command"])
        runs[task][model] = {
            "summary": read_json(directory / SUMMARY_FILE),
            "environment": environment,
            "accuracy": {
                str(seed): {"step": steps, "value": [round(value, 5) for value in values]}
                for seed, (steps, values) in curves.items()
            },
        }
    return runs


def to_markdown(config: Config, runs: Runs, trivial: Mapping[str, float]) -> str:
    """The table, with settings and environment of the runs."""

    def rows(read: Any) -> Iterator[tuple[str, list[str]]]:
        for model in config.models:
            cells = [runs[t].get(model) for t in config.tasks]
            yield TITLES[model], [MISSING if run is None else read(run) for run in cells]

    def accuracy(name: str) -> Any:
        return lambda run: _percent(run["summary"]["evaluation"][name])

    paper = [
        (f"{TITLES[m]}, paper", [str(PAPER.get(t, {}).get(m, MISSING)) for t in config.tasks])
        for m in config.models
    ]
    floor = ("Trivial", [f"{100 * trivial[task]:.1f}" for task in config.tasks])
    best = rows(lambda run: _percent(run["summary"]["best_accuracy"]))
    parts = {
        "Characters right (%), best evaluation": [*best, floor, *paper],
        "Characters right (%), last evaluation": rows(accuracy("accuracy")),
        "Whole answers right (%), last evaluation": rows(accuracy("sequence_accuracy")),
        "Parameters (of which the core's)": rows(
            lambda run: "{parameters:,} ({core_parameters:,})".format(**run["summary"])
        ),
        "Minutes per run": rows(lambda run: f"{run['summary']['wall_seconds'] / 60:.1f}"),
    }
    blocks = [
        markdown.table([title, *config.tasks], ([name, *cells] for name, cells in lines))
        for title, lines in parts.items()
    ]
    return "\n\n".join([*blocks, _describe(config, runs)]) + "\n"


def _percent(values: Sequence[float]) -> str:
    """The mean over seeds, and the range of several."""
    percents = [100 * value for value in values]
    mean = f"{sum(percents) / len(percents):.1f}"
    if len(percents) == 1:
        return mean
    return f"{mean} ({min(percents):.1f} to {max(percents):.1f})"


def _describe(config: Config, runs: Runs) -> str:
    """Difficulty, training, hardware and commit, in sentences."""
    hard, train = config.difficulty, config.train
    samples = -(-train.eval_samples // train.batch_size) * train.batch_size
    lines = [
        f"Ours: programs of length {hard.length} and nesting {hard.nesting}, memorization of "
        f"length {hard.memorization_length}; curriculum {hard.curriculum}; decoding "
        f"{config.decoding}; {train.steps:,} updates of {train.batch_size} samples, learning rate "
        f"{train.learning_rate:g}; seeds {', '.join(map(str, train.seeds))}; evaluations on "
        f"{samples:,} samples at full difficulty. The paper's: length 5, nesting 2, 200,000 "
        "updates of 128 samples.",
    ]
    made = [run["environment"] for models in runs.values() for run in models.values()]
    if made:
        hardware = _distinct(
            f"{e['processor']}, {e['cpu_cores']} cores, {e['device']}" for e in made
        )
        commits = _distinct(commit for e in made for commit in e["git_commits"])
        lines.append(f"Hardware: {hardware}. Commit: {commits}.")
    return "\n".join(lines)


def _distinct(values: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(values))
