"""The results table says what the runs' files say."""

import csv
import io
import json
from typing import Any

import pytest

from experiments.comparison import collect, compare, find_runs
from experiments.comparison.__main__ import main
from experiments.comparison.table import to_csv, to_markdown

ENVIRONMENT = {
    "command": "python -m experiments.nth_farthest --model rmc",
    **{"processor": "Some CPU", "cpu_cores": 2, "device": "cpu", "git_commit": "abc"},
}


def make_run(directory, model="rmc", accuracies=None, seconds_per_step=0.5, **changes: Any):
    """A finished run; `accuracies` by seed, evaluated every 10 updates."""
    accuracies = accuracies or {0: [0.5, 0.7, 0.9], 1: [0.5, 0.6, 0.8]}
    steps = [10 * i for i in range(len(next(iter(accuracies.values()))))]
    config = {
        **{"preset": "quick", "model": model, "dtype": "float32"},
        "task": {"num_objects": 4, "num_features": 2},
        "rmc": {"mem_slots": 4},
        "lstm": {"lstm_features": 8},
        "train": {"steps": steps[-1], "batch_size": 16, "seed": min(accuracies), "num_seeds": 2},
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section] = {**config[section], field: value} if field else value
    seconds = seconds_per_step * steps[-1]
    summary = {
        **{"steps": steps[-1], "seeds": sorted(accuracies), "parameters": 1234},
        **{"train_seconds": seconds, "wall_seconds": 2 * seconds},
    }
    directory.mkdir(parents=True)
    for name, content in (("config", config), ("summary", summary), ("environment", ENVIRONMENT)):
        (directory / f"{name}.json").write_text(json.dumps(content))
    rows = [
        {"step": step, "split": "valid", "seed": seed, "accuracy": value}
        for seed, values in accuracies.items()
        for step, value in zip(steps, values, strict=True)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    timings = [{"step": s, "wall_seconds": 2 * seconds_per_step * s} for s in steps[1:]]
    (directory / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timings))
    return directory


def table(*directories, **options):
    return compare(collect(find_runs(directories)), **{"threshold": 0.8, **options})


def test_models_at_equal_updates_with_thresholds_and_speed(tmp_path):
    make_run(tmp_path / "a" / "rmc")
    make_run(tmp_path / "a" / "lstm", "lstm", {0: [0.5, 0.5], 1: [0.5, 0.52]}, 0.25)
    lstm, rmc = table(tmp_path)
    assert (
        lstm["task"]
        == rmc["task"]
        == ("nth_farthest, num_objects 4, num_features 2, batch_size 16")
    )
    assert (rmc["model"], lstm["model"]) == ("rmc", "lstm")
    # The LSTM was evaluated up to update 10 only.
    assert rmc["update"] == lstm["update"] == 10
    assert rmc["accuracy"] == [0.7, 0.6]
    assert rmc["mean"] == 0.65
    assert rmc["deviation"] == pytest.approx(0.0707, abs=1e-4)
    assert rmc["updates_to"] == [20, 20]
    assert rmc["seconds_to"] == [10.0, 10.0]  # 20 s for two seeds side by side.
    assert lstm["updates_to"] == lstm["seconds_to"] == [None, None]
    assert rmc["updates_per_second"] == 4.0  # 2 seeds, 0.5 s per update.
    assert lstm["updates_per_second"] == 8.0
    assert to_markdown([lstm, rmc]) == (
        "**nth_farthest, num_objects 4, num_features 2, batch_size 16**\n\n"
        "| model | accuracy (%) at update 10 | seeds | updates to 80% | seconds to 80%, per seed |"
        " parameters | updates/s |\n"
        "|---|---|---|---|---|---|---|\n"
        "| lstm | 51.0 (50.0 to 52.0) | 2 | never | never | 1,234 | 8.0 |\n"
        "| rmc | 65.0 (60.0 to 70.0) | 2 | 20 | 10 | 1,234 | 4.0 |\n\n"
        "Hardware: Some CPU, 2 cores, cpu. Commit: abc.\n"
    )


