"""Results are collected from run directories as they are."""

import json
import shutil

import pytest

from experiments.common import results
from experiments.common.results import RESULTS, collect, draw, main
from experiments.common.run_directory import read_environment
from tests.experiments.toys import write_run


def make_run(directory, accuracy, seed=3, rate=0.1, **options):
    config = {"model": "rmc", "train": {"seed": seed, "rate": rate}, **options}
    summary = {
        **{"seeds": [seed], "parameters": 9, "steps": 10, "train_seconds": 2.5},
        **{"test": {"loss": [accuracy]}, "score": {"name": "accuracy", "goal": "max"}},
    }
    command = f"python -m it --run-dir {directory} --no-progress --seed {seed}"
    environment = {"command": command, "git_commit": "a"}
    rows = [
        {"step": step, "split": split, "seed": seed, "accuracy": accuracy + step}
        for step in (0, 10)
        for split in ("train", "valid")
    ]
    write_run(directory, rows, config=config, summary=summary, environment=environment)


def test_collects_one_run_or_several(tmp_path):
    make_run(tmp_path / "a", 0.123456)
    make_run(tmp_path / "b", 0.5)
    both = collect(tmp_path)
    assert set(both) == {"a", "b"}
    assert both["a"] == collect(tmp_path / "a")
    assert both["a"]["accuracy"] == {"3": {"step": [0, 10], "value": [0.12346, 10.12346]}}
    # Where it ran is nobody's business.
    assert both["a"]["environment"]["command"] == "python -m it --seed 3"


