"""The documents quote what was kept."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import language_model
from experiments.common.report import paired_interval, text_of
from experiments.language_model.data.corpus import BUNDLED, read_corpus
from experiments.language_model.data.token_files import DataConfig, prepare
from experiments.language_model.report import carried_nats

README = Path(language_model.__file__).with_name("README.md")
NAMES = {"rmc": "memory core", "lstm": "LSTM"}
KEPT = README.parents[1] / "results" / "language_model"
TEXT = README.read_text()
PROSE = " ".join(TEXT.split())


def read(name):
    return json.loads((KEPT / f"{name}.json").read_text())


def test_the_comparison_of_quick_is_quoted():
    rows = {(row["at"], row["model"]): row for row in read("quick_report")}
    for model in ("rmc", "lstm"):
        updates, time = rows["updates", model], rows["time", model]
        cells = [f"{updates['parameters']:,}", text_of(updates["values"]), text_of(time["values"])]
        cells.append(f"{1000 * updates['seconds_per_update']:.1f}")
        assert f"| {' | '.join(cells)} |" in PROSE
        kept = read("quick")[model]
        assert list(kept["nats"]) == [str(seed) for seed in updates["seeds"]]
        assert [curve["value"][-1] for curve in kept["nats"].values()] == [
            round(value, 5) for value in updates["values"]
        ]
        minutes = kept["summary"]["train_seconds"] / 60 / len(updates["seeds"])
        assert f"{minutes:.1f}" in PROSE.split("6.1 million characters in ")[1][:20]
    for at in ("updates", "time"):
        low, high = rows[at, "lstm"]["interval"]
        assert f"by {-rows[at, 'lstm']['difference']:.3f} " in PROSE
        assert f"{low:.3f} to {high:+.3f}" in PROSE or f"{low:.3f} to {high:.3f};" in PROSE
    assert rows["updates", "lstm"]["verdict"] == "not told apart"


@pytest.mark.parametrize(("name", "tried"), [("quick", (3, 3)), ("shakespeare_short", (3, 4))])
def test_rates_are_the_best_that_were_tried(name, tried):
    sweep = read(f"{name}_sweep")
    best = {row["model"]: row for row in sweep if row.get("best")}
    for (model, row), count in zip(best.items(), tried, strict=True):
        values = [other["valid"] for other in sweep if other["model"] == model]
        assert len(values) == count
        assert row["valid"] == min(values)
        assert not set(row["seeds"]) & set(map(int, read(name)[model]["nats"]))
        assert f"rate {next(iter(row['setting'].values()))} |" in TEXT


@pytest.mark.slow
def test_a_five_gram_is_quoted():
    """p(c | context) = (count + kinds * p(c | shorter context)) / (total + kinds)."""
    corpus = read_corpus(BUNDLED)
    train, valid = ("".join(corpus[split][0].pieces()) for split in ("train", "valid"))
    counts = Counter(train[i : i + n] for n in range(1, 6) for i in range(len(train) - n + 1))
    totals, kinds = Counter(), Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    text, nats = train[-4:] + valid, 0.0
    for i in range(4, len(text)):
        chance = 1 / 65
        for n in range(5):
            context = text[i - n : i]
            times = counts[context + text[i]] + kinds[context] * chance
            chance = times / (totals[context] + kinds[context]) if context in kinds else chance
        nats -= math.log(chance)
    assert f"has {nats / len(valid):.3f} nats" in TEXT


def test_windows_without_a_state_are_quoted():
    for name, numbers in read("quick_windows")["models"].items():
        losses = [*numbers["by_unroll"].values(), numbers["nats"]]
        assert f"| {name} | {' | '.join(f'{loss:.3f}' for loss in losses)} |" in TEXT
        assert f"{numbers['by_unroll']['25'] - numbers['nats']:.3f}" in TEXT


def test_shakespeare_is_quoted():
    kept, windows = read("shakespeare"), read("shakespeare_windows")
    (numbers,) = windows["models"].values()
    (nats,) = kept["summary"]["evaluation"]["nats"]
    minutes = kept["summary"]["train_seconds"] / 60
    row = f"| {kept['summary']['parameters']:,} | 41 million | {nats:.3f} | {minutes:.0f} |"
    assert row in PROSE
    config = kept["config"]["train"], kept["config"]["text"]
    assert config[0]["steps"] * config[0]["batch_size"] * config[1]["window"] == 40_960_000
    unrolls = numbers["by_unroll"]
    assert f"{unrolls['200']:.3f} and {unrolls['500']:.3f}, with the state carried" in PROSE
    assert f"{numbers['nats']:.3f} nats" in (KEPT / "weights" / "README.md").read_text()


def test_the_comparison_at_shakespeare_is_quoted():
    rows = {(row["at"], row["model"]): row for row in read("shakespeare_short_report")}
    windows, kept = read("shakespeare_short_windows")["models"], read("shakespeare_short")
    for model, title in (("rmc", "Relational Memory Core"), ("lstm", "LSTM")):
        row, own = rows["updates", model], kept[model]
        nats = own["summary"]["evaluation"]["nats"]
        assert row["values"] == pytest.approx(nats, abs=1e-5)
        config = own["config"]
        assert config["train"]["steps"] * 32 * config["text"]["window"] == 14_336_000
        assert (
            "--steps 3500 --input-dropout 0.1 --output-dropout 0.2"
            in (own["environment"]["command"])
        )
        losses = [*windows[title]["by_unroll"].values(), windows[title]["nats"]]
        assert windows[title]["nats"] == pytest.approx(nats[0], abs=2e-3)  # Not in 16 parts.
        cells = [f"{row['parameters']:,}", text_of(row["values"]), *(f"{x:.3f}" for x in losses)]
        assert f" | {' | '.join(cells)} |" in PROSE
    section = PROSE.split("**Both models, 3,500 updates**")[1]
    for at, digits in (("updates", "{:+.3f}"), ("time", "{:.3f}")):
        low, high = rows[at, "lstm"]["interval"]
        behind = f"{low:.3f} to {digits.format(high)}"
        assert f"ahead by {-rows[at, 'lstm']['difference']:.3f} (" in section
        assert behind in section
        assert rows[at, "lstm"]["verdict"] == "not told apart"
    seconds = [rows["updates", model]["seconds_per_update"] for model in ("rmc", "lstm")]
    assert f"took {seconds[0] / seconds[1]:.1f} times as long" in section
    minutes = [f"{3500 * each / 60:.0f}" for each in seconds]
    assert f"{' and '.join(minutes)} minutes a seed" in section
    paces = [read("shakespeare_pace")[model]["updates_per_second"] for model in ("rmc", "lstm")]
    assert f"ran at {paces[0]:.1f} and {paces[1]:.1f} a second" in section
    minutes = [3500 / pace / 60 for pace in paces]
    assert f"would take {minutes[0]:.1f} and {minutes[1]:.1f} minutes" in section
    assert max(max(rows["updates", model]["values"]) for model in ("rmc", "lstm")) < 1.5


def test_bytes_are_quoted():
    kept, windows = read("bytes"), read("bytes_windows")
    (source,) = windows["text"]
    assert f"({source['bytes']:,} bytes)" in PROSE
    for model, title in (("rmc", "Relational Memory Core"), ("lstm", "LSTM")):
        numbers, config = windows["models"][title], kept[model]["config"]
        rates = {"rmc": config["train"]["learning_rate"]}
        rates["lstm"] = config["lstm"]["lstm_learning_rate"]
        quoted = f"rate {rates[model]:.0e}".replace("e-0", "e-")
        losses = [numbers["nats"], *numbers["by_unroll"].values()]
        cells = [f"{title}, {quoted}", f"{numbers['parameters']:,}", *(f"{x:.3f}" for x in losses)]
        assert f"| {' | '.join(cells)} |" in PROSE
        nats = kept[model]["summary"]["test"]["nats"]  # In 16 parts, each from a fresh state.
        assert nats[0] == pytest.approx(numbers["nats"], abs=2e-3)
        assert f"{', '.join(f'{one:.3f}' for one in nats)} for the {NAMES[model]}" in PROSE
        assert numbers["split"] == "test"
        assert numbers["step"] == config["train"]["steps"] == 3000
        assert config["data"]["fractions"] == [0.8, 0.1, 0.1]
        count = 3000 * config["train"]["batch_size"] * config["text"]["window"]
        passes = count / (0.8 * source["bytes"])
        assert f"{count / 1e6:.1f} million bytes read, {passes:.1f} passes" in PROSE
    rmc, lstm = (kept[model]["summary"]["test"]["nats"] for model in ("rmc", "lstm"))
    low, high = paired_interval(lstm, rmc) or (0, 0)
    behind = f"{np.mean(lstm) - np.mean(rmc):.3f} (95 % bootstrap interval {low:.3f} to {high:.3f})"
    assert f"which is behind by {behind}" in PROSE


def test_words_are_quoted():
    kept, windows = read("austen"), read("austen_windows")
    alone = windows["frequencies_alone"]
    cells = [f"{row['perplexity']:,.1f}" for row in alone.values()]
    assert f"| frequencies alone | | {' | '.join(cells)} |" in PROSE
    for model, title in (("rmc", "Relational Memory Core"), ("lstm", "LSTM")):
        numbers, config = windows["models"][title], kept[model]["config"]
        cells = [f"{row['perplexity']:,.1f}" for row in numbers["by_frequency"].values()]
        assert f"| {title} | {numbers['parameters']:,} | {' | '.join(cells)} |" in PROSE
        losses = [*numbers["by_unroll"].values(), numbers["nats"]]
        assert f"| {title} | {' | '.join(f'{np.exp(x):.1f}' for x in losses)} |" in PROSE
        nats = kept[model]["summary"]["test"]["nats"]  # In 16 parts, each from a fresh state.
        assert nats[0] == pytest.approx(numbers["nats"], abs=1e-2)
        assert f"{', '.join(f'{x:.1f}' for x in np.exp(nats))} for the {NAMES[model]}" in PROSE
        assert numbers["split"] == "test"
        assert numbers["step"] == config["train"]["steps"] == 1200
        assert config["text"]["cutoffs"] == [1000, 5000]
        assert _rate(config) == 1.6e-2
        passes = 1200 * config["train"]["batch_size"] * config["text"]["window"] / 731_416
        assert f"({passes:.1f} passes)" in PROSE
    assert f"({numbers['tokens']:,} words)" in PROSE
    rmc, lstm = (kept[model]["summary"]["test"]["nats"] for model in ("rmc", "lstm"))
    low, high = paired_interval(rmc, lstm) or (0, 0)
    behind = f"{np.mean(rmc) - np.mean(lstm):.3f} nats (95 % bootstrap interval {low:.3f} to"
    assert f"behind by {behind} {high:.3f})" in PROSE


def _losses(rates, model):
    """Loss of the validation text by rate."""
    tried = {_rate(run["config"]): run for name, run in rates.items() if name.startswith(model)}
    return {rate: tried[rate]["summary"]["evaluation"]["nats"][0] for rate in sorted(tried)}


def test_rates_on_bytes_are_quoted():
    rates = read("bytes_rates")
    tried = {"rmc": (3e-3, 6e-3, 1.2e-2), "lstm": (5e-3, 1e-2, 2e-2, 4e-2)}
    for model, best in (("rmc", 6e-3), ("lstm", 2e-2)):
        losses = _losses(rates, model)
        assert tuple(losses) == tried[model]
        assert min(losses, key=losses.__getitem__) == best == _rate(read("bytes")[model]["config"])
        quoted = ", ".join(f"{x:.3f}" for x in losses.values())
        assert f"{quoted} for the {NAMES[model]}" in PROSE


def test_rates_on_words_are_quoted():
    rates = read("austen_rates")
    for model, title in (("rmc", "Relational Memory Core"), ("lstm", "LSTM")):
        losses = _losses(rates, model)
        assert list(losses) == [2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]
        assert f"| {title} | {' | '.join(f'{x:.1f}' for x in np.exp([*losses.values()]))} |" in TEXT
        assert min(losses, key=losses.__getitem__) == 1.6e-2
    early = [rates[f"{m}_4e-3"]["summary"]["test"]["nats"] for m in ("rmc", "lstm")]
    assert early[0] < early[1]


def _rate(config):
    """The rate of a run's model."""
    return (
        config[config["model"]][f"{config['model']}_learning_rate"]
        or (config["train"]["learning_rate"])
    )


