"""Runs: resumed bit for bit in the middle of the text, refused on another text, and reported."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

from experiments.common.interrupts import Interrupted
from experiments.common.refused import RefusedError
from experiments.language_model.__main__ import main
from experiments.language_model.data.token_files import prepare
from experiments.language_model.report import main as report_main
from experiments.language_model.saved import load, save
from experiments.language_model.train import check_text, evaluate, train
from tests.experiments.language_model.small import TEXT, small_config, with_text


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Both models, trained; 8 updates do not end with the text, of 46 windows."""
    base = tmp_path_factory.mktemp("runs")
    (base / "text.txt").write_text(TEXT)
    config = small_config(base / "text.txt", model="all", text={"output_dropout": 0.1})
    summary = train(config, base / "run", tokens_dir=base / "tokens", progress=False)
    return base, config, summary


def test_summary_has_all_units(done):
    base, _, summary = done
    units = summary["rmc"]["by_unit"]
    assert set(units) == {"valid", "test"}
    assert summary["lstm"]["core_parameters"] == 4 * 8 * (6 + 8 + 1)
    nats = units["test"]["nats"][0]
    assert nats == summary["rmc"]["test"]["nats"][0]
    assert units["test"]["bits_per_byte"][0] == pytest.approx(nats / np.log(2))  # One byte each.
    assert (base / "run" / "plots" / "valid.png").exists()
    assert (base / "run" / "rmc" / "samples.txt").read_text().count("== step") == 3


@pytest.mark.slow
def test_resumed_to_the_bit(done, tmp_path):
    """The carry and the place in the text, too: the second half is not a replay."""
    base, _, _ = done
    one = small_config(base / "text.txt", text={"output_dropout": 0.1}, minutes=1e-9)
    directory = tmp_path / "rmc"
    with pytest.raises(Interrupted, match="stopped at step 4"):
        train(one, directory, tokens_dir=base / "tokens", progress=False)
    whole = small_config(base / "text.txt", text={"output_dropout": 0.1})
    train(whole, directory, tokens_dir=base / "tokens", progress=False)
    metrics = [(run / "metrics.jsonl").read_text() for run in (directory, base / "run" / "rmc")]
    assert metrics[0] == metrics[1]
    found, wanted = load(directory), load(base / "run" / "rmc")
    assert found.step == wanted.step
    chex.assert_trees_all_equal(found.params, wanted.params)


def test_another_text_is_refused(done):
    base, config, _ = done
    (base / "other.txt").write_text(TEXT[:-2] + "?\n")
    other = with_text(config, base / "other.txt")
    with pytest.raises(RefusedError, match=r"was made on another text \(text.txt\)"):
        train(other, base / "run", tokens_dir=base / "tokens", progress=False)
    with pytest.raises(RefusedError, match="was made on another text"):
        evaluate(other, base / "run", base / "tokens")


def test_a_damaged_text_is_refused(done, tmp_path):
    base, config, _ = done
    tokens = prepare(config.data, base / "tokens")
    (tmp_path / "text.json").write_text('{"sources": [')
    with pytest.raises(RefusedError, match=r"text\.json is empty or damaged"):
        check_text(tmp_path, tokens)


def test_evaluation_is_that_of_training(done):
    base, config, summary = done
    found = evaluate(config, base / "run", base / "tokens")
    assert found["lstm"]["by_unit"] == summary["lstm"]["by_unit"]
    assert json.loads((base / "run" / "rmc" / "evaluation.json").read_text()) == found["rmc"]


