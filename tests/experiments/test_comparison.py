"""The results table contains the numbers of the runs' files."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.comparison import collect, find_runs, main, tables
from tests.experiments.toys import write_run

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
        "rmc": {"mem_slots": 4, "rmc_learning_rate": None},
        "lstm": {"lstm_features": 8},
        "train": {"steps": steps[-1], "batch_size": 16, "seed": min(accuracies), "num_seeds": 2},
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section] = {**config[section], field: value} if field else value
    seconds = seconds_per_step * steps[-1]
    summary = {
        **{"steps": steps[-1], "seeds": sorted(accuracies), "parameters": 1234},
        **{"train_seconds": seconds, "score": {"name": "accuracy", "goal": "max"}},
    }
    rows = [
        {"step": step, "split": "valid", "seed": seed, "accuracy": value}
        for seed, values in accuracies.items()
        for step, value in zip(steps, values, strict=True)
    ]
    timings = [{"step": s, "seconds": seconds_per_step * s} for s in steps[1:]]
    about = {"config": config, "summary": summary, "environment": ENVIRONMENT}
    return write_run(directory, rows, timings, **about)


def rows_of(*directories, **options):
    return tables(collect(find_runs(directories))[0], **options)[0]


def test_models_at_equal_updates_and_time_with_scores_to_reach(tmp_path):
    make_run(tmp_path / "a" / "rmc")
    make_run(tmp_path / "a" / "lstm", "lstm", {0: [0.5, 0.5], 1: [0.5, 0.52]}, 0.25)
    entries, left_out = collect(find_runs([tmp_path]))
    rows, text = tables(entries, to=[0.8])
    assert left_out == []
    assert {row["task"] for row in rows} == {"nth_farthest, quick"}
    assert [(row["at"], row["model"]) for row in rows] == [
        *(("updates", "rmc"), ("updates", "lstm"), ("time", "rmc"), ("time", "lstm")),
        *(("accuracy 0.8", "rmc"), ("accuracy 0.8", "lstm")),
    ]
    rmc, lstm = rows[:2]
    # The LSTM was evaluated up to update 10 only.
    assert rmc["update"] == lstm["update"] == 10
    assert (rmc["values"], lstm["values"]) == ([0.7, 0.6], [0.5, 0.52])
    assert lstm["difference"] == pytest.approx(-0.14)
    # In the LSTM's 1.25 s a seed the memory core, of 2.5 s for 10 updates, has made none.
    assert [row["values"] for row in rows[2:4]] == [[0.5, 0.5], [0.5, 0.52]]
    assert (rows[4]["updates_to"], rows[4]["seconds_to"]) == ([20, 20], [5.0, 5.0])
    assert rows[5]["updates_to"] == rows[5]["seconds_to"] == [None, None]
    assert text.startswith("**nth_farthest, quick**\n\nAt equal updates, after 10 updates:")
    assert "| accuracy 0.8 | rmc | 20 | 5 | 2 of 2 |\n" in text
    assert "| accuracy 0.8 | lstm | never | never | 0 of 2 |\n" in text
    assert text.endswith("Hardware: Some CPU, 2 cores, cpu. Commit: abc.\n")
    other = tables(entries, first="lstm")[0]
    assert [row["model"] for row in other[:2]] == ["lstm", "rmc"]


def test_seeds_of_one_config_are_put_together(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", accuracies={7: [0.5, 0.6, 0.7]}, train__seed=7, preset="other")
    rows = rows_of(tmp_path, to=[0.8])
    assert rows[0]["seeds"] == [0, 1, 7]
    assert rows[-1]["updates_to"] == [20, 20, None]
    # Two seeds took .25 s an update each, the third .5 s.
    assert rows[0]["seconds_per_update"] == pytest.approx(1 / 3)


def test_of_a_sweep_only_fresh_seeds_count(tmp_path, monkeypatch):
    chosen = make_run(tmp_path / "rmc" / "learning-rate_1e-3")
    assert find_runs([tmp_path]) == [chosen]
    (tmp_path / "options.json").write_text("[]")
    fresh = make_run(tmp_path / "rmc" / "final_2,learning-rate_1e-3")
    assert find_runs([tmp_path]) == [fresh]
    monkeypatch.chdir(tmp_path / "rmc")
    assert find_runs([Path()]) == [fresh.relative_to(tmp_path / "rmc")]


def test_at_equal_time_the_fastest_is_at_its_end_with_each_seed(tmp_path):
    for seed, seconds in enumerate((1.0, 1.01)):  # As seeds that trained on their own.
        make_run(tmp_path / str(seed), accuracies={seed: [0.5, 0.7, 0.9]}, seconds_per_step=seconds)
    make_run(tmp_path / "lstm", "lstm", seconds_per_step=5.0)
    (row,) = (row for row in rows_of(tmp_path) if (row["at"], row["model"]) == ("time", "rmc"))
    assert row["values"] == [0.9, 0.9]


def test_a_seed_that_is_there_twice_is_an_error_that_names_both_runs(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    make_run(tmp_path / "c", accuracies={2: [0.5, 0.6, 0.7]}, train__seed=2)
    one, other = tmp_path / "a", tmp_path / "b"
    with pytest.raises(ValueError, match=rf"{other} repeats seeds \[0, 1\] of {one};"):
        rows_of(tmp_path)
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
    entries, _ = collect(find_runs([tmp_path]))
    assert [sorted(entry.run.seeds) for entry in entries] == [[0, 1, 5], [0, 1]]
    rows, _ = tables(entries)
    assert [row["model"] for row in rows[:2]] == ["rmc (mem_slots 4)", "rmc (mem_slots 8)"]
    assert rows[0]["seeds"] == [0, 1]  # Those that both have.


def test_a_core_that_is_not_registered_now_does_not_define_a_task(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", gru={"gru_features": 3}, accuracies={7: [0.5, 0.6, 0.7]})
    make_run(tmp_path / "c", "gru", gru={"gru_features": 3})
    entries, _ = collect(find_runs([tmp_path]))
    assert [(entry.model, list(entry.run.seeds)) for entry in entries] == [
        *(("rmc", [0, 1, 7]), ("gru", [0, 1])),
    ]
    assert len({json.dumps(entry.task) for entry in entries}) == 1


def test_tasks_have_tables_of_their_own_named_by_what_differs(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", task__num_objects=8)
    make_run(tmp_path / "c", task__num_objects=8, train__batch_size=32)
    rows = rows_of(tmp_path)
    assert list(dict.fromkeys(row["task"] for row in rows)) == [
        "nth_farthest, quick, num_objects 4, batch_size 16",
        "nth_farthest, quick, num_objects 8, batch_size 16",
        "nth_farthest, quick, num_objects 8, batch_size 32",
    ]


def test_command_writes_the_files_and_leaves_out_what_is_not_a_run(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a")
    others = [make_run(tmp_path / "runs" / name) for name in ("row", "row2")]
    for other in others:
        (other / "config.json").write_text('{"row": "base", "config": {}}')
    (tmp_path / "runs" / "summary.json").write_text("{}")  # Of several models: no metrics.
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out-dir", str(out), "--to", "0.9"]) == 0
    printed = capsys.readouterr()
    names = ", ".join(map(str, others))
    assert printed.err == f"left out, not runs of one model on one task: {names}\n"
    assert printed.out == (out / "comparison.md").read_text()
    updates, _, reached = json.loads((out / "comparison.json").read_text())
    assert updates["mean"] == pytest.approx(0.85)
    assert (updates["commits"], reached["updates_to"]) == (["abc"], [20, None])
    *_, line = csv.DictReader(io.StringIO((out / "comparison.csv").read_text()))
    assert (line["at"], line["updates_to"], line["seeds"]) == ("accuracy 0.9", "20 None", "0 1")


def test_nothing_to_compare_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no finished run in" in capsys.readouterr().err
    assert main([str(tmp_path), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: no such directory: {tmp_path / 'none'}\n"
    make_run(tmp_path / "a")
    assert main([str(tmp_path), "--first", "gru"]) == 2
    assert "--first must be one of the runs' models, got gru" in capsys.readouterr().err
    make_run(tmp_path / "b", "lstm", {5: [0.5]}, seconds_per_step=1.0)
    assert main([str(tmp_path)]) == 2
    assert "nth_farthest, quick: the runs have no seed in common" in capsys.readouterr().err
    make_run(tmp_path / "c", "lstm", {0: [0.5], 1: [0.5]}, train__steps=20)
    (tmp_path / "b" / "summary.json").unlink()
    rows = [{"step": 7, "split": "valid", "seed": seed, "accuracy": 0.5} for seed in (0, 1)]
    (tmp_path / "c" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "c" / "timings.jsonl").write_text('{"step": 7, "seconds": 1.0}\n')
    assert main([str(tmp_path)]) == 2
    assert "were not evaluated after any update in common" in capsys.readouterr().err
