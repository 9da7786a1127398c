"""Training of one row in its run directory."""

from pathlib import Path
from typing import Any

from experiments.ablations.grid import RowConfig
from experiments.ablations.problems import make_problem
from experiments.common import loop
from experiments.common.records import write_json
from experiments.common.run_directory import FAILURE_FILE, SUMMARY_FILE, is_finished, open_run
from experiments.common.runs import summarise


def train_row(
    row: RowConfig, run_dir: Path, progress: bool = True, until: float | None = None
) -> dict[str, Any]:
    """Trains or resumes a row to its last step, with all seeds together.

    Args:
      row: the row.
      run_dir: the row's directory.
      progress: whether to draw a progress bar.
      until: see `experiments.common.loop.train`.

    Returns:
      The summary, also in ``summary.json``.

    Raises:
      ConfigMismatchError: the directory contains another config.
      NonFiniteError: NaN or infinity; recorded in ``failure.json``, so that the grid continues.
      Interrupted: Ctrl-C or SIGTERM; the state has been saved.
    """
    problem = make_problem(row)  # Errors come before a directory is created.
    open_run(run_dir, row)
    outcome = loop.train(problem, row.config.train, run_dir, row.row, progress, until)
    summary = summarise(outcome, row.config.train)
    summary["trivial_accuracy"] = problem.score.trivial
    write_json(run_dir / SUMMARY_FILE, summary)
    return summary


def is_done(row: RowConfig, run_dir: Path) -> bool:
    """Whether a row is finished with its config, or has failed.

    Raises:
      ConfigMismatchError: the directory contains another config.
    """
    if not (run_dir / "config.json").exists():
        return False
    return is_finished(run_dir, row) or (run_dir / FAILURE_FILE).exists()
