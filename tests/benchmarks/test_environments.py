"""The benchmark of the environments: its rows and its options."""

import json
from pathlib import Path

import pytest

from benchmarks import environments
from rrnn_jax.envs import BoxWorld


def test_rows(tmp_path, capsys, monkeypatch):
    env = BoxWorld(grid_size=5, solution_length=(1,), num_distractors=(0,), max_steps=9)
    monkeypatch.setattr(
        environments,
        "environment_programs",
        lambda envs: {"small": environments._program(env, envs, 40)},
    )
    out = tmp_path / "rows.jsonl"
    arguments = ["--envs", "2", "--rounds", "2", "--min-seconds", "0.001", "--out", str(out)]
    assert environments.main(arguments) == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["program"], row["environments"], row["seconds"]["n"]) == ("small", 2, 2)
    steps = 2 * environments.STEPS
    assert row["steps_per_second"] == pytest.approx(steps / row["seconds"]["median"])
    assert "small, 2 at once" in capsys.readouterr().out


def test_bad_options(capsys):
    for arguments in (["--envs", "0"], ["--rounds", "0"], ["--threads", "4096"]):
        with pytest.raises(SystemExit):
            environments.main(arguments)
        assert "error:" in capsys.readouterr().err


def test_the_documents_quote_the_rows():
    folder = Path(environments.__file__).parent
    text = (folder / "README.md").read_text()
    for row in map(json.loads, (folder / "results/environments.jsonl").read_text().splitlines()):
        name, speed = row["program"], row["steps_per_second"]
        quoted = f"{float(f'{speed:.3g}'):,.0f}"
        if name.endswith(("rollout", "update", "quick, environment")):
            assert quoted in text
        elif not name.endswith("environment"):
            title = name.replace("gymnax ", "gymnax's ")
            assert f"| {title} | {quoted} |" in text
