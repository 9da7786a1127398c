"""Table 1 from runs in every state, and which runs are trained for it."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from experiments.common.run_directory import write_json
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
    write_json(directory / "environment.json", environment)


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


SEARCHED = Path(table.__file__).parents[1] / "results" / "program_evaluation" / "quick_rates.json"
LABELS = {
    "lstm": "LSTM",
    "rmc": "RMC, gates per slot",
    "rmc, gates per unit": "RMC, gates per unit",
}


def test_searched_rates_are_quoted_as_they_were_measured():
    text = (Path(table.__file__).parent / "README.md").read_text()
    for task, found in json.loads(SEARCHED.read_text()).items():
        for name, rates in found["rates"].items():
            (line,) = re.findall(rf"^\| {task}, {LABELS[name]} \| (.*) \|$", text, re.M)
            cells = [cell for cell in line.split(" | ") if cell != "-"]
            assert cells == [f"{100 * score:.1f} %" for score in rates.values()]
        for at in ("updates", "time"):
            cells = dict.fromkeys(LABELS, "-")
            for row in found["seeds"]:
                if row["at"] == at:
                    cells[row["model"]] = quoted(row)
            assert f"| {task} | {' | '.join(cells.values())} |" in text


def quoted(row):
    assert len(row["seeds"]) == 5
    least, most = (100 * pick(row["values"]) for pick in (min, max))
    cell = f"{100 * row['mean']:.1f} % ({least:.1f} to {most:.1f})"
    if "interval" not in row:
        return cell
    low, high = (100 * end for end in row["interval"])
    return f"{cell}; {100 * row['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def test_what_is_said_of_searched_rates_follows_from_them():
    kept = json.loads(SEARCHED.read_text())
    text = " ".join((Path(table.__file__).parent / "README.md").read_text().split())
    wide = {row["setting"]: f"{100 * row['test']:.1f} %" for row in kept["control"]["wider"]}
    for gates, before in (("memory", "gates per slot give"), ("unit", "gates per unit")):
        scores = [score for name, score in wide.items() if f"gate-style_{gates}" in name]
        assert f"{before} {', '.join(scores)} with" in text
    rows = {
        (task, row["model"]): row
        for task, found in kept.items()
        for row in found["seeds"]
        if row["at"] == "updates"
    }
    for task in ("control", "program"):  # "The LSTM is ahead", "most of the distance".
        assert rows[task, "rmc"]["interval"][1] < 0
        assert rows[task, "rmc, gates per unit"]["difference"] > rows[task, "rmc"]["difference"] / 2
    low, high = rows["control", "rmc, gates per unit"]["interval"]
    assert low < 0 < high  # "Level".
    assert rows["program", "rmc, gates per unit"]["interval"][1] < 0
    assert [value > 0.99 for value in rows["addition", "rmc"]["values"]].count(False) == 1
    page = (Path(table.__file__).parents[2] / "README.md").read_text()
    for name, title in {
        "rmc": "Relational Memory Core, gates per slot, as in the paper",
        "rmc, gates per unit": "Relational Memory Core, gates per unit",
        "lstm": "LSTM",
    }.items():
        found = [rows.get((task, name)) for task in kept]
        cells = [quoted(row).split(";")[0].replace(" %", "") if row else "-" for row in found]
        assert f"| {title} | {' | '.join(cells)} |" in page


def test_the_papers_difficulty_is_quoted_as_it_was_measured():
    kept = json.loads(SEARCHED.with_name("length_5.json").read_text())
    page = (Path(table.__file__).parent / "README.md").read_text()
    section = page.split("### The paper's difficulty\n")[1]
    assert len(kept) == 6
    for model, title in {"rmc": "RMC, gates per unit", "lstm": "LSTM"}.items():
        cells = []
        for task in ("addition", "control", "program"):
            run = kept[f"{task}-{model}"]
            assert run["config"]["difficulty"]["length"] == 5
            assert run["config"]["difficulty"]["nesting"] == 2
            found = run["summary"]["test"]
            shares = (found[name][0] for name in ("accuracy", "sequence_accuracy"))
            cells.append("{:.1f} % ({:.1f} %)".format(*(100 * share for share in shares)))
        assert f"| {title} | {' | '.join(cells)} |" in section
    gaps = [
        kept[f"{task}-lstm"]["summary"]["test"]["accuracy"][0]
        - kept[f"{task}-rmc"]["summary"]["test"]["accuracy"][0]
        for task in ("addition", "control", "program")
    ]
    assert gaps[0] < -0.05  # "Ahead."
    assert abs(gaps[1]) < 0.005  # "As many characters."
    assert gaps[2] > 0.02
    minutes = {name: f"{run['summary']['train_seconds'] / 60:.0f}" for name, run in kept.items()}
    text = " ".join(section.split())
    assert "took {addition-rmc}, {control-rmc} and {program-rmc} min".format(**minutes) in text
    assert "{addition-lstm}, {control-lstm} and {program-lstm} for".format(**minutes) in text
