"""The report of a grid: table, findings, figure, numbers."""

import csv
import dataclasses
import io
import json
import shlex

import pytest

from experiments.ablations import PRESETS, make_rows
from experiments.ablations.__main__ import main
from experiments.ablations.report import FILES, grid_command, write_report
from tests.experiments.ablation_runs import CONFIG, ROWS, TINY, make_grid, make_run

BASE_LINE = (
    "Base: memory slots 2; heads 2 of 4; attention blocks 1; gates per unit; forget bias 1; output "
    "gate off; MLP layers 2; key size 4; LayerNorm of q, k, v on; input row attends yes; initial "
    "memory identity; model RMC."
)


@pytest.fixture
def grid(tmp_path):
    make_grid(tmp_path)
    return tmp_path


def test_table_has_means_ranges_and_differences(grid):
    write_report(CONFIG, ROWS, grid)
    assert (grid / "table.md").read_text() == (
        f"{BASE_LINE}\n\n"
        "| factor | value | accuracy (%), mean (lowest to highest seed) | "
        "against base (points), 95% interval |"
        " updates to 83%, mean | parameters | updates/s | seconds |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| base |  | 94.0 (92.0 to 96.0) | - | 2 | 1,000 | 2.0 | 8 |\n"
        "| memory slots | 1 | 70.0 (69.0 to 71.0) | -24.0 (-27.0 to -21.0) | never | "
        "1,000 | 2.0 | 8 |\n"
        "| heads | 1 | 96.0 (93.0 to 99.0) | +2.0 (+1.0 to +3.0) | 2 | 1,000 | 2.0 | 8 |\n"
        "| attention blocks | 2 | 97.5 (97.0 to 98.0) | +3.5 (+2.0 to +5.0) | 3 | 1,000 | "
        "2.0 | 8 |\n"
        "| gates | none | NaN | - | - | - | - | - |\n"
        "| initial memory | zeros | 66.5 (66.0 to 67.0) | -27.5 (-29.0 to -26.0) | "
        "never | 1,000 | 2.0 | 8 |\n"
        "| model | LSTM, 1 x 8 | 85.0 (80.0 to 90.0) | -9.0 (-12.0 to -6.0) | "
        "2 (1 of 2) | 1,000 | 2.0 | 8 |\n"
    )
    lines = list(csv.DictReader(io.StringIO((grid / "table.csv").read_text())))
    assert len(lines) == 2 * 6 + 1
    assert lines[2]["accuracy"] == "0.71"
    assert [line["updates_to_threshold"] for line in lines if line["row"] == "lstm"] == ["", "2"]
    assert [line["accuracy"] for line in lines if line["row"] == "gates_none"] == ["nan"]


def test_findings_are_made_of_the_numbers(grid):
    findings = write_report(CONFIG, ROWS, grid).splitlines()
    assert findings[0] == (
        "Nth Farthest, 3 objects of 2 features; 4 updates of 4 samples for every row; 2 seeds per "
        "row. Not learning scores 66.7%; the base scores 94.0% (92.0 to 96.0)."
    )
    assert findings[2] == BASE_LINE
    assert findings[4] == (
        "A row is better or worse only if the 95% bootstrap interval of its difference from the "
        "base, in pairs of seeds, excludes zero, and there are 5 seeds or more. There are too few "
        "here."
    )
    assert "- Worse than the base: none." in findings
    assert (
        "- Not told apart from it: memory slots 1; heads 1; attention blocks 2; initial memory "
        "zeros; LSTM, 1 x 8."
    ) in findings
    assert ("- Within 2 points of not learning, with every seed: initial memory zeros.") in findings
    assert (
        "- Points between the best and the worst mean of a factor: initial memory 27.5, memory "
        "slots 24.0, model 9.0, attention blocks 3.5, heads 2.0."
    ) in findings
    assert "- The loss became NaN: gates none." in findings
    assert any(line.startswith("- Not run: slots_4, ") for line in findings)


def test_findings_have_a_sentence_for_each_row(grid):
    findings = write_report(CONFIG, ROWS, grid).split("\nRow by row:\n\n")[1].split("\n\n")[0]
    assert findings.splitlines() == [
        "- memory slots 1: 70.0% (69.0 to 71.0), -24.0 (-27.0 to -21.0) points: not told apart.",
        "- heads 1: 96.0% (93.0 to 99.0), +2.0 (+1.0 to +3.0) points: not told apart.",
        "- attention blocks 2: 97.5% (97.0 to 98.0), +3.5 (+2.0 to +5.0) points: not told apart.",
        "- gates none: the loss became NaN.",
        "- initial memory zeros: 66.5% (66.0 to 67.0), -27.5 (-29.0 to -26.0) points: not told "
        "apart.",
        "- LSTM, 1 x 8: 85.0% (80.0 to 90.0), -9.0 (-12.0 to -6.0) points: not told apart.",
    ]


def test_five_seeds_in_pairs_tell_rows_apart_whose_ranges_overlap(tmp_path):
    train = dataclasses.replace(CONFIG.train, num_seeds=5)
    rows = make_rows(dataclasses.replace(CONFIG, train=train))
    base = [0.7, 0.75, 0.8, 0.85, 0.9]
    make_run(tmp_path, "base", base, rows=rows)
    make_run(tmp_path, "slots_1", [x - 0.02 for x in base], rows=rows)
    make_run(tmp_path, "heads_1", [x + 0.01 for x in base], rows=rows)
    make_run(tmp_path, "lstm", [0.6, 0.85, 0.8, 0.85, 0.9], rows=rows)
    findings = write_report(rows["base"].config, rows, tmp_path)
    assert "5 to 12 in a hundred are called so by chance" in findings
    assert "- Worse than the base: memory slots 1." in findings
    assert "- Better than the base: heads 1." in findings
    assert "- Not told apart from it: LSTM, 1 x 8." in findings


