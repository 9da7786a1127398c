"""The sweep: which settings run, which are skipped, and how the best is chosen."""

import json
import sys

import pytest

from experiments import sweep
from tests.experiments.test_report import make_run


def fake(scores, calls):
    """In place of training: summaries with scores by model and rate."""

    def run_commands(commands, jobs, progress):
        for run_dir, command in commands.items():
            calls.append(command)
            model = command[command.index("--model") + 1]
            rate = command[command.index("--learning-rate") + 1]
            if "1000" in command:  # Fresh seeds.
                curve = [3.0, 2.0, 1.0 if model == "rmc" else 0.5]
                make_run(run_dir, [curve] * 5, curve[-1:] * 5, 50, tuple(range(1000, 1005)))
                continue
            valid, test = scores[model, rate]
            run_dir.mkdir(parents=True)
            summary = {
                **{"seeds": [0, 1], "parameters": 1000, "evaluation": {"nats": valid}},
                **{"test": {"nats": test}, "score": {"name": "nats", "goal": "min"}},
            }
            (run_dir / "summary.json").write_text(json.dumps(summary))
        return dict.fromkeys(commands, 0)

    return run_commands


def test_the_best_is_chosen_on_valid_and_reported_on_test(tmp_path, monkeypatch, capsys):
    scores = {
        ("rmc", "1e-3"): ([2.0, 2.2], [1.0, 1.0]),  # Better on test, which must not count.
        ("rmc", "3e-3"): ([1.8, 1.9], [3.0, 3.2]),
        ("lstm", "1e-3"): ([1.0, 1.1], [1.5, 1.7]),
        ("lstm", "3e-3"): ([1.2, 1.1], [1.4, 1.4]),
    }
    calls = []
    monkeypatch.setattr(sweep, "run_commands", fake(scores, calls))
    start = ["some", "--run-dir", str(tmp_path / "s"), "--vary", "learning-rate", "1e-3", "3e-3"]
    assert sweep.main([*start, "--models", "rmc", "--", "--steps", "5"]) == 0
    assert len(calls) == 2
    assert calls[0][:5] == [sys.executable, "-m", "experiments.some", "--steps", "5"]
    # Another model: what is done is skipped.
    assert sweep.main([*start, "--models", "rmc", "lstm", "--", "--steps", "5"]) == 0
    assert [command[command.index("--model") + 1] for command in calls] == ["rmc"] * 2 + [
        "lstm"
    ] * 2
    printed = capsys.readouterr().out
    assert "2 of 4 runs are done" in printed
    best = "| rmc | learning-rate_3e-3 | 1.85 (1.8 to 1.9) | 3.1 (3 to 3.2) | 1,000 | 2 |"
    assert best in printed
    assert (
        "| lstm | learning-rate_1e-3 | 1.05 (1 to 1.1) | 1.6 (1.5 to 1.7) | 1,000 | 2 |" in printed
    )
    assert (tmp_path / "s" / "sweep.md").read_text() in printed
    assert sweep.main([*start, "--models", "rmc", "--", "--steps", "6"]) == 2
    assert "holds a sweep of some --steps 5" in capsys.readouterr().err
    # A command that no run accepted does not count.
    (tmp_path / "t" / "rmc" / "learning-rate_1e-3").mkdir(parents=True)
    (tmp_path / "t" / "options.json").write_text('["some", "--stepz", "5"]')
    start[2] = str(tmp_path / "t")
    monkeypatch.setattr(sweep, "run_commands", lambda *_: {})
    assert sweep.main([*start, "--models", "rmc", "--", "--steps", "5"]) == 2
    assert "no run of the sweep is finished" in capsys.readouterr().err


def test_the_best_settings_are_compared_with_fresh_seeds(tmp_path, monkeypatch, capsys):
    scores = {
        ("rmc", "1e-3"): ([2.0], [1.0]),
        ("rmc", "3e-3"): ([1.8], [3.0]),
        ("lstm", "1e-3"): ([1.0], [1.5]),
        ("lstm", "3e-3"): ([1.2], [1.4]),
    }
    calls = []
    monkeypatch.setattr(sweep, "run_commands", fake(scores, calls))
    command = ["some", "--run-dir", str(tmp_path / "s"), "--models", "rmc", "lstm", "--final-seeds"]
    command += ["5", "--vary", "learning-rate", "1e-3", "3e-3", "--", "--seed", "3"]
    assert sweep.main(command) == 0
    assert len(calls) == 6
    assert [c[c.index("--learning-rate") + 1] for c in calls[4:]] == ["3e-3", "1e-3"]
    # What is asked for last counts.
    assert calls[4][3:9] == ["--seed", "3", "--seed", "1000", "--num-seeds", "5"]
    printed = capsys.readouterr().out
    assert "At equal updates, after 20 updates:" in printed
    assert "| lstm | 0.5 (0.5 to 0.5) | 5 | -0.5 (-0.5 to -0.5) | better |" in printed
    for name in ("report.md", "report.csv", "report.json", "report.png"):
        assert (tmp_path / "s" / name).stat().st_size > 100
    assert sweep.main(command) == 0
    assert len(calls) == 6
    assert "2 of 2 runs are done" in capsys.readouterr().out
    command[command.index("5")] = "2"  # Other final runs.
    assert sweep.main(command) == 0
    assert len(calls) == 8
    assert sweep.main([*command[:3], "--models", "rmc", "--final-seeds", "-1"]) == 2
    assert "--final-seeds must be at least 0, got -1" in capsys.readouterr().err
    monkeypatch.setattr(sweep, "FINAL_SEED", 1)  # The settings were chosen by seeds 0 and 1.
    assert sweep.main(command) == 2
    assert "must leave the seeds from 1 on to the final runs, got seed 1" in capsys.readouterr().err