def test_seeds_of_one_config_are_put_together(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", accuracies={7: [0.5, 0.6, 0.7]}, train__seed=7, preset="other")
    (row,) = table(tmp_path)
    assert row["seeds"] == [0, 1, 7]
    assert row["updates_to"] == [20, 20, None]
    assert "| 20 (2 of 3) |" in to_markdown([row])


def test_a_seed_that_is_there_twice_is_an_error_that_names_both_runs(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    make_run(tmp_path / "c", accuracies={2: [0.5, 0.6, 0.7]}, train__seed=2)
    one, other = tmp_path / "a", tmp_path / "b"
    with pytest.raises(ValueError, match=rf"{other} repeats seeds \[0, 1\] of {one};"):
        table(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {other} repeats seeds [0, 1] of {one};")
    # Each of its seeds was in a run of its own, behind one that shares none.
    make_run(other / "d", accuracies={0: [0.5, 0.6, 0.7], 2: [0.5, 0.6, 0.7]})
    with pytest.raises(ValueError, match=rf"d repeats seeds \[0, 2\] of {one} and {tmp_path}/c;"):
        collect([one, tmp_path / "c", other / "d"])


def test_other_sizes_of_a_model_are_told_apart_and_other_models_sizes_do_not_matter(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", rmc__mem_slots=8)
    make_run(tmp_path / "c", accuracies={5: [0.5, 0.6, 0.7]}, lstm__lstm_features=99)
    rows = table(tmp_path)
    assert [row["model"] for row in rows] == ["rmc (mem_slots 4)", "rmc (mem_slots 8)"]
    assert rows[0]["seeds"] == [0, 1, 5]


def test_tasks_have_tables_of_their_own(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", task__num_objects=8)
    make_run(tmp_path / "c", task="reverse", train__batch_size=32)
    rows = table(tmp_path)
    assert [row["task"] for row in rows] == [
        "nth_farthest, num_objects 4, num_features 2, batch_size 16",
        "nth_farthest, num_objects 8, num_features 2, batch_size 16",
        "nth_farthest, reverse, batch_size 32",
    ]
    assert to_markdown(rows).count("| model |") == 3


def test_command_writes_the_files_and_leaves_out_what_is_not_a_run(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a")
    others = [make_run(tmp_path / "runs" / name) for name in ("row", "row2")]
    for other in others:
        (other / "config.json").write_text('{"row": "base", "config": {}}')
    (tmp_path / "runs" / "summary.json").write_text("{}")  # Of several models: no metrics.
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out-dir", str(out), "--at-step", "0"]) == 0
    printed = capsys.readouterr()
    names = ", ".join(map(str, others))
    assert printed.err == f"left out, not runs of one model on one task: {names}\n"
    assert printed.out == (out / "comparison.md").read_text()
    (row,) = json.loads((out / "comparison.json").read_text())
    assert (row["update"], row["threshold"], row["mean"]) == (0, 0.9, 0.5)
    (line,) = csv.DictReader(io.StringIO((out / "comparison.csv").read_text()))
    assert (line["accuracy"], line["updates_to"], line["seeds"]) == ("0.5 0.5", "20 ", "0 1")


def test_nothing_to_compare_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no finished run in" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: no such directory: {tmp_path / 'none'}\n"
    make_run(tmp_path / "a")
    assert main([str(tmp_path), "--at-step", "15"]) == 2
    assert "error: --at-step must be one of 0, 10, 20 for nth_f" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--at-step must be one of 0, 10, 20 for .*, got 15"):
        table(tmp_path, at_step=15)
    assert main([str(tmp_path), "--threshold", "90"]) == 2
    assert capsys.readouterr().err == "error: --threshold must lie between 0 and 1, got 90.0\n"
    make_run(tmp_path / "b", accuracies={5: [0.5]}, seconds_per_step=1.0)
    (tmp_path / "b" / "metrics.jsonl").write_text(
        '{"step": 7, "split": "valid", "seed": 5, "accuracy": 0.5}\n'
    )
    assert main([str(tmp_path)]) == 2
    assert "were not evaluated at any update in common" in capsys.readouterr().err


def test_csv_names_its_columns(tmp_path):
    make_run(tmp_path / "a")
    assert to_csv(table(tmp_path)).splitlines()[0] == (
        "task,model,seeds,update,accuracy,mean,deviation,threshold,updates_to,seconds_to,"
        "parameters,updates_per_second,hardware,commits"
    )
