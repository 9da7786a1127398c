"""Results are collected from run directories as they are."""

import json

import pytest

from experiments.common.results import collect


def make_run(directory, accuracy):
    directory.mkdir(parents=True)
    for name in ("config", "summary"):
        (directory / f"{name}.json").write_text(json.dumps({"of": name}))
    command = f"python -m it --run-dir {directory} --no-progress --seed 3"
    (directory / "environment.json").write_text(json.dumps({"command": command, "git_commit": "a"}))
    rows = [
        {"step": step, "split": split, "seed": 3, "accuracy": accuracy + step}
        for step in (0, 10)
        for split in ("train", "valid")
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_collects_one_run_or_several(tmp_path):
    make_run(tmp_path / "a", 0.123456)
    make_run(tmp_path / "b", 0.5)
    both = collect(tmp_path)
    assert set(both) == {"a", "b"}
    assert both["a"] == collect(tmp_path / "a")
    assert both["a"]["accuracy"] == {"3": {"step": [0, 10], "value": [0.12346, 10.12346]}}
    # Where it ran is nobody's business.
    assert both["a"]["environment"]["command"] == "python -m it --seed 3"


def test_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run in"):
        collect(tmp_path)
