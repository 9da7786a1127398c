"""Tables, plots and the check, from rows with chosen numbers."""

import re
from pathlib import Path

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.image import imread

from benchmarks import (
    check,
    correctness,
    environments,
    language_model,
    memory,
    plots,
    profile,
    scaling,
    scan_throughput,
    table,
    task_throughput,
)
from benchmarks.settings import SETTINGS, sweep
from experiments.common.records import append_rows
from tests.benchmarks.fakes import ENVIRONMENT, TOY, row

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


@pytest.fixture
def write(tmp_path):
    path = tmp_path / "rows.jsonl"

    def write_rows(*rows):
        append_rows(path, rows)
        return str(path)

    return write_rows


def test_table(write, capsys):
    path = write(
        row("plain", seconds=2e-3, speedup=1.0),
        row("auto", seconds=1e-3, speedup=2.0),
        row("torch") | {"status": "skipped", "reason": "not installed"},
        row("plain", mode="train", seconds=0.5, speedup=1.0),
        row("plain", setting=TOY.replace(batch=1)),
    )
    assert table.main([path]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:4] == [
        "| Setting | Sizes | Mode | `flax.linen.RNN` | `rrnn_jax.RNN` | PyTorch |",
        "|---|---|---|---|---|---|",
        "| toy | B 2, T 3, S 2, F 8, float32 | forward | 2.00 ms | 1.00 ms (2.00x) | skipped |",
        "| toy | B 2, T 3, S 2, F 8, float32 | train | 500 ms | - | - |",
    ]
    assert "Abacus (CPU), 2 threads; jax 0.10.2" in printed
    assert "commit 0123456. Medians of 10 rounds" in printed
    assert ENVIRONMENT["command"] in printed

    assert table.main([path, "--sweep", "--variants", "plain"]) == 0
    printed = capsys.readouterr().out
    assert "| toy | B 1, T 3" in printed
    assert "rrnn_jax.RNN" not in printed.split("Medians")[0]


def test_details(write, capsys):
    path = write(
        row("auto"), row("torch") | {"costs": {"compile_seconds": None, "temporary_bytes": None}}
    )
    assert table.main([path, "--details"]) == 0
    printed = capsys.readouterr().out
    assert "| `rrnn_jax.RNN` | 0.50 + 1.00 s | 2.0 KiB | 2,000 | 6,000 | compute |" in printed
    assert "| PyTorch | - | - |" in printed


def test_machines_have_tables_of_their_own(write, capsys):
    path = write(row(), row() | {"threads": 1})
    assert table.main([path]) == 0
    assert capsys.readouterr().out.count("\n|---|") == 2


def test_nothing_to_show(write, capsys, tmp_path):
    path = write(row() | {"status": "failed", "reason": "?"})
    assert plots.main([path, "--out-dir", str(tmp_path)]) == 2
    assert table.main([path, "--variants", "torch"]) == 2
    assert check.main([path, "--variant", "torch"]) == 2
    assert "no row of variant torch" in capsys.readouterr().err
    assert table.main([path]) == 2
    assert capsys.readouterr().err == "error: there are no measured rows to show\n"
    for command in (table.main, check.main):
        with pytest.raises(SystemExit) as stop:
            command([str(tmp_path / "none.jsonl")])
        assert stop.value.code == 2
        assert capsys.readouterr().err.startswith("error: no measurements in")


@pytest.mark.parametrize(
    "name", ["memory", "tasks", "environments", "language_model", "scaling", "cpu_remat"]
)
def test_rows_of_another_benchmark_are_refused(name, tmp_path, capsys):
    """Those of scan_throughput by the commands that do not read them."""
    kept, copy = README.parent / "results" / f"{name}.jsonl", tmp_path / "rows.jsonl"
    copy.write_text(kept.read_text())
    error = f"rows of {copy} must be those this command reads, got those of "
    toy, out = ["--setting", "toy"], ["--out", str(copy)]
    commands = [(profile, [*toy, *out]), (correctness, [*toy, *out])]
    if name != "cpu_remat":
        commands += [(table, [str(copy)]), (check, [str(copy)]), (scan_throughput, [*toy, *out])]
        commands += [(plots, [str(copy), "--out-dir", str(tmp_path)])]
    for module, command in commands:
        try:
            code = module.main(command)
        except SystemExit as stop:
            code = stop.code
        assert code == 2
        assert error in capsys.readouterr().err
    assert copy.read_text() == kept.read_text()


