"""Daily use: progress, plots at any time, finished runs, lists of commands."""

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread
from tqdm import tqdm

from experiments import plot
from experiments.common import plots, progress
from experiments.common.actor_critic.config import TITLES
from experiments.common.steps import Programs
from experiments.nth_farthest.config import PRESETS
from rrnn_jax.visualize.style import COLOURS
from tests.experiments.test_command_lines import read
from tests.experiments.test_run_directory import QUICK
from tests.experiments.test_training import ROOT, run


def test_without_a_terminal_each_evaluation_is_a_line(capsys, monkeypatch):
    seconds = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    with progress.Progress("rmc", 100, 2300, shown=True) as shown:
        shown.update(150, "valid 40.0%, loss 1.234", evaluated=False)
        shown.update(200, "valid 45.0%, loss 1.200", evaluated=True)
    printed = capsys.readouterr()
    line = "rmc: step 200/2300, valid 45.0%, loss 1.200, 10 updates/s, 0:03:30 left\n"
    assert (printed.out, printed.err) == (line, "")
    with progress.Progress("rmc", 0, 10, shown=False) as hidden:
        hidden.update(10, "valid 45.0%", evaluated=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_narrow_terminal_keeps_the_score(columns):
    shown = tqdm.format_meter(
        *(400, 2300, 60.0),
        ncols=columns,
        prefix="rmc: ",
        unit="step",
        postfix="valid 45.0%, loss 1.200, accuracy 44.1%",
        bar_format=progress.BAR_FORMAT,
    )
    assert len(shown) <= columns
    assert "valid 45.0%" in shown


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.Progress("rmc", 0, 10, shown=True) as shown:
        shown.update(10, "valid 45.0%", evaluated=True)
    assert "rmc: 10/10, valid 45.0% [" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert capsys.readouterr().out == ""


def test_a_finished_run_asked_again_says_so_and_computes_nothing(tmp_path, monkeypatch, capsys):
    first = run(tmp_path, QUICK)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    for name in ("evaluate", "compile", "train_chunk"):
        monkeypatch.setattr(Programs, name, None)
    capsys.readouterr()
    again = run(tmp_path, QUICK)
    assert "finished before, at step 10" in capsys.readouterr().out
    assert (again.metrics, again.test) == (first.metrics, first.test)
    assert again.seconds == first.seconds
    assert {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before


def test_plots_of_a_run_from_its_metrics_alone(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no metrics\.jsonl in"):
        plot.plot_runs([tmp_path], tmp_path)
    run(tmp_path / "b", QUICK)
    text = (tmp_path / "b" / "metrics.jsonl").read_text()
    (tmp_path / "a" / "metrics.jsonl").write_text(text[:-20])  # In training: its last row is torn.
    assert plot.main([str(tmp_path)]) == 0
    drawn = sorted(path.name for path in (tmp_path / "plots" / "all").iterdir())
    assert drawn == ["accuracy.png", "gradient_norm.png", "loss.png"]
    assert plot.main([str(tmp_path / "absent")]) == 2
    assert "error: no metrics.jsonl" in capsys.readouterr().err


def test_runs_of_one_name_are_all_plotted(tmp_path, monkeypatch):
    for place in ("x", "y"):
        (tmp_path / place / "lstm").mkdir(parents=True)
        row = '{"step": 1, "split": "train", "seed": 0, "loss": 1.0}\n'
        (tmp_path / place / "lstm" / "metrics.jsonl").write_text(row)
    drawn = []
    monkeypatch.setattr(plot, "plot_curves", lambda path, curves, **_: drawn.append([*curves]))
    plot.plot_runs([tmp_path, tmp_path / "x"], tmp_path)
    monkeypatch.chdir(tmp_path / "x" / "lstm")
    plot.plot_runs([Path(), tmp_path / "y"], tmp_path)
    plot.plot_runs([Path()], tmp_path)
    both = ["x/lstm, train", "y/lstm, train"]
    assert drawn == [both, both, ["lstm, train"]]


def test_a_run_without_metrics_is_refused_and_null_is_nan(tmp_path, monkeypatch, capsys):
    path = tmp_path / "metrics.jsonl"
    path.touch()
    assert plot.main([str(tmp_path)]) == 2
    error = f"error: there must be metrics to plot, got none in {path}\n"
    assert capsys.readouterr().err == error
    row = '{"step": 1, "split": "train", "seed": 0, "loss": %s}\n'
    path.write_text(row % "1.0" + row % "null")
    drawn = []
    monkeypatch.setattr(plot, "plot_curves", lambda path, curves, **_: drawn.append(curves))
    plot.plot_runs([tmp_path], tmp_path)
    (((_, values),),) = (by_seed.values() for by_seed in drawn[0].values())
    np.testing.assert_array_equal(values, [1.0, np.nan])


def test_a_model_has_one_colour_in_all_figures(tmp_path):
    assert set(plots.MODELS) == TITLES.keys()
    assert len(plots.MODELS) == len(COLOURS)

    def colours(*labels):
        return [COLOURS.index(look["color"]) for look in plots.looks(labels).values()]

    assert colours("LSTM", "Relational Memory Core") == [1, 0]
    assert colours("conv_lstm, valid", "x/lstm, valid", "no memory") == [2, 1, 3]
    assert colours("LSTM (runs/rmc)", "lstm_1e-2", "lstmish") == [1, 1, 0]
    many = plots.looks([f"rmc-{seed}" for seed in range(3)]).values()
    assert len({look["linestyle"] for look in many}) == 3
    path = plots.plot_curves(tmp_path / "a.png", {"LSTM": {0: ([0, 1], [0.0, 1.0])}}, title="",
                             y_label="")  # fmt: skip
    pixels = {to_hex(colour).upper() for colour in np.unique(imread(path).reshape(-1, 4), axis=0)}
    assert pixels & set(COLOURS) == {COLOURS[1]}


def test_a_presets_micro_batch_is_fitted_to_the_batch(capsys):
    assert PRESETS["small"].train.micro_batch_size == 256
    for batch, rows in ((128, 128), (512, 256), (384, 192), (1, 1)):
        config = read("nth_farthest", "--preset", "small", "--batch-size", str(batch))
        assert (config.train.batch_size, config.train.micro_batch_size) == (batch, rows)
        said = f"--micro-batch-size 256 of the preset is {rows}, for {batch} sequences\n"
        assert capsys.readouterr().err == ("" if rows == 256 else said)
    same = read(
        "nth_farthest", "--preset", "small", "--batch-size", "128", "--micro-batch-size", "64"
    )
    small = dataclasses.replace(PRESETS["small"].train, batch_size=128, micro_batch_size=64)
    assert same.train == small


@pytest.mark.parametrize(("package", "name"), [("experiments", "plot"), ("benchmarks", "check")])
def test_packages_list_their_commands(package, name):
    done = subprocess.run(
        [sys.executable, "-m", package], cwd=ROOT, check=True, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("python -m ")]
    assert any(line.startswith(f"python -m {package}.{name} ") for line in lines)
    assert all(len(line.split("  ")[-1]) > 10 for line in lines)
    assert "``" not in done.stdout