def test_a_setting_that_diverges_is_left_out(tmp_path, monkeypatch, capsys):
    run = fake({("rmc", "1e-3"): ([2.0], [1.0])}, [])

    def run_commands(commands, jobs, progress):
        stable = {path: command for path, command in commands.items() if "1e30" not in command}
        return dict.fromkeys(commands, 3) | run(stable, jobs, progress)

    monkeypatch.setattr(sweep, "run_commands", run_commands)
    command = ["some", "--run-dir", str(tmp_path / "s"), "--models", "rmc", "--final-seeds", "5"]
    assert sweep.main([*command, "--vary", "learning-rate", "1e-3", "1e30"]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 's' / 'rmc' / 'learning-rate_1e30'}: became NaN" in printed
    assert (tmp_path / "s" / "report.md").exists()


def test_a_model_that_diverges_with_fresh_seeds_is_not_compared(tmp_path, monkeypatch, capsys):
    run = fake({(model, "1"): ([2.0], [1.0]) for model in ("rmc", "lstm", "dnc")}, [])

    def run_commands(commands, jobs, progress):
        bad = {p: 3 for p, c in commands.items() if {"dnc", "1000"} <= {*c}}
        stable = {path: command for path, command in commands.items() if path not in bad}
        return run(stable, jobs, progress) | bad

    monkeypatch.setattr(sweep, "run_commands", run_commands)
    command = ["some", "--run-dir", str(tmp_path / "s"), "--models", "rmc", "lstm", "dnc"]
    assert sweep.main([*command, "--final-seeds", "5", "--vary", "learning-rate", "1"]) == 0
    assert "dnc/final_5,learning-rate_1: became NaN or infinite" in capsys.readouterr().out
    report = (tmp_path / "s" / "report.md").read_text()
    assert "| lstm |" in report
    assert "| dnc |" not in report


def test_a_score_that_is_nan_is_left_out(tmp_path, monkeypatch, capsys):
    nan = float("nan")
    scores = {("rmc", "1"): ([nan, 1.0], [1.0]), ("rmc", "2"): ([2.0, 2.0], [1.0])}
    monkeypatch.setattr(sweep, "run_commands", fake(scores, []))
    command = ["some", "--run-dir", str(tmp_path / "s"), "--models", "rmc"]
    assert sweep.main([*command, "--vary", "learning-rate", "1", "2"]) == 0
    printed = capsys.readouterr().out
    assert "learning-rate_1: its score has no finite value" in printed
    assert "| rmc | learning-rate_2 | 2 (2 to 2) | 1 | 1,000 | 1 |" in printed


REFUSED = {
    "some --models rmc all": "--models must be names of single models, got all",
    "program_evaluation --models rmc": "--task must be one task, after --, got all",
    "program_evaluation --models rmc -- --task=all": "--task must be one task",
    "some --models rmc --vary task a b": "--vary must leave the task as it is",
    "some --models rmc --vary steps": "--vary steps must have values",
    "some --models rmc --vary lstmm:steps 1": "one of --models rmc, got 'lstmm'",
    "some --models rmc --vary lr 1 --vary lr 2": "must be given once",
    "some --models rmc --vary num_seeds 1 2": "--vary must leave the num-seeds as it is",
    "some --models rmc --vary rmc:seed 1 2": "--vary must leave the seed as it is",
    "some --models rmc --vary rmc:steps 1 --vary rmc:steps 2": "--vary rmc:steps must be given",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_wrong_is_refused_before_training(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run_commands", None)
    assert sweep.main(command.split()) == 2
    assert REFUSED[command] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_settings_are_all_combinations_of_what_is_the_models():
    vary = [["learning-rate", "1", "2"], ["lstm:lstm-layers", "1", "3"]]
    assert len(sweep.settings_of("lstm", vary)) == 4
    assert sweep.settings_of("lstm", vary)[1] == {"learning-rate": "1", "lstm-layers": "3"}
    assert sweep.settings_of("rmc", []) == [{}]
    for vary in ([["lstm:steps", "3"], ["steps", "1", "2"]], [["steps", "1"], ["lstm:steps", "3"]]):
        assert sweep.settings_of("lstm", vary) == [{"steps": "3"}]
