"""The measurements of the CUDA kernels, without a GPU."""

import json
import math

import jax.numpy as jnp
import pytest

from benchmarks import cuda


@pytest.mark.parametrize("part", cuda.PARTS)
def test_parts_say_why_there_is_nothing_to_measure(part, capsys):
    assert cuda.main(["--here", part, "--toy"]) == 0
    for line in capsys.readouterr().out.splitlines():
        row = json.loads(line)
        assert (row["part"], row["environment"]["device"]) == (part, "cpu")
        assert "needs an NVIDIA GPU, got cpu" in (row.get("skipped"), row.get("why_not"))


@pytest.mark.parametrize("wrong", [None, math.nan, 0.5])
def test_a_wrong_gradient_fails_the_check(wrong, monkeypatch, capsys):
    """NaN after a finite gradient, too."""

    def gradients(model, problem):
        rounding = 0.0 if problem.setting.dtype == "float32" else 0.01
        return lambda *_: {"a": jnp.ones(2), "b": jnp.full(2, 1 + rounding)}

    def step(params, inputs):
        return {"a": jnp.ones(2), "b": jnp.full(2, (wrong or 1.0))}

    monkeypatch.setattr(cuda, "_why_not", lambda problem: None)
    monkeypatch.setattr(cuda, "_gradients", gradients)
    monkeypatch.setattr(cuda, "_steps", lambda problem: {"usual": step})
    assert cuda.main(["--here", "check", "--toy"]) == (0 if wrong is None else 1)
    row = json.loads(capsys.readouterr().out)
    assert (row["ok"], row["same_bits"]) == (wrong is None, wrong is None or wrong == 0.5)
    assert row["kernels"] == {None: 0.0, 0.5: 0.5}.get(wrong)


def test_each_part_is_a_process(monkeypatch, tmp_path, capsys):
    ran = []

    def run(command, environment, seconds, log):
        ran.append((command[2:], "triton" in environment.get("XLA_FLAGS", "")))
        return {"check": 1, "kernels": None}.get(command[4], 0)

    monkeypatch.setattr(cuda, "_run", run)
    assert cuda.main(["--out-dir", str(tmp_path)]) == 1
    assert "failed: check (1), kernels (time)" in capsys.readouterr().out
    here = [["benchmarks.cuda", "--here", part] for part in cuda.PARTS]
    assert ran == [(command, True) for command in here]
    ran.clear()
    assert cuda.main(["--out-dir", str(tmp_path), "--toy", "--parts", "probe"]) == 0
    assert ran == [([*here[0], "--toy"], False)]
