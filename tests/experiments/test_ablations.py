"""The grid: its rows, what is skipped and resumed, and what is written of it."""

import csv
import dataclasses
import io
import itertools
import json
import shlex
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations import PRESETS, make_rows
from experiments.ablations.__main__ import main
from experiments.ablations.findings import chance_of_below, verdict
from experiments.ablations.grid import base_values
from experiments.ablations.initial_memory import LearnedStartCell, random_rows, zero_rows
from experiments.ablations.problems import make_cell, make_problem
from experiments.ablations.report import FILES, grid_command, write_report
from experiments.ablations.train import train_row
from experiments.common import loop
from experiments.common.run_directory import ConfigMismatchError, open_run
from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.compiling import quick_jit
from tests.core.random_variables import random_variables

CONFIG = dataclasses.replace(
    PRESETS["quick"],
    core=dataclasses.replace(PRESETS["quick"].core, mem_slots=2, num_heads=2, head_size=4),
    lstm=dataclasses.replace(PRESETS["quick"].lstm, lstm_features=8),
    train=dataclasses.replace(
        PRESETS["quick"].train,
        **{"steps": 4, "batch_size": 4, "chunk_steps": 2, "eval_every": 2, "eval_samples": 8},
        **{"checkpoint_every": 2, "warmup_steps": 0, "num_seeds": 2},
    ),
)
TINY = [
    *("--mem-slots", "2", "--head-size", "4", "--lstm-features", "8", "--steps", "4"),
    *("--batch-size", "4", "--chunk-steps", "2", "--eval-every", "2", "--eval-samples", "8"),
    *("--checkpoint-every", "2", "--warmup-steps", "0", "--num-seeds", "2", "--no-progress"),
]
ROWS = make_rows(CONFIG)


def differences(row, base) -> set[str]:
    one, other = (dataclasses.asdict(r.config.core) for r in (row, base))
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_row_departs_from_the_base_in_one_thing(preset):
    rows = make_rows(PRESETS[preset])
    base = rows["base"]
    assert next(iter(rows)) == "base"
    assert base.config == PRESETS[preset]
    for name, row in rows.items():
        assert row.row == name
        if name in ("base", "lstm"):
            assert row.config == base.config
        elif name.startswith("heads"):
            assert row.config.core.slot_size == base.config.core.slot_size
        elif name == "slots_1_wide":
            core = row.config.core
            assert core.mem_slots * core.slot_size == (
                base.config.core.mem_slots * base.config.core.slot_size
            )
        else:
            assert len(differences(row, base)) == 1, name
    assert [name for name, row in rows.items() if row.model == "lstm"] == ["lstm"]
    factors = {row.factor for row in rows.values()}
    assert factors == {
        *("", "memory slots", "heads", "attention blocks", "gates", "forget bias", "output gate"),
        *("MLP layers", "key size", "LayerNorm of q, k, v", "input row attends", "initial memory"),
        "model",
    }
    assert PRESETS[preset].train.num_seeds >= 3


def test_rows_of_the_quick_grid():
    assert list(make_rows(PRESETS["quick"])) == [
        *("base", "slots_1", "slots_2", "slots_8", "slots_1_wide", "heads_1", "heads_4", "heads_8"),
        *("blocks_2", "blocks_3", "gates_memory", "gates_none", "forget_bias_0", "forget_bias_2"),
        *("output_gate", "mlp_1", "mlp_4", "key_8", "key_128", "no_qkv_norm", "no_input_queries"),
        *("initial_random", "initial_learned", "initial_zeros", "lstm"),
    ]


BASE_LINE = (
    "Base: memory slots 2; heads 2 of 4; attention blocks 1; gates per unit; forget bias 1; output "
    "gate off; MLP layers 2; key size 4; LayerNorm of q, k, v on; input row attends yes; initial "
    "memory identity; model RMC."
)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_base_has_a_value_of_every_factor(preset):
    rows = make_rows(PRESETS[preset])
    assert list(base_values(PRESETS[preset])) == list(
        dict.fromkeys(row.factor for row in rows.values() if row.factor)
    )
    for row in rows.values():
        if row.factor and row.model == "rmc":
            assert base_values(row.config)[row.factor].startswith(row.label.split(",")[0])