def test_plots(write, tmp_path):
    settings = [SETTINGS["rl"], *(setting for _, setting in sweep(SETTINGS["toy"]))]
    names = ["plain", "auto", "scan", "hoisted", "torch", "lstm_width", "gru_width"]
    rows = [row(name, setting=setting) for setting in settings for name in names]
    streaming = row(mode="streaming", setting=TOY.replace(batch=1, steps=1))
    directory = tmp_path / "plots"
    assert plots.main([write(*rows, streaming), "--out-dir", str(directory)]) == 0
    drawn = {path.name: imread(path) for path in directory.iterdir()}
    assert set(drawn) == {
        "speedup_cpu_2_forward_float32.png",
        "share_cpu_2_forward_float32.png",
        "sweep_toy_cpu_2_forward_float32.png",
        "speedup_cpu_2_streaming_float32.png",
        "share_cpu_2_streaming_float32.png",
        "rate_cpu_2_streaming_float32.png",
    }
    for image in drawn.values():
        assert image.std() > 0.01


def test_machines_have_plots_of_their_own():
    rows = [row(), row() | {"threads": 1}, row() | {"environment": ENVIRONMENT | {"device": "b"}}]
    names = [name for name, _ in plots.figures(rows) if name.startswith("share")]
    assert names == [
        "share_cpu_2_forward_float32",
        "share_cpu_1_forward_float32",
        "share_cpu_2-2_forward_float32",
    ]


def test_bars_show_what_rows_say():
    rows = [row("plain"), row("auto", speedup=2.0), row("scan", speedup=3.0, spread=0.5)]
    drawn = dict(plots.figures(rows))
    axes = drawn["speedup_cpu_2_forward_float32"].axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2.0, 3.0]
    whiskers = [c.lines[2][0] for c in axes.containers if isinstance(c, ErrorbarContainer)]
    assert whiskers[1].get_segments()[0][:, 1].tolist() == [1.5, 4.5]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["toy"]


def test_lines_of_a_sweep():
    rows = [row(setting=setting, seconds=1e-3 * setting.batch) for _, setting in sweep(TOY)]
    rows += [row(setting=TOY.replace(batch=4), seconds=4e-3)]
    look = plots.looks(["auto"])
    figure = plots.sweep_figure(rows, look, "toy", "title")
    by_batch, by_steps = figure.axes
    assert by_batch.get_xlabel() == "B"
    assert by_batch.lines[0].get_xydata().tolist() == [[1, 1.0], [2, 2.0], [2, 2.0], [4, 4.0]]
    assert by_steps.get_xlabel() == "T"
    assert plots.sweep_figure([row()], look, "toy", "title") is None


def test_check_passes_what_is_not_slower(write, capsys):
    path = write(
        row("auto", speedup=1.0),
        row("auto", speedup=0.99, mode="train"),
        row("auto", speedup=0.9, spread=0.2, mode="streaming"),
        row("scan", speedup=0.1),
    )
    assert check.main([path]) == 0
    assert capsys.readouterr().out == "auto: 3 points, 0 of them at fault\n"


def test_check_lists_what_is_slower(write, capsys):
    path = write(
        row("auto", speedup=0.8),
        row("auto", speedup=1.5, mode="train"),
        row("auto", mode="streaming") | {"status": "disagrees", "reason": "off by 1"},
    )
    assert check.main([path]) == 1
    printed = capsys.readouterr().out
    assert "toy (B 2, T 3" in printed
    assert "forward: 0.800 times as fast as plain (quartiles 0.720 to 0.880, n 10)" in printed
    assert "streaming: disagrees: off by 1" in printed
    assert "train" not in printed
    assert "3 points, 2 of them at fault" in printed
    assert check.main([path, "--variant", "auto", "--tolerance", "0.25"]) == 1


