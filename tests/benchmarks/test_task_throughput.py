"""The benchmark of the program generator and of the plain Python one, and its rows."""

import dataclasses
import json
import random

import numpy as np
import pytest

from benchmarks import jax_programs, python_programs, task_throughput
from experiments.program_evaluation import PRESETS
from rrnn_jax.tasks import learn_to_execute as lte
from tests.tasks import program_oracle as oracle


@pytest.mark.parametrize("curriculum", ["fixed", "mix"])
def test_plain_python_draws_the_same_kind_of_batch(curriculum):
    config = lte.Config("program", 5, 2, curriculum)
    batch = python_programs.draw_batch(random.Random(0), config, 2000)
    programs, answers = oracle.decode_rows(batch.inputs), oracle.decode_rows(batch.targets)
    found = set()
    for program, answer in zip(programs, answers, strict=True):
        (length,) = oracle.literal_lengths(program)
        nesting = oracle.count_operations(program)
        assert oracle.is_in_grammar(program, config.operators, length, nesting)
        assert answer == oracle.python_answer(program, length)
        found.add((length, nesting))
    assert len(found) == (10 if curriculum == "mix" else 1)
    np.testing.assert_array_equal(batch.input_mask.sum(-1), batch.input_lengths)
    np.testing.assert_array_equal(batch.target_mask, batch.targets != lte.PAD)
    assert batch.target_lengths.tolist() == [len(answer) for answer in answers]


def test_rows(tmp_path, capsys, monkeypatch):
    made = []

    def compile_apart(function, args):
        made.append(jax_programs.compile_apart(function, args))  # Without JAX's caches.
        return made[-1]

    monkeypatch.setattr(task_throughput, "compile_apart", compile_apart)
    out = tmp_path / "tasks.jsonl"
    command = "--task addition --setting 1,1 --curriculum fixed --batch 4 --rounds 2 --threads 0"
    arguments = [*command.split(), "--min-seconds", "0.001", "--out", str(out)]
    assert task_throughput.main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["variant"] for row in rows] == ["jitted", "python"]
    for row in rows:
        sizes = tuple(row[name] for name in ("task", "length", "nesting", "curriculum", "batch"))
        assert sizes == ("addition", 1, 1, "fixed", 4)
        assert row["seconds"]["n"] == 2
        speed = row["programs_per_second"]
        assert speed["median"] == pytest.approx(4 / row["seconds"]["median"])
        assert speed["q1"] <= speed["median"] <= speed["q3"]
        assert row["environment"]["packages"]["jax"]
    ((_, costs),) = made
    assert rows[0]["compile_seconds"] == costs.trace_seconds + costs.compile_seconds
    assert rows[1]["compile_seconds"] is None
    assert capsys.readouterr().out.count("programs/s") == 2


@pytest.mark.slow
def test_share_of_a_training_step():
    config = dataclasses.replace(
        PRESETS["quick"],
        task="addition",
        model="lstm",
        difficulty=dataclasses.replace(PRESETS["quick"].difficulty, length=1),
        lstm=dataclasses.replace(PRESETS["quick"].lstm, lstm_features=2, lstm_layers=1),
        train=dataclasses.replace(PRESETS["quick"].train, batch_size=2),
    )
    (row,), interrupted = task_throughput.measure_share(config, rounds=2, min_seconds=0.001)
    assert not interrupted
    sizes = [row[name] for name in ("task", "model", "batch")]
    assert (sizes, row["seconds"]["n"]) == (["addition", "lstm", 2], 2)
    assert row["share"] == row["draw_seconds"]["median"] / row["seconds"]["median"]
    # The step draws a batch as well, so drawing alone is the quicker of the two.
    assert 0 < row["share"] < 1
    assert f"{row['share']:.2%}" in task_throughput.describe_share(row)
    given = task_throughput.parser().parse_args(["--training", "paper", "--task", "addition"])
    configs = task_throughput.training_configs(given)
    assert [(c.model, c.preset) for c in configs] == [("rmc", "paper"), ("lstm", "paper")]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--rounds", "0", "must be at least 1, got 0"),
        ("--batch", "0", "must be at least 1, got 0"),
        ("--setting", "5", "must be LENGTH,NESTING, got 5"),
        ("--setting", "5,2,1", "must be LENGTH,NESTING, got 5,2,1"),
        *(("--min-seconds", x, f"must be finite and at least 0, got {x}") for x in ("nan", "inf")),
    ],
)
def test_bad_options(option, value, message, capsys):
    with pytest.raises(SystemExit):
        task_throughput.main([option, value])
    assert f"argument {option}: {message}\n" in capsys.readouterr().err
