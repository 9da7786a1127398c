"""Table 1 from runs in every state, and which runs are trained for it."""

import dataclasses
import json
import sys

import pytest

from experiments.common.records import append_rows, write_json
from experiments.program_evaluation import PRESETS, table
from experiments.program_evaluation.__main__ import main
from experiments.program_evaluation.train import nested_runs

CONFIG = dataclasses.replace(PRESETS["quick"], task="copy")


def leave_run(directory, config, accuracies):
    """What training leaves of a finished run, with two seeds and the same accuracies in each."""
    directory.mkdir(parents=True)
    write_json(directory / "config.json", dataclasses.asdict(config))
    rows = [
        {"step": step, "split": split, "seed": seed, "accuracy": value, "loss": 1.0}
        for step, value in enumerate(accuracies)
        for split in ("train", "valid")
        for seed in (0, 1)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = {"accuracy": [accuracies[-1]] * 2, "sequence_accuracy": [0.25, 0.75]}
    write_json(
        directory / "summary.json",
        {
            **{"parameters": 300_000, "core_parameters": 25_000, "wall_seconds": 90.0},
            **{"evaluation": evaluation, "best_accuracy": [max(accuracies)] * 2},
        },
    )
    command = f"python -m experiments.program_evaluation --run-dir {directory} --no-progress"
    environment = {
        **{"processor": "Abacus", "cpu_cores": 2, "device": "cpu"},
        **{"git_commit": "abc", "command": command},
    }
    append_rows(directory / "sessions.jsonl", [{"step": 0, "environment": environment}])


@pytest.fixture
def run_dir(tmp_path):
    runs = nested_runs(CONFIG, tmp_path)
    for model, accuracies in {"rmc": [0.1, 0.995, 0.9912], "lstm": [0.1, 0.5, 0.6]}.items():
        leave_run(*runs["copy", model], accuracies)
    # One that has only begun: it is neither in the table nor in the plots.
    runs["copy", "dnc"][0].mkdir(parents=True)
    (runs["copy", "dnc"][0] / "metrics.jsonl").touch()
    return tmp_path


def test_table_of_what_is_there(run_dir):
    text = table.make_table(CONFIG, run_dir)
    assert (run_dir / "table.md").read_text() == text
    best, last, whole, parameters, minutes = text.split("\n\n")[:5]
    assert best.splitlines() == [
        "| Characters right (%), best evaluation | copy |",
        "|---|---|",
        "| LSTM | 60.0 (60.0 to 60.0) |",
        "| EntNet | - |",
        "| DNC | - |",
        "| Relational Memory Core | 99.5 (99.5 to 99.5) |",
        "| Trivial | 10.6 |",
        "| LSTM, paper | 99.8 |",
        "| EntNet, paper | 91.8 |",
        "| DNC, paper | 100.0 |",
        "| Relational Memory Core, paper | 100.0 |",
    ]
    assert "| Relational Memory Core | 99.1 (99.1 to 99.1) |" in last
    assert "| LSTM | 50.0 (25.0 to 75.0) |" in whole
    assert "| LSTM | 300,000 (25,000) |" in parameters
    assert "| LSTM | 1.5 |" in minutes
    assert "memorization of length 5; curriculum mix; decoding non_autoregressive" in text
    assert "seeds 0; evaluations on 12,800 samples" in text
    assert "Hardware: Abacus, 2 cores, cpu. Commit: abc.\n" in text
    content = json.loads((run_dir / "table.json").read_text())
    assert content["runs"]["copy"]["rmc"]["accuracy"]["1"]["value"] == [0.1, 0.995, 0.9912]
    environment = content["runs"]["copy"]["rmc"]["environment"]
    assert environment["command"] == "python -m experiments.program_evaluation"
    assert content["paper"]["program"]["rmc"] == 79.0
    assert content["trivial_accuracy"]["copy"] == pytest.approx(0.106, abs=0.01)
    plots = [p.name for p in (run_dir / "plots").iterdir()]
    assert sorted(plots) == ["copy_accuracy.png", "copy_loss.png"]


def test_a_run_of_another_config_is_refused(run_dir, capsys):
    arguments = ["--run-dir", str(run_dir), "--task", "copy", "--no-train"]
    assert main(["table", *arguments]) == 0
    assert "| EntNet | - |" in capsys.readouterr().out
    assert main(["table", *arguments, "--seed", "7"]) == 2
    assert "train.seed: 0 there, 7 asked" in capsys.readouterr().err


def test_a_run_of_fewer_steps_or_another_target_goes_on(run_dir, monkeypatch):
    steady = dataclasses.replace(CONFIG.train, schedule="constant", eval_samples=128)
    config = dataclasses.replace(CONFIG, train=steady)
    for model in ("rmc", "lstm"):
        directory, one = nested_runs(config, run_dir)["copy", model]
        write_json(directory / "config.json", dataclasses.asdict(one))
    assert {model for _, model in table.find_finished(config, run_dir)} == {"rmc", "lstm"}
    for change in ({"steps": 9999}, {"target": 0.9}, {"eval_samples": 256}):
        longer = dataclasses.replace(config, train=dataclasses.replace(steady, **change))
        assert not table.find_finished(longer, run_dir)
    often = dataclasses.replace(config, train=dataclasses.replace(steady, eval_every=50))
    assert len(table.find_finished(often, run_dir)) == 2


def test_trains_what_is_missing_and_reports_what_fails(run_dir, monkeypatch, capsys):
    script = "import sys; print(sys.argv[1:]); sys.exit(4 * (sys.argv[1] == 'dnc'))"
    monkeypatch.setattr(
        table,
        "command_of",
        lambda config, directory: [sys.executable, "-c", script, config.model, config.task],
    )
    arguments = ["--run-dir", str(run_dir), "--task", "copy", "--jobs", "2", "--no-progress"]
    assert main(["table", *arguments]) == 4
    printed = capsys.readouterr().out
    assert (run_dir / "copy" / "entnet" / "log.txt").read_text() == "['entnet', 'copy']\n"
    assert not (run_dir / "copy" / "rmc" / "log.txt").exists()
    assert "dnc: failed with exit code 4:\n['dnc', 'copy']\n" in printed
    assert "| EntNet | - |" in printed


def test_the_command_of_a_run_names_what_differs_from_its_preset(tmp_path):
    config = dataclasses.replace(
        PRESETS["paper"],
        task="double",
        model="dnc",
        train=dataclasses.replace(PRESETS["paper"].train, clip_norm=0.5, num_seeds=2),
    )
    command = table.command_of(config, tmp_path)
    assert command[:3] == [sys.executable, "-m", "experiments.program_evaluation"]
    options = " ".join(command[3:])
    assert options == (
        "--preset paper --task double --model dnc --clip-norm 0.5 --num-seeds 2 "
        f"--run-dir {tmp_path} --no-progress"
    )
