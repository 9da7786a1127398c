"""The benchmark of the environments: its rows and its options."""

import json

import pytest

from benchmarks import environments
from rrnn_jax.envs import BoxWorld


@pytest.mark.slow
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
    for options, message in (
        (["--envs", "0"], "argument --envs: must be at least 1, got 0"),
        (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (["--envs", "2", "--training"], "--envs must be left out with --training"),
    ):
        with pytest.raises(SystemExit):
            environments.main(options)
        assert message in capsys.readouterr().err