def test_full_and_adaptive_softmax_are_quoted():
    kept = read("austen_softmax")
    for model, title in (("rmc", "Relational Memory Core"), ("lstm", "LSTM")):
        for kind, cutoffs in (("full", []), ("adaptive", [1000, 5000])):
            summary, config = (kept[f"{model}_{kind}"][part] for part in ("summary", "config"))
            cells = [f"{np.exp(summary[split]['nats'][0]):.1f}" for split in ("evaluation", "test")]
            row = f"| {title}, {kind} | {summary['parameters']:,} | {' | '.join(cells)} |"
            assert row in TEXT
            assert config["text"].pop("cutoffs") == cutoffs
            assert _rate(config) == 4e-3
        assert (
            kept[f"{model}_full"]["config"] == kept[f"{model}_adaptive"]["config"]
        )  # In all else.


def test_the_first_updates_at_the_papers_size_are_quoted():
    kept = read("paper_10")
    (curve,) = kept["nats"].values()
    assert curve["step"] == [0, 10]
    assert f"({kept['summary']['parameters']:,} parameters)" in PROSE
    assert "from {:.1f} to {:.1f} ([numbers]".format(*curve["value"]) in PROSE
    assert f"`{kept['environment']['command']}`" in PROSE


@pytest.mark.slow
@pytest.mark.usefixtures("all_optimisations")
def test_the_model_that_ships_has_the_loss_its_card_says(tmp_path, monkeypatch):
    monkeypatch.chdir(README.parents[2])  # The card's paths are the repository's.
    card = (KEPT / "weights" / "README.md").read_text()
    found: dict = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.S)[0], found)
    saved = found["saved"]
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(saved.params)) == 385_025
    valid = prepare(DataConfig(), tmp_path).splits["valid"]
    stated = float(re.findall(r"([\d.]+) nats", card)[0])
    assert carried_nats(saved, valid).mean() == pytest.approx(stated, abs=6e-4)