def test_a_grid_of_a_memorization_task_says_so(tmp_path):
    config = dataclasses.replace(PRESETS["quick_program"], train=CONFIG.train)
    rows = make_rows(config)
    make_run(tmp_path, "base", [0.8, 0.9], rows=rows)
    make_run(tmp_path, "output_gate", [0.5, 0.6], rows=rows)
    findings = write_report(config, rows, tmp_path)
    assert findings.startswith("reverse, 5 digits; 4 updates of 4 samples")
    assert "- output gate on (eq. 3 to 9): 55.0% (50.0 to 60.0), -30.0 (-30.0 to -30.0)" in findings
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["task"] == "reverse, 5 digits"
    assert numbers["base"]["gates"] == "per slot"
    assert numbers["rows"]["output_gate"]["value"] == "on (eq. 3 to 9)"
    base, gate = (row["against_base"] for row in numbers["rows"].values())
    assert base == {}
    assert gate == {
        "mean": pytest.approx(-0.3),
        "interval": pytest.approx([-0.3, -0.3]),
        "verdict": "not told apart",
    }


def test_the_command_is_made_of_the_config(grid):
    config = dataclasses.replace(CONFIG, core=dataclasses.replace(CONFIG.core, qkv_norm=False))
    command = grid_command(config, ROWS, ["lstm", "base", "heads_1"])
    assert command.startswith("python -m experiments.ablations --preset quick --mem-slots 2 ")
    assert "--head-size 4 --no-qkv-norm --lstm-features 8 --steps 4 " in command
    assert command.endswith(" --checkpoint-every 2 --only base heads_1 lstm")
    write_report(CONFIG, ROWS, grid)
    environment = json.loads((grid / "numbers.json").read_text())["environment"]
    assert environment["command"].endswith(
        " --only base slots_1 heads_1 blocks_2 gates_none initial_zeros lstm"
    )
    parsed = shlex.split(environment["command"])[3:]
    assert main(["--run-dir", str(grid), "--no-train", *parsed]) == 0


def test_report_command_copies_the_results(grid, tmp_path, capsys):
    results = tmp_path / "results"
    assert main(["--run-dir", str(grid), "--results", str(results), "--no-train", *TINY]) == 0
    names = ["quick.csv", "quick.json", "quick.md", "quick.png", "quick_findings.md"]
    assert sorted(path.name for path in results.iterdir()) == names
    assert all((grid / name).exists() for name in FILES)
    assert "- Better than the base: none." in capsys.readouterr().out
    numbers = json.loads((results / "quick.json").read_text())
    assert numbers["rows"]["slots_1"]["accuracy"] == [0.71, 0.69]
    assert numbers["rows"]["gates_none"]["accuracy"] == []
    assert "heads_2" not in numbers["not_run"]
    assert numbers["config"]["train"]["steps"] == 4


def test_rows_of_another_machine_keep_their_numbers(grid, tmp_path, capsys):
    """A report joins its rows with those of a copy with the same config."""
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    command = ["--results", str(results), "--no-train", *TINY]
    assert main(["--run-dir", str(grid), *command]) == 0
    whole = {path.name: path.read_bytes() for path in results.iterdir()}
    make_run(elsewhere, "heads_1", [0.83, 0.89])
    session = elsewhere / "heads_1" / "sessions.jsonl"
    own = json.loads(whole["quick.json"])["environment"]["processor"]
    session.write_text(session.read_text().replace(own, "Another CPU"))
    assert main(["--run-dir", str(elsewhere), *command]) == 0
    kept, found = (json.loads(text) for text in
                   (whole["quick.json"], (results / "quick.json").read_text()))  # fmt: skip
    assert list(found["rows"]) == list(kept["rows"])
    assert found["rows"]["heads_1"]["accuracy"] == [0.83, 0.89]
    assert found["rows"]["heads_1"]["processor"] == "Another CPU"
    assert found["rows"]["lstm"]["processor"] == kept["environment"]["processor"]
    assert kept["environment"].pop("processors") == [own]
    assert found["environment"].pop("processors") == [own, "Another CPU"]
    del found["rows"]["heads_1"], kept["rows"]["heads_1"]
    assert found == kept
    assert "- heads 1: 86.0% (83.0 to 89.0), -8.0" in capsys.readouterr().out
    assert main(["--run-dir", str(elsewhere), *command, "--minutes", "9"]) == 0
    # A copy of another grid is neither replaced nor joined.
    assert main(["--run-dir", str(elsewhere), *command, "--batch-size", "5"]) == 2
    assert "another config" in capsys.readouterr().err
    other = whole["quick.json"].decode().replace('"steps": 4', '"steps": 5')
    (results / "quick.json").write_text(other)
    assert main(["--run-dir", str(elsewhere), *command]) == 2
    assert "of a grid with another config; choose another --results" in capsys.readouterr().err
    assert (results / "quick.json").read_text() == other
