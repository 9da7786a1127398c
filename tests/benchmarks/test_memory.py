"""The memory of long sequences: what is reported, and that it grows as it should."""

import json

import pytest

from benchmarks import memory
from benchmarks.settings import SETTINGS


@pytest.mark.slow
def test_rows_and_table(tmp_path, capsys):
    out = tmp_path / "memory.jsonl"
    command = f"--setting toy --batch 1 --steps 4 --out {out}"
    assert memory.main(command.split()) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = ["plain", *(f"remat={name}" for name in ("none", "full", "save_products", "chunked"))]
    assert [row["variant"] for row in rows] == names
    assert all(row["temporary_bytes"] > 0 for row in rows)
    assert {row["outputs_bytes"] for row in rows} == {4 * 2 * 8 * 4}
    printed = capsys.readouterr().out
    assert "| MB | T 4 |" in printed
    assert f"| plain | {rows[0]['temporary_bytes'] / 1e6:,.1f} |" in printed
    assert rows[0]["environment"]["packages"]["jax"]


@pytest.mark.slow
def test_chunks_of_a_long_sequence_store_little_beside_outputs_and_their_cotangents():
    setting = SETTINGS["toy"].replace(slots=4, head_size=16, features=4)

    def beyond(steps: int) -> float:
        """Beside outputs, their cotangents and the inputs' part, in outputs of one step."""
        problem = memory.make_problem(setting.replace(steps=steps))
        model = memory.jax_programs.ours(problem, "auto", "chunked")
        costs = memory.jax_programs.build(model, problem, "train").costs
        assert costs.temporary_bytes is not None
        return (
            (costs.temporary_bytes - 2 * problem.loss_weights.nbytes)
            * steps
            / (problem.loss_weights.nbytes)
        )

    short, long = beyond(256), beyond(4096)
    assert long < 5 * short  # Sixteen times as long: four times as much, and something to spare.
