"""Running a grid: what is skipped, resumed and stopped, and exit codes."""

import dataclasses
import json

import pytest

from experiments.ablations import make_rows
from experiments.ablations.__main__ import main
from experiments.ablations.train import is_done, train_row
from experiments.common import loop
from experiments.common.run_directory import ConfigMismatchError
from tests.experiments.ablation_runs import CONFIG, ROWS, TINY, fail_run, make_grid, make_run


@pytest.fixture
def grid(tmp_path):
    make_grid(tmp_path)
    return tmp_path


def test_what_is_done_is_skipped_and_the_rest_is_trained(grid, monkeypatch, capsys):
    trained = []

    def train(row, run_dir, progress, until):
        trained.append(row.row)
        make_run(grid, row.row, [0.9, 0.9])
        return json.loads((run_dir / "summary.json").read_text())

    monkeypatch.setattr("experiments.ablations.__main__.train_row", train)
    arguments = ["--run-dir", str(grid), "--jobs", "1", *TINY]
    assert main([*arguments, "--only", "base", "gates_none", "mlp_1", "key_1"]) == 0
    assert trained == ["mlp_1", "key_1"]
    assert "2 of 4 rows are done" in capsys.readouterr().out
    assert main([*arguments, "--no-report"]) == 0
    assert len(trained) == len(set(trained)) == len(ROWS) - 7
    trained.clear()
    assert main([*arguments, "--no-report"]) == 0
    assert not trained


def test_a_row_of_fewer_steps_is_not_done(tmp_path):
    steady = dataclasses.replace(CONFIG.train, schedule="constant")
    rows, longer = (
        make_rows(dataclasses.replace(CONFIG, train=dataclasses.replace(steady, steps=steps)))
        for steps in (4, 6)
    )
    make_run(tmp_path, "base", [0.9, 0.9], rows=rows)
    assert is_done(rows["base"], tmp_path / "base")
    assert not is_done(longer["base"], tmp_path / "base")


def test_stopped_rows_go_on_and_the_next_ones_wait(tmp_path, monkeypatch, capsys):
    """Ctrl-C ends the grid with its exit code; the same command goes on with the row it was at."""
    trained = []

    def train(problem, config, run_dir, name, progress, until):
        trained.append(name)
        raise loop.Interrupted("stopped at step 2")

    monkeypatch.setattr(loop, "train", train)
    arguments = ["--run-dir", str(tmp_path), "--jobs", "1", *TINY]
    for _ in range(2):
        assert main(arguments) == 130
    assert trained == ["base", "base"]
    assert "stopped at step 2" in capsys.readouterr().err


def test_nan_is_a_result(tmp_path, monkeypatch):
    def train(*args):
        fail_run(tmp_path, "gates_none")
        raise loop.NonFiniteError("loss became nan")

    monkeypatch.setattr(loop, "train", train)
    make_run(tmp_path, "base", [0.92, 0.96])
    arguments = ["--run-dir", str(tmp_path), "--jobs", "1", "--only", "base", "gates_none", *TINY]
    assert main(arguments) == 0
    assert "| gates | none | NaN |" in (tmp_path / "table.md").read_text()
    assert "became nan" in (tmp_path / "gates_none" / "failure.json").read_text()


def test_a_base_that_failed_is_told_from_one_that_is_missing(tmp_path, monkeypatch, capsys):
    """Rows may be trained before the base; of a base whose loss was NaN there is no report."""

    def train(row, run_dir, progress, until):
        make_run(tmp_path, row.row, [0.9, 0.9])
        return json.loads((run_dir / "summary.json").read_text())

    monkeypatch.setattr("experiments.ablations.__main__.train_row", train)
    arguments = ["--run-dir", str(tmp_path), "--jobs", "1", *TINY]
    for _ in range(2):  # Trained, and skipped.
        assert main([*arguments, "--only", "heads_1", "mlp_1"]) == 0
        assert "no report yet: the base is missing (--only base)" in capsys.readouterr().out
    assert not (tmp_path / "numbers.json").exists()
    fail_run(tmp_path, "base")
    assert main([*arguments, "--only", "heads_1"]) == 3
    assert "error: the base's loss became NaN in" in capsys.readouterr().err


def test_trains_rows_by_commands_of_their_own(tmp_path, monkeypatch, capsys):
    """One real row, its seeds side by side; then it is done. The command runs in this process."""

    def run(commands, jobs, progress, minutes):
        assert (jobs, minutes) == (2, None)
        assert all(c[1:3] == ["-m", "experiments.ablations"] for c in commands.values())
        return {directory: main(command[3:]) for directory, command in commands.items()}

    monkeypatch.setattr("experiments.ablations.__main__.run_commands", run)
    make_run(tmp_path, "base", [0.92, 0.96])
    arguments = ["--run-dir", str(tmp_path), "--only", "lstm", "--jobs", "2", *TINY]
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "lstm" / "summary.json").read_text())
    assert (summary["steps"], summary["seeds"]) == (4, [0, 1])
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main([*arguments, "--no-report"]) == 0
    assert "1 of 1 rows are done" in capsys.readouterr().out
    changed = dataclasses.replace(CONFIG, task="program_evaluation")
    with pytest.raises(ConfigMismatchError, match=r"config.task: 'nth_farthest' there"):
        train_row(make_rows(changed)["lstm"], tmp_path / "lstm")


def test_what_is_wrong_exits_with_2(grid, tmp_path, capsys):
    arguments = ["--run-dir", str(grid), *TINY]
    assert main([*arguments, "--only", "base", "bas"]) == 2
    assert "--only bas: no such row; there are base, slots_1" in capsys.readouterr().err
    assert main([*arguments, "--no-train", "--learning-rate", "0.5"]) == 2
    assert "config.train.learning_rate: 0.001 there, 0.5 asked" in capsys.readouterr().err
    assert main(["--run-dir", str(tmp_path / "none"), "--no-train", *TINY]) == 2
    assert "the base is not trained" in capsys.readouterr().err


def test_list_names_the_rows(capsys):
    assert main(["--list", "--preset", "paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "base: the base"
    assert "slots_16: memory slots 16" in lines
    assert "lstm: model LSTM, 1 x 512" in lines