@pytest.mark.slow
def test_report_of_trained_runs(done, capsys):
    base, config, _ = done
    save(base / "run" / "rmc", base / "given")
    runs = [str(base / "given"), str(base / "run" / "lstm")]
    options = ["--tokens-dir", str(base / "tokens"), "--eval-unroll", "10,50"]
    options += ["--text", str(base / "text.txt")]
    assert report_main([*runs, *options, "--out-dir", str(base / "report")]) == 0
    found = json.loads((base / "report" / "report.json").read_text())
    assert list(found["models"]) == ["Relational Memory Core", "LSTM"]
    row, alone = found["models"]["LSTM"], found["frequencies_alone"]
    sizes = [{name: r["tokens"] for name, r in x.items()} for x in (alone, row["by_frequency"])]
    assert sizes[0] == sizes[1]
    assert row["by_frequency"]["all"]["perplexity"] == pytest.approx(np.exp(row["nats"]), rel=1e-5)
    assert list(row["by_unroll"]) == ["10", "50"]
    for name in ("frequency.png", "unroll.png", "report.md"):
        assert (base / "report" / name).stat().st_size > 0
    shown = capsys.readouterr().out
    assert "| LSTM |" in shown
    assert "| frequencies alone |" in shown
    # A text of one's own: here the same one, as a file.
    splits = prepare(config.data, base / "tokens").splits
    own = base / "own.txt"
    own.write_bytes(load(base / "given").vocabulary.decode(splits["test"].targets))
    assert report_main([*runs, *options, "--read", str(own), "--out-dir", str(base / "own")]) == 0
    again = json.loads((base / "own" / "report.json").read_text())
    assert again["text"][0]["name"] == "own.txt"
    assert again["models"]["LSTM"] == {**row, "split": "own.txt"}
    assert report_main([*runs, str(base / "typo"), *options]) == 2  # Before it measures.
    assert "there is no run in" in capsys.readouterr().err
    own.write_text("é")
    assert report_main([runs[0], *options, "--read", str(own)]) == 2
    assert "own.txt: the vocabulary of" in capsys.readouterr().err
    assert report_main([runs[0], "--eval-unroll", "x"]) == 2
    assert report_main([runs[0], "--eval-unroll", "0"]) == 2


def test_a_model_can_be_given_away(done, tmp_path, capsys):
    base, config, _ = done
    config = dataclasses.replace(config, model="rmc")
    save(base / "run" / "rmc", tmp_path / "model")
    found, wanted = load(tmp_path / "model"), load(base / "run" / "rmc")
    assert found.digest() == wanted.digest()
    assert found.step == wanted.step
    save(base / "run" / "rmc", tmp_path / "half", half=True)
    half = load(tmp_path / "half").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-6), half, wanted.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}
    assert (tmp_path / "half" / "params.npz").stat().st_size < 0.8 * (
        (tmp_path / "model" / "params.npz").stat().st_size
    )
    with pytest.raises(RefusedError, match="lstm holds a run; choose another folder"):
        save(base / "run" / "rmc", base / "run" / "lstm")
    with pytest.raises(RefusedError, match="model holds a saved model, not a run"):
        train(config, tmp_path / "model", tokens_dir=base / "tokens", progress=False)
    # It does not know where its text is.
    assert str(base) not in (tmp_path / "model" / "config.json").read_text()
    assert report_main([str(tmp_path / "model"), "--tokens-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "made on another text (text.txt)" in error
    assert error.endswith("--text must name that text; --read measures on another\n")
    with pytest.raises(RefusedError, match=r"no run in .*, but in lstm, rmc below it"):
        load(base / "run")
    with pytest.raises(FileNotFoundError, match=r"no seed 7 in .*, but \[0\]"):
        load(base / "run" / "rmc", seed=7)


def test_without_a_best_checkpoint_the_newest_is_loaded(done, tmp_path):
    base, _, _ = done
    shutil.copytree(base / "run" / "rmc", tmp_path / "run")
    for path in (tmp_path / "run" / "best").iterdir():
        shutil.rmtree(path)
    assert load(tmp_path / "run").step == 8


def test_a_text_may_lie_elsewhere(done, tmp_path):
    base, config, _ = done
    shutil.copyfile(base / "text.txt", tmp_path / "text.txt")
    moved = with_text(config, tmp_path / "text.txt")
    assert evaluate(moved, base / "run", base / "tokens")["rmc"]["step"] == 8
    shutil.copytree(base / "run" / "rmc", tmp_path / "run")
    (tmp_path / "run" / "text.json").unlink()
    with pytest.raises(RefusedError, match=r"has checkpoints, but no text\.json"):
        check_text(tmp_path / "run", prepare(config.data, base / "tokens"))


def test_command_line(done, capsys):
    base, _, _ = done
    assert main(["--path", str(base / "none.txt"), "--run-dir", str(base / "x")]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
    assert not (base / "x").exists()