def test_rows_that_cannot_be_made_are_left_out(tmp_path, capsys):
    """Of a base with an output gate, and of one without gates."""
    usual = set(make_rows(CONFIG))
    for changes, missing in (
        ({"output_gate": True}, {"output_gate", "gates_none", "initial_learned"}),
        ({"gate_style": "none"}, {"output_gate", "gates_none"}),
        ({"initial_memory": "learned"}, {"output_gate", "initial_learned"}),
    ):
        config = dataclasses.replace(CONFIG, core=dataclasses.replace(CONFIG.core, **changes))
        rows = make_rows(config)
        assert usual - set(rows) == missing
        for row in rows.values():
            make_cell(row)
    for options in ("--output-gate", "--gate-style none"):
        assert main(["--list", *options.split()]) == 0
    capsys.readouterr()
    cell = RelationalMemoryCell(mem_slots=2, head_size=4, num_heads=1, output_gate=True)
    with pytest.raises(ValueError, match="cell must have output_gate=False, got output_gate=True"):
        LearnedStartCell(cell)


def test_a_label_is_no_part_of_what_is_compared():
    """Runs that were made before there were labels go on."""
    row = ROWS["output_gate"]
    assert (row.value, row.label) == ("on", "on (eq. 3 to 9)")
    assert set(dataclasses.asdict(row)) == {"row", "factor", "value", "model", "config"}


