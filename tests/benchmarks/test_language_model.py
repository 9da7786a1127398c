"""The benchmark of language models: its rows and its options."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from benchmarks import language_model
from experiments.common.records import read_rows
from experiments.language_model.model import make_model
from experiments.language_model.problem import init_params


@pytest.mark.slow
def test_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(language_model, "CUTOFFS", {60: (20, 40)})
    monkeypatch.setattr(language_model, "FEATURES", 64)
    out = tmp_path / "rows.jsonl"
    assert language_model.main(["softmax", "--rounds", "1", "--out", str(out)]) == 0
    (row,) = read_rows(out)
    assert (row["part"], row["words"], row["tokens"], row["cutoffs"]) == (
        "softmax",
        60,
        1024,
        [20, 40],
    )
    assert row["full"]["parameters"] == 60 * 64 + 60
    assert row["adaptive"]["parameters"] == 22 * 64 + 64 * 16 + 20 * 16 + 64 * 4 + 20 * 4
    seconds = row["seconds"]
    assert row["times_as_fast"] == pytest.approx(seconds["full"] / seconds["adaptive"], rel=0.1)
    assert row["environment"]["device"] == jax.devices()[0].device_kind


@pytest.mark.slow
def test_prompts_have_their_own_peak_of_memory(tmp_path, monkeypatch):
    """The peak is that of the row, not of the process that makes the rows."""
    monkeypatch.setattr(language_model, "PROMPTS", (300, 30_000))
    held = np.ones(2**27)  # 1 GiB.
    assert language_model.peak_memory_mib() > 1024
    out = tmp_path / "rows.jsonl"
    assert language_model.main(["prompt", "--out", str(out)]) == 0
    del held
    rows = list(read_rows(out))
    assert [row["tokens"] for row in rows] == [300, 30_000]
    assert [row["carry_bytes"] for row in rows] == [128 * 4] * 2
    short, long = (row["peak_memory_mib"] for row in rows)
    assert 100 < short < 1000
    assert long < 1.1 * short


@pytest.mark.slow
def test_the_papers_size(tmp_path, monkeypatch):
    paper = language_model.PRESETS["paper"]
    small = dataclasses.replace(
        paper,
        text=dataclasses.replace(paper.text, window=5, embedding_size=8, cutoffs=(20,)),
        rmc=dataclasses.replace(paper.rmc, num_heads=2, head_size=4, mlp_layers=1),
    )
    monkeypatch.setattr(language_model, "PRESETS", {"paper": small})
    monkeypatch.setattr(language_model, "PAPER_WORDS", 60)
    out = tmp_path / "rows.jsonl"
    assert language_model.main(["paper", "--rounds", "1", "--out", str(out)]) == 0
    (row,) = read_rows(out)
    model = make_model(dataclasses.replace(small, model="rmc"), 60)
    shapes = jax.eval_shape(partial(init_params, model), jax.random.key(0))
    assert row["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert (row["words"], row["tokens"]) == (60, 4 * 5)
    assert row["peak_memory_mib"] > row["temporary_mib"] >= 0


def test_models_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import torch_text

    model = torch_text.Transformer(65, 128, 4, 4, 64)
    assert torch_text.count(model) == 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128
    tokens = torch.randint(0, 65, (2, 64))
    changed = torch.cat([tokens[:, :40], (tokens[:, 40:] + 1) % 65], 1)
    torch.testing.assert_close(model(tokens)[:, :40], model(changed)[:, :40])
    run = torch_text.update(torch_text.LSTM(65, 8, 16), 4, 12)
    assert run() > [run() for _ in range(30)][-1]
    # Step by step with a state is as the whole window.
    for reader in (model, torch_text.LSTM(65, 8, 16)):
        state = None
        for t in range(5):
            logits, state = reader.read(tokens[:, t : t + 1], state)
        torch.testing.assert_close(logits[:, -1], reader(tokens[:, :5])[:, -1])
        found = torch_text.write(reader, 70)()  # More than the transformer's window.
        assert found.shape == (1, 70)
        assert ((found >= 0) & (found < 65)).all()