@pytest.mark.parametrize("theirs", ["0a1b", "2c3d", None])
def test_check_lets_the_reference_s_own_program_pass(write, capsys, theirs):
    costs = row()["costs"]
    reference = row("plain", speedup=1.0) | {"costs": costs | {"program": theirs}}
    other_mode = row("plain", mode="train") | {"costs": costs | {"program": "0a1b"}}
    slow = row("auto", speedup=0.8) | {"costs": costs | {"program": "0a1b"}}
    same = theirs == "0a1b"
    assert check.main([write(reference, other_mode, slow)]) == (0 if same else 1)
    printed = capsys.readouterr().out
    assert ("1 points, 0 of them at fault (1 run the reference's own program)" in printed) == same


def test_check_against_the_best(write, capsys):
    path = write(
        row("auto", speedup=1.5), row("scan", speedup=2.0), row("torch", speedup=9.0),
        row("hoisted", speedup=1.51),
    )  # fmt: skip
    assert check.main([path]) == 0
    assert check.main([path, "--against-best"]) == 1
    assert "0.750 times as fast as scan" in capsys.readouterr().out


def test_check_compares_under_the_same_flags_only(write):
    flagged = {"environment": row()["environment"] | {"glibc_tunables": "glibc.malloc.hugetlb=1"}}
    path = write(row("auto", speedup=1.5), row("scan", speedup=2.0) | flagged)
    assert check.main([path, "--against-best"]) == 0


def commands():
    blocks = re.findall(r"<!-- ci: commands -->\n```bash\n(.*?)```", README.read_text(), re.S)
    lines = [line.split() for block in blocks for line in block.splitlines()]
    # What a command sets in its environment is for the shell.
    sets = re.compile(r"[A-Z_]+=")
    return [words[1:] if sets.match(words[0]) else words for words in lines]


def test_readme_has_commands():
    assert len(commands()) > 8
    assert "## Results" in README.read_text()


@pytest.mark.parametrize("command", commands(), ids=lambda words: " ".join(words[2:5]))
def test_commands_of_the_readme_can_be_parsed(command, monkeypatch, capsys):
    assert command[:2] == ["python", "-m"]
    module = command[2].removeprefix("benchmarks.")
    if module == "scan_throughput":
        given = scan_throughput.parser().parse_args(command[3:])
        names = scan_throughput.variant_names(given.variants, given.remat)
        assert names
        monkeypatch.setattr(scan_throughput, "matmul_precision", lambda dtype: None)
        assert list(scan_throughput.plan(given))
        return
    makers = (correctness, environments, language_model, memory, profile, scaling, task_throughput)
    if module in (names := {maker.__name__.split(".")[1]: maker for maker in makers}):
        out = names[module].parser().parse_args(command[3:]).out
        assert out.is_relative_to("benchmarks/results")
        return
    with pytest.raises(SystemExit):
        {"table": table, "plots": plots, "check": check}[module].main([
            word.replace("benchmarks/results/", "absent/benchmarks/results/")
            for word in command[3:]
        ])  # fmt: skip
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: no measurements in .*/results/(\w+/)?\w+\.jsonl\n", error)


@pytest.mark.parametrize(
    ("module", "commands"),
    [
        (environments, ("--envs 0", "--rounds 0", "--threads 4096")),
        (language_model, ("sofmtax", "--rounds 0", "--threads 4096")),
        (memory, ("--batch 0",)),
        (task_throughput, ("--setting 5", "--setting 0,1", "--threads 4096")),
    ],
)
def test_bad_options(module, commands, capsys):
    for command in commands:
        with pytest.raises(SystemExit):
            module.main(command.split())
        assert "error: " in capsys.readouterr().err


def test_kept_numbers_are_of_committed_trees():
    """But for a GPU's: its checkout was packed, and said so; the documents name the commits."""
    root = README.parents[1]
    kept = [path for folder in root.glob("*/results") for path in folder.rglob("*.json*")]
    assert len(kept) > 20
    of_changed = {str(path.relative_to(root)) for path in kept if "-dirty" in path.read_text()}
    assert of_changed <= {
        "benchmarks/results/nvidia_h100_80gb_hbm3/kernels.jsonl",
        "benchmarks/results/nvidia_h100_80gb_hbm3/throughput.jsonl",
        "benchmarks/results/nvidia_h200/throughput.jsonl",
        "experiments/results/nth_farthest/accelerator_rmc.json",
        "experiments/results/nth_farthest/paper.json",
    }