def parameters(row) -> int:
    shapes = jax.eval_shape(make_problem(row).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_every_row_has_a_model():
    sizes = {name: parameters(row) for name, row in make_rows(PRESETS["quick"]).items()}
    base = sizes["base"]
    # The core's weights are shared by all slots; the read-out reads every slot.
    assert sizes["slots_8"] - base == 4 * 64 * 256
    assert sizes["heads_4"] == sizes["initial_zeros"] == sizes["initial_random"] == base
    assert sizes["initial_learned"] == base + 4 * 64
    assert sizes["no_qkv_norm"] < base < sizes["lstm"]
    assert len(set(sizes.values())) > 10


def test_a_row_of_the_program_grid_has_the_same_core():
    config = PRESETS["quick_program"]
    problem = make_problem(make_rows(config)["initial_learned"])
    shapes = jax.eval_shape(problem.init, jax.random.key(0))["params"]["cell"]
    assert shapes["initial_memory"].shape == (config.core.mem_slots, config.core.slot_size)
    assert 0 < problem.trivial_accuracy < 1


@pytest.fixture(scope="module")
def starts():
    """A cell's weights, an input, and its memory after a step from each initial memory."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    cell = make_cell(ROWS["base"])
    assert isinstance(cell, RelationalMemoryCell)
    carry = cell.initialize_carry(jax.random.key(0), x.shape)
    variables = random_variables(cell, carry, x)
    step = quick_jit(lambda variables, carry: cell.apply(variables, carry, x)[0])
    return cell, variables, x, step


def test_slots_that_start_equal_stay_equal(starts):
    cell, variables, _, step = starts
    shape = (2, cell.mem_slots, cell.mem_size)
    for start, is_equal in ((zero_rows, True), (random_rows, False), (cell.carry_init, False)):
        memory = step(variables, start(None, shape))
        memory = step(variables, memory)
        gap = float(jnp.abs(memory[:, 0] - memory[:, 1]).max())
        assert (gap < 1e-6) == is_equal, start


def test_learned_start_begins_as_identity_and_is_learned(starts):
    cell, variables, x, _ = starts
    learned = LearnedStartCell(cell)
    rnn = RNN(learned)
    start = jnp.eye(cell.mem_slots, cell.mem_size)
    params = {"cell": {"cell": variables["params"], "initial_memory": start}}
    inputs = jnp.stack([x, 2 * x, -x], axis=1)

    @quick_jit
    def run(params):
        def total(params):
            outputs = rnn.apply({"params": params}, inputs)
            return outputs.sum(), outputs

        slope, outputs = jax.grad(total, has_aux=True)(params)
        return outputs, slope["cell"]["initial_memory"]

    plain = quick_jit(RNN(cell).apply)({"params": {"cell": variables["params"]}}, inputs)
    outputs, slope = run(params)
    np.testing.assert_allclose(outputs, plain, atol=1e-5)
    assert float(jnp.abs(slope).max(axis=-1).min()) > 0
    # Twice the start is another run, to the last step.
    doubled, _ = run({"cell": {**params["cell"], "initial_memory": 2 * start}})
    assert float(jnp.abs(doubled - plain)[:, -1].max()) > 1e-3


def make_run(run_dir, name, accuracy, *, curves=None, rows=ROWS, seconds=8.0):
    """What a trained row leaves, by seed."""
    row = rows[name]
    directory = run_dir / name
    open_run(directory, row)
    evaluations = curves or [[0.7, value, value] for value in accuracy]
    lines = [
        {"step": 2 * i, "split": "eval", "seed": seed, "accuracy": value}
        for seed, values in zip(row.config.train.seeds, evaluations, strict=True)
        for i, value in enumerate(values)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        **{"steps": 4, "seeds": list(row.config.train.seeds), "parameters": 1000},
        **{"train_seconds": seconds / 2, "wall_seconds": seconds, "trivial_accuracy": 2 / 3},
        "evaluation": {"accuracy": accuracy},
    }
    (directory / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def grid(tmp_path):
    """A grid that is done but for a few rows."""
    make_run(tmp_path, "base", [0.92, 0.96])
    make_run(tmp_path, "slots_1", [0.71, 0.69])
    make_run(tmp_path, "heads_1", [0.93, 0.99])
    make_run(tmp_path, "blocks_2", [0.97, 0.98], curves=[[0.7, 0.84, 0.97], [0.7, 0.8, 0.98]])
    make_run(tmp_path, "initial_zeros", [0.66, 0.67])
    make_run(tmp_path, "lstm", [0.8, 0.9], curves=[[0.7, 0.75, 0.8], [0.7, 0.9, 0.9]])
    open_run(tmp_path / "gates_none", ROWS["gates_none"])
    (tmp_path / "gates_none" / "failure.json").write_text('{"error": "loss became nan"}')
    return tmp_path


def test_table_has_means_ranges_and_differences(grid):
    write_report(CONFIG, ROWS, grid)
    assert (grid / "table.md").read_text() == (
        f"{BASE_LINE}\n\n"
        "| factor | value | accuracy (%), mean (lowest to highest seed) | against base (points) |"
        " updates to 83%, mean | parameters | updates/s | seconds |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| base |  | 94.0 (92.0 to 96.0) | - | 2 | 1,000 | 2.0 | 8 |\n"
        "| memory slots | 1 | 70.0 (69.0 to 71.0) | -24.0 | never | 1,000 | 2.0 | 8 |\n"
        "| heads | 1 | 96.0 (93.0 to 99.0) | +2.0 | 2 | 1,000 | 2.0 | 8 |\n"
        "| attention blocks | 2 | 97.5 (97.0 to 98.0) | +3.5 | 3 | 1,000 | 2.0 | 8 |\n"
        "| gates | none | NaN | - | - | - | - | - |\n"
        "| initial memory | zeros | 66.5 (66.0 to 67.0) | -27.5 | never | 1,000 | 2.0 | 8 |\n"
        "| model | LSTM, 1 x 8 | 85.0 (80.0 to 90.0) | -9.0 | 2 (1 of 2) | 1,000 | 2.0 | 8 |\n"
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
        "Better or worse is said only where the ranges of the seeds do not overlap. With 2 seeds "
        "per row, were they independent from row to row, a row that does not differ from the base "
        "would be called worse in 1 of 6 cases, and better as often: were none of 5 rows "
        "different, 0.8 would be called worse by chance. They are not independent: rows share "
        "their seeds, and with them the samples and the initial weights of equal shapes; and one "
        "base stands against them all. Chance may call fewer rows worse, or more."
    )
    assert "- Worse than the base: initial memory zeros; memory slots 1; LSTM, 1 x 8." in findings
    assert "- Better than the base: attention blocks 2." in findings
    assert "- Not told apart from it: heads 1." in findings
    assert ("- Within 2 points of not learning, with every seed: initial memory zeros.") in findings
    assert (
        "- Slots must start different: all zeros, they stay equal for ever and score 66.5% (66.0 "
        "to 67.0), against 94.0% (92.0 to 96.0) of identity rows and 70.0% (69.0 to 71.0) of a "
        "single slot."
    ) in findings
    assert (
        "- Points between the best and the worst mean of a factor: initial memory 27.5, memory "
        "slots 24.0, model 9.0, attention blocks 3.5, heads 2.0."
    ) in findings
    assert "- The loss became NaN: gates none." in findings
    assert any(line.startswith("- Not run: slots_4, ") for line in findings)


def test_findings_have_a_sentence_for_each_row(grid):
    findings = write_report(CONFIG, ROWS, grid).split("\nRow by row:\n\n")[1].split("\n\n")[0]
    assert findings.splitlines() == [
        "- memory slots 1: 70.0% (69.0 to 71.0), 24.0 points below the base, ranges do not "
        "overlap: worse.",
        "- heads 1: 96.0% (93.0 to 99.0), 2.0 points above the base, ranges overlap: not told "
        "apart.",
        "- attention blocks 2: 97.5% (97.0 to 98.0), 3.5 points above the base, ranges do not "
        "overlap: better.",
        "- gates none: the loss became NaN.",
        "- initial memory zeros: 66.5% (66.0 to 67.0), 27.5 points below the base, ranges do not "
        "overlap: worse.",
        "- LSTM, 1 x 8: 85.0% (80.0 to 90.0), 9.0 points below the base, ranges do not overlap: "
        "worse.",
    ]


def test_verdict_is_that_of_the_ranges():
    base = [0.6, 0.8]
    assert verdict([0.81, 0.9], base) == "better"
    assert verdict([0.1, 0.59], base) == "worse"
    for overlapping in ([0.5, 0.6], [0.8, 0.9], [0.7, 0.7], [0.5, 0.9], base):
        assert verdict(overlapping, base) == "not told apart"


def test_chance_that_a_range_lies_below_by_counting():
    """Of scores in any order: every set of places that the first row's may take."""
    for seeds in (1, 2, 3, 4):
        places = list(itertools.combinations(range(2 * seeds), seeds))
        below = sum(max(p) < seeds for p in places)
        assert chance_of_below(seeds) == Fraction(below, len(places))
    assert chance_of_below(3) == Fraction(1, 20)


def test_findings_of_one_seed_say_that_they_show_nothing(tmp_path):
    train = dataclasses.replace(CONFIG.train, num_seeds=1)
    rows = make_rows(dataclasses.replace(CONFIG, train=train))
    make_run(tmp_path, "base", [0.9], rows=rows)
    findings = write_report(rows["base"].config, rows, tmp_path)
    assert "With one seed per row that is so of any two rows, whether they differ" in findings


def test_findings_do_not_claim_what_the_numbers_do_not_show(tmp_path):
    make_run(tmp_path, "base", [0.68, 0.70])
    make_run(tmp_path, "initial_zeros", [0.69, 0.70])
    findings = write_report(CONFIG, ROWS, tmp_path)
    assert "must start different" not in findings
    assert "are not told apart from slots that start different here: 69.5%" in findings
    assert "- Worse than the base: none." in findings


def test_a_grid_of_a_memorization_task_says_so(tmp_path):
    config = dataclasses.replace(PRESETS["quick_program"], train=CONFIG.train)
    rows = make_rows(config)
    make_run(tmp_path, "base", [0.8, 0.9], rows=rows)
    make_run(tmp_path, "output_gate", [0.5, 0.6], rows=rows)
    findings = write_report(config, rows, tmp_path)
    assert findings.startswith("reverse, 5 digits; 4 updates of 4 samples")
    assert "- output gate on (eq. 3 to 9): 55.0% (50.0 to 60.0), 30.0 points below" in findings
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["task"] == "reverse, 5 digits"
    assert numbers["base"]["gates"] == "per slot"
    assert numbers["rows"]["output_gate"]["value"] == "on (eq. 3 to 9)"
    assert [row["verdict"] for row in numbers["rows"].values()] == [None, "worse"]


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
    assert "- Better than the base" in capsys.readouterr().out
    numbers = json.loads((results / "quick.json").read_text())
    assert numbers["rows"]["slots_1"]["accuracy"] == [0.71, 0.69]
    assert numbers["rows"]["gates_none"]["accuracy"] == []
    assert "heads_2" not in numbers["not_run"]
    assert numbers["config"]["train"]["steps"] == 4


def test_what_is_done_is_skipped_and_the_rest_is_trained(grid, monkeypatch, capsys):
    trained = []

    def train(row, run_dir, progress):
        trained.append(row.row)
        make_run(grid, row.row, [0.9, 0.9])
        return json.loads((run_dir / "summary.json").read_text())

    monkeypatch.setattr("experiments.ablations.__main__.train_row", train)
    arguments = ["--run-dir", str(grid), "--jobs", "1", *TINY]
    assert main([*arguments, "--only", "base", "gates_none", "mlp_1", "key_1"]) == 0
    assert trained == ["mlp_1", "key_1"]
    assert "2 of 4 rows are done" in capsys.readouterr().out
    assert main(arguments) == 0
    assert len(trained) == len(set(trained)) == len(ROWS) - 7
    trained.clear()
    assert main(arguments) == 0
    assert not trained


def test_stopped_rows_go_on_and_the_next_ones_wait(tmp_path, monkeypatch, capsys):
    """Ctrl-C ends the grid with its exit code; the same command goes on with the row it was at."""
    trained = []

    def train(problem, config, run_dir, name, progress):
        trained.append(name)
        raise loop.Interrupted("stopped at step 2")

    monkeypatch.setattr(loop, "train", train)
    arguments = ["--run-dir", str(tmp_path), "--jobs", "1", *TINY]
    for _ in range(2):
        assert main(arguments) == 130
    assert trained == ["base", "base"]
    assert "stopped at step 2" in capsys.readouterr().err


def test_nan_is_a_result(tmp_path, monkeypatch):
    def train(*args):
        raise loop.NonFiniteError("loss became nan")

    monkeypatch.setattr(loop, "train", train)
    make_run(tmp_path, "base", [0.92, 0.96])
    arguments = ["--run-dir", str(tmp_path), "--jobs", "1", "--only", "base", "gates_none", *TINY]
    assert main(arguments) == 0
    assert "| gates | none | NaN |" in (tmp_path / "table.md").read_text()
    assert "became nan" in (tmp_path / "gates_none" / "failure.json").read_text()


def test_a_base_that_failed_is_told_from_one_that_is_missing(tmp_path, monkeypatch, capsys):
    """Rows may be trained before the base; of a base whose loss was NaN there is no report."""

    def train(row, run_dir, progress):
        make_run(tmp_path, row.row, [0.9, 0.9])
        return json.loads((run_dir / "summary.json").read_text())

    monkeypatch.setattr("experiments.ablations.__main__.train_row", train)
    arguments = ["--run-dir", str(tmp_path), "--jobs", "1", *TINY]
    for _ in range(2):  # Trained, and skipped.
        assert main([*arguments, "--only", "heads_1", "mlp_1"]) == 0
        assert "no report yet: the base is missing (--only base)" in capsys.readouterr().out
    assert not (tmp_path / "numbers.json").exists()
    open_run(tmp_path / "base", ROWS["base"])
    (tmp_path / "base" / "failure.json").write_text('{"error": "loss became nan"}')
    assert main([*arguments, "--only", "heads_1"]) == 3
    assert "error: the base's loss became NaN in" in capsys.readouterr().err


def test_trains_rows_in_processes_of_their_own(tmp_path, capsys):
    """One real row from the command line, its seeds side by side; then it is done."""
    arguments = ["--run-dir", str(tmp_path), "--only", "base", "--jobs", "2", *TINY]
    assert main(arguments) == 0, (tmp_path / "base" / "log.txt").read_text()
    summary = json.loads((tmp_path / "base" / "summary.json").read_text())
    assert (summary["steps"], summary["seeds"]) == (4, [0, 1])
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "1 of 1 rows are done" in capsys.readouterr().out
    changed = dataclasses.replace(CONFIG, task="program_evaluation")
    with pytest.raises(ConfigMismatchError, match=r"config.task: 'nth_farthest' there"):
        train_row(make_rows(changed)["base"], tmp_path / "base")


def test_what_is_wrong_exits_with_2(grid, tmp_path, capsys):
    arguments = ["--run-dir", str(grid), *TINY]
    assert main([*arguments, "--only", "base", "bas"]) == 2
    assert "--only bas: no such row; there are base, slots_1" in capsys.readouterr().err
    assert main([*arguments, "--no-train", "--learning-rate", "0.5"]) == 2
    assert "config.train.learning_rate: 0.001 there, 0.5 asked" in capsys.readouterr().err
    assert main(["--run-dir", str(tmp_path / "none"), "--no-train", *TINY]) == 2
    assert "the base is not trained" in capsys.readouterr().err


def test_list_names_the_rows(capsys):
    assert main(["--list", "--preset", "paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "base: the base"
    assert "slots_16: memory slots 16" in lines
    assert "lstm: model LSTM, 1 x 512" in lines