def test_a_stopped_run_has_its_last_step_and_its_own_curve(tmp_path):
    for seed in (3, 5):
        make_run(tmp_path / f"rmc-{seed}", 0.25, seed=seed)
    (tmp_path / "rmc-5" / "summary.json").unlink()
    kept = collect(tmp_path)
    assert set(kept) == {"rmc", "rmc-5"}
    assert kept["rmc-5"]["summary"] == {"stopped_at": 10}
    assert kept["rmc-5"]["accuracy"]["5"]["value"] == [0.25, 10.25]
    draw(kept, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 1000


def test_collects_policies(tmp_path):
    kept = {"environment": {"command": "python -m it --run-dir x"}, "random": {"return": 9.0}}
    (tmp_path / "policies.json").write_text(json.dumps(kept))
    assert collect(tmp_path) == kept | {"environment": {"command": "python -m it"}}


def test_commits_of_all_sessions(tmp_path):
    lines = [{"step": 0, "environment": {"git_commit": c, "device": "x"}} for c in "aabba"]
    (tmp_path / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_environment(tmp_path) == {
        **{"git_commit": "a", "device": "x", "git_commits": ["a", "b", "a"]}
    }


def test_no_run(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no run in"):
        collect(tmp_path)
    assert main([str(tmp_path / "none"), "nowhere/x"]) == 2
    (tmp_path / "metrics.jsonl").touch()
    assert main([str(tmp_path), "nowhere/x"]) == 2
    assert "metrics.jsonl must hold evaluations, but is empty" in capsys.readouterr().err
    assert not (RESULTS / "nowhere").exists()


def test_seeds_in_runs_of_their_own_are_one_record(tmp_path):
    make_run(tmp_path / "rmc-3", 0.25)
    make_run(tmp_path / "rmc-5", 0.5, seed=5, lstm={"lstm_features": 3})  # Of another model.
    make_run(tmp_path / "rmc-2e-2", 0.75, seed=7)  # Its name ends with another number.
    found = collect(tmp_path)
    assert set(found) == {"rmc", "rmc-2e-2"}
    summary = found["rmc"]["summary"]
    assert (summary["seeds"], summary["parameters"], summary["train_seconds"]) == (
        [3, 5],
        9,
        [2.5, 2.5],
    )
    assert summary["test"] == {"loss": [0.25, 0.5]}
    assert found["rmc"]["accuracy"]["5"] == {"step": [0, 10], "value": [0.5, 10.5]}
    commands = [f"python -m it --seed {seed}" for seed in (3, 5)]
    assert found["rmc"]["environment"]["commands"] == commands
    draw(found, tmp_path / "drawn.png", {"random": {"accuracy": 0.2}})
    assert (tmp_path / "drawn.png").stat().st_size > 10_000
    for option in ({"rate": 0.2}, {"rmc": {"mem_slots": 2}}):
        make_run(tmp_path / "rmc-6", 0.5, seed=6, **option)
        with pytest.raises(ValueError, match="runs of rmc must differ only in the seed"):
            collect(tmp_path)
        shutil.rmtree(tmp_path / "rmc-6")
    make_run(tmp_path / "rmc", 0.25)
    with pytest.raises(ValueError, match=r"runs of rmc must have different seeds, got \[3, 3, 5\]"):
        collect(tmp_path)


def test_runs_are_joined_with_the_kept(tmp_path, monkeypatch, capsys):
    """As if all runs had been in one directory; seeds that are kept already are replaced."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    runs, whole = tmp_path / "runs", tmp_path / "whole"
    for model, seed in (("rmc", 3), ("rmc", 5), ("rmc", 7), ("lstm", 3), ("dnc", 3)):
        make_run(runs / f"{model}-{seed}" / f"{model}-{seed}", seed / 10, seed=seed)
        make_run(whole / f"{model}-{seed}", seed / 10, seed=seed)
    for number, name in enumerate(("rmc-3", "lstm-3", "dnc-3", "rmc-5", "lstm-3", "rmc-7")):
        assert main([str(runs / name), "a", *["--join"][: min(number, 1)]]) == 0
    kept = json.loads((tmp_path / "results" / "a.json").read_text())
    assert kept == json.loads(json.dumps(collect(whole)))
    assert list(kept["rmc"]["accuracy"]) == ["3", "5", "7"]
    assert (tmp_path / "results" / "a.png").stat().st_size > 10_000
    shutil.rmtree(runs / "rmc-5" / "rmc-5")
    make_run(runs / "rmc-5" / "rmc-9", 0.5, seed=9, rate=0.3)
    capsys.readouterr()
    assert main([str(runs / "rmc-5"), "a", "--join"]) == 2
    assert "runs of rmc must differ only in the seed" in capsys.readouterr().err
    assert main([str(runs / "rmc-7"), "a", "--join"]) == 2
    assert "must have the seeds [3, 5, 7] or others, got [7]" in capsys.readouterr().err
    assert json.loads((tmp_path / "results" / "a.json").read_text()) == kept
    assert main([str(runs / "rmc-3" / "rmc-3"), "a", "--join"]) == 2
    assert "--join is for a directory of runs named MODEL" in capsys.readouterr().err
    assert main([str(runs / "rmc-3"), "a", "--policies", "box_world/none"]) == 2
    assert main([str(runs / "rmc-3" / "rmc-3"), "b", "--policies", "box_world/none"]) == 2
    assert "--policies is for a directory of several runs" in capsys.readouterr().err
    (runs / "rmc-3" / "rmc-3" / "summary.json").rename(runs / "summary.json")
    (runs / "rmc-3" / "rmc-3").rename(runs / "rmc-3" / "rmc")
    assert main([str(runs / "rmc-3"), "a", "--join"]) == 2
    assert "the run of rmc must be finished: it would replace" in capsys.readouterr().err
    assert json.loads((tmp_path / "results" / "a.json").read_text()) == kept


def test_seeds_that_ran_together_are_joined_with_others():
    """Options that change no number may differ; each seed has its share of the seconds."""

    def record(*seeds, seconds, **train):
        config = {"model": "rmc", "preset": "quick", "train": {"seed": seeds[0], **train}}
        summary = {"seeds": list(seeds), "train_seconds": seconds}
        return {"rmc": {"config": config, "summary": summary, "environment": {"command": "it"}}}

    together = record(0, 1, 2, seconds=300.0, num_seeds=3, rate=0.1)
    alone = record(3, seconds=110.0, num_seeds=1, rate=0.1, minutes=9.0)
    summary = results.merge(together, alone)["rmc"]["summary"]
    assert summary == {"seeds": [0, 1, 2, 3], "train_seconds": [100.0, 100.0, 100.0, 110.0]}
    assert results.fastest(summary, "train_seconds") == 100.0
    assert results.fastest(together["rmc"]["summary"], "train_seconds") == 100.0
    with pytest.raises(ValueError, match="must differ only in the seed"):
        results.merge(together, record(3, seconds=110.0, num_seeds=1, rate=0.2))


def test_runs_that_were_all_stopped_are_kept_without_a_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    make_run(tmp_path / "runs" / "rmc-3", 0.25)
    (tmp_path / "runs" / "rmc-3" / "summary.json").unlink()
    assert main([str(tmp_path / "runs"), "a"]) == 0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["a.json"]
