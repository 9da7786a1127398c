"""The README of Nth Farthest quotes the numbers that were kept."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments import nth_farthest
from experiments.common.report import FEWEST_SEEDS, difference
from experiments.nth_farthest import PRESETS
from experiments.nth_farthest.model import make_model
from rrnn_jax.tasks import nth_farthest as nth_farthest_task
from tests.experiments.test_nth_farthest import parameters

README = Path(nth_farthest.__file__).with_name("README.md")
FRONT_PAGE = README.parents[2] / "README.md"
RESULTS = README.parents[1] / "results" / "nth_farthest"
PAGE = " ".join(README.read_text().split())


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("preset", ["laptop", "small", "paper"])
@pytest.mark.parametrize("document", [README, FRONT_PAGE], ids=["own", "front"])
def test_documents_quote_what_was_kept(document, preset):
    text = document.read_text()
    for run in read(preset).values():
        summary = run["summary"]
        if "stopped_at" in summary:
            continue
        scores = summary.get("test", summary["evaluation"])["accuracy"]
        assert ", ".join(f"{100 * score:.1f} %" for score in scores) in text
        assert f"{summary['parameters']:,}" in text


def test_the_quick_runs_are_quoted():
    kept = read("quick")
    rmc, lstm = (
        ", ".join(f"{100 * score:.1f} %" for score in kept[model]["summary"]["test"]["accuracy"])
        for model in ("rmc", "lstm")
    )
    assert f"**RMC {rmc}, LSTM {lstm}**" in PAGE
    for share in (30, 50):
        reached = kept["rmc"]["summary"]["steps_to"][f"{share}%"]
        assert f"{share} % after {', '.join(f'{step:,}' for step in reached)}" in PAGE


def test_the_timed_run_is_quoted():
    kept = read("quick_timed")
    runs = [kept[model] for model in ("rmc", "lstm")]
    assert [run["environment"]["num_devices"] for run in runs] == [2, 2]
    core, lstm = (run["summary"]["wall_seconds"] / 60 for run in runs)
    scores = [f"{100 * run['summary']['test']['accuracy'][0]:.1f} %" for run in runs]
    assert f"**{core + lstm:.0f} minutes for both models**" in PAGE
    assert f"{core:.1f} minutes for the RMC (seed 0: {scores[0]})" in PAGE
    assert f"{lstm:.1f} for the LSTM ({scores[1]})" in PAGE


def test_the_run_of_twice_the_updates_is_quoted():
    long, usual = (read(name)["rmc"] for name in ("laptop_24000", "laptop"))
    assert long["environment"]["num_devices"] == 2
    assert long["config"]["train"]["steps"] == 24_000
    ends = [f"{100 * run['summary']['test']['accuracy'][0]:.1f} %" for run in (long, usual)]
    assert f"{long['summary']['train_seconds'] / 60:.0f} minutes" in PAGE
    assert f"end at {ends[0]} (" in PAGE
    assert f"the first row's seed 0 at {ends[1]}" in PAGE
    curves = (run["accuracy"]["0"] for run in (long, usual))
    early = [curve["value"][curve["step"].index(4000)] for curve in curves]
    assert "it was at {:.0f} %, the other at {:.0f} %".format(*(100 * x for x in early)) in PAGE


def test_the_ablation_is_quoted():
    kept = read("rows")
    section = README.read_text().split("### Ablation")[1].split("###")[0]
    rows = re.findall(r"^\| (.+) \| ([\d., %]+) \| ([\d,]+) \|$", section, re.M)
    found = {(score, parameters) for _, score, parameters in rows}
    for run in kept.values():
        scores = ", ".join(f"{100 * x:.1f} %" for x in run["summary"]["test"]["accuracy"])
        assert (scores, f"{run['summary']['parameters']:,}") in found
    assert len(rows) == len(kept) == 9
    # Rows with as many seeds as a verdict needs.
    several = ["base", "gates_memory", "no_qkv_norm", "slots_1", "slots_4"]
    base, *others = (kept[name]["summary"]["test"]["accuracy"] for name in several)
    for found in (difference(row, base) for row in others):
        low, high = found.interval or (0, 0)
        said = (
            f"{-100 * found.mean:.1f} points (95 % interval {-100 * high:.1f} to {-100 * low:.1f})"
        )
        assert said in " ".join(section.split())
        assert found.verdict == "worse"
    enough = [name for name, run in kept.items() if len(run["summary"]["seeds"]) >= FEWEST_SEEDS]
    assert enough == several
    scores = {name: run["summary"]["test"]["accuracy"] for name, run in kept.items()}
    assert min(scores.pop("slots_16")) > max(base)
    assert max(scores["gates_none"]) < min(base) < min(scores["heads_1"]) < max(base)
    later = {  # "On an AMD EPYC."
        name: run["environment"].get("processors", [run["environment"]["processor"]])[-1]
        for name, run in kept.items()
    }
    assert {name for name, last in later.items() if "AMD" in last} == {*several, "slots_16"}


def test_changes_of_the_recipe_are_quoted():
    kept = read("recipe")
    section = README.read_text().split("### Changes of the recipe")[1].split("```")[0]
    found = re.findall(r"^\| (.+) \| ([\d., %]+) \| ([\w, ]+) \|$", section, re.M)
    rows = {"".join(re.findall(r"`(--.+)`", change)): cells for change, *cells in found}
    for run in kept.values():
        options = run["environment"]["command"].partition(" --steps 2500")[2].strip()
        scores = run["summary"]["test"]["accuracy"]
        reached = run["summary"]["steps_to"]["30%"]
        assert rows[options] == [
            ", ".join(f"{100 * score:.1f} %" for score in scores),
            ", ".join("not reached" if step is None else f"{step:,}" for step in reached),
        ]
    assert len(rows) == len(kept)


@pytest.mark.parametrize("share", [30, 50, 70, 80, 90, 91])
def test_updates_to_a_score_are_those_of_the_curves(share):
    kept = read("laptop")
    cells = []
    for name in ("rmc", "lstm"):
        curves = [curve for _, curve in sorted(kept[name]["accuracy"].items())]
        reached = [
            next((f"{step:,}" for step, value in zip(*curve.values(), strict=True)
                  if value >= share / 100), "not reached")
            for curve in curves
        ]  # fmt: skip
        cells.append(", ".join(reached))
    assert f"| updates to {share} % | {' | '.join(cells)} |" in README.read_text()


def test_sequences_and_minutes_to_a_score_follow_from_the_updates():
    kept = read("laptop")
    summary = kept["rmc"]["summary"]
    reached = [summary["steps_to"][f"{share}%"][0] for share in (30, 50, 70, 80, 91)]
    pace = summary["train_seconds"][0] / 60 / summary["steps"]
    millions = ", ".join(f"{512 * step / 1e6:.1f}" for step in reached)
    minutes = ", ".join(f"{pace * step:.0f}" for step in reached)
    assert kept["rmc"]["config"]["train"]["batch_size"] == 512
    quoted = f"after {millions} million of them, at its mean pace after {minutes} minutes."
    assert quoted in PAGE


def test_the_papers_sizes_are_quoted_as_they_were_measured():
    kept = read("paper")
    summary = kept["rmc"]["summary"]
    assert f"| **{summary['steps_to']['91%'][0]:,} updates, " in PAGE
    whole, wall = (f"{summary[name]:.0f} s" for name in ("train_seconds", "wall_seconds"))
    assert f"| {whole} of training, {wall} with compilation" in PAGE
    seconds = dict(zip(*kept["rmc"]["seconds"].values(), strict=True))
    reached = [seconds[summary["steps_to"][f"{share}%"][0]] for share in (50, 70, 80, 90, 91)]
    assert "90 % | {:.0f}, {:.0f}, {:.0f}, {:.0f} |".format(*reached[:4]) in PAGE
    assert f"updates, {reached[4]:.0f} s of training**" in PAGE


def test_all_models_at_the_papers_sizes_are_quoted_as_they_were_measured():
    kept = read("paper")
    core = ("rmc-0", "rmc-1", "rmc-2")

    def at(names, step):
        curves = [curve for name in names for curve in kept[name]["accuracy"].values()]
        values = (curve["value"][curve["step"].index(step)] for curve in curves)
        return ", ".join(f"{100 * value:.1f} %" for value in values)

    cells = " | ".join(at(core, step) for step in (2000, 9000, 13_000))
    assert f"| RMC, seeds 0, 1, 2 | {cells} at 13,000 |" in PAGE
    early, late = (at(["lstm"], step) for step in (2000, 9000))
    assert f"seeds 0, 1, 2 | {early} | {late} | {late} at 9,000 |" in PAGE
    assert f"{parameters(dataclasses.replace(PRESETS['paper'], model='dnc')):,} parameters" in PAGE
    assert f"| DNC, seed 0 | {at(['dnc'], 2000)} | | {at(['dnc'], 2000)} at 2,000 |" in PAGE
    steps, seconds = [], []
    spent = {name: dict(zip(*kept[name]["seconds"].values(), strict=True)) for name in kept}
    for name in core:
        (curve,) = kept[name]["accuracy"].values()
        pairs = zip(*curve.values(), strict=True)
        steps.append(next(step for step, value in pairs if value >= 0.91))
        seconds.append(spent[name][steps[-1]])
    quoted = ", ".join(f"{step:,}" for step in steps)
    assert f"{quoted} updates ({', '.join(f'{x:.0f}' for x in seconds)} s of the" in PAGE
    slower = [spent["dnc"][2000] / spent[name][2000] for name in core]
    assert f"took it {min(slower):.1f} to {max(slower):.1f} times as long" in PAGE
    assert f"on the H200, has {at(['lstm-0'], 11_500)} after 11,500 updates" in PAGE


def test_twice_the_rate_of_laptop_is_quoted():
    run = read("laptop_2e-2")["rmc"]
    assert run["config"]["train"]["learning_rate"] == 2e-2
    scores = ", ".join(f"{100 * x:.1f} %" for x in run["summary"]["test"]["accuracy"])
    assert f"seeds 0 and 1 end at {scores} (" in PAGE


def test_scores_and_minutes_are_those_of_the_runs():
    quick = read("quick")
    minutes = [seconds / 60 for seconds in quick["rmc"]["summary"]["train_seconds"]]
    spent = f"{min(minutes):.0f} to {max(minutes):.0f} minutes"
    scores = ", ".join(f"{100 * x:.1f} %" for x in quick["rmc"]["summary"]["test"]["accuracy"])
    assert f"{scores} after {spent.removesuffix(' minutes')} of the Intel Xeon" in PAGE
    front_page = " ".join(FRONT_PAGE.read_text().split())
    assert f"the RMC needs {spent} of that Xeon for {scores}." in front_page


def test_the_longer_runs_of_the_lstm_are_quoted():
    kept = read("laptop_lstm_40000")["lstm"]
    summary = kept["summary"]
    assert (summary["steps"], summary["seeds"]) == (40_000, [0, 1, 2])
    scores = ", ".join(f"{100 * x:.1f} %" for x in summary["test"]["accuracy"])
    first, *others = (f"{seconds / 60:.0f}" for seconds in summary["train_seconds"])
    assert f"seeds 0, 1 and 2: **{scores}** after {first} minutes" in PAGE
    front_page = " ".join(FRONT_PAGE.read_text().split())
    assert f"has {scores} (seeds 0, 1, 2), after {first} minutes" in front_page
    for page in (PAGE, front_page):
        assert f"{' and '.join(others)} of an AMD EPYC" in page
    assert [x.split("(R)")[0].split(",")[0] for x in kept["environment"]["processors"]] == [
        "Intel",
        "AMD EPYC",
    ]
    # "In less time the RMC is far ahead on each processor."
    laptop, quick = (read(name)["rmc"]["summary"] for name in ("laptop", "quick"))
    longest = max(summary["train_seconds"][1:])
    assert laptop["train_seconds"][0] < min(summary["train_seconds"][1:]) <= longest
    assert max(quick["train_seconds"]) < summary["train_seconds"][0]
    best = max(summary["test"]["accuracy"])
    assert min(*laptop["test"]["accuracy"], *quick["test"]["accuracy"]) > best + 0.1


def test_the_rates_of_the_lstm_are_quoted():
    runs = read("laptop_rates")
    quoted = [
        f"{100 * run['summary']['test']['accuracy'][0]:.1f} % at {rate}"
        for rate, run in sorted(runs.items(), key=lambda item: float(item[0]))
    ]
    assert ", ".join(quoted) in PAGE
    for rate, run in runs.items():
        assert run["config"]["train"]["learning_rate"] == float(rate)


def test_attention_is_quoted_as_it_was_measured():
    numbers = read("laptop_figures/attention")
    shown = [100 * share for share in numbers["input"]["head 4"]["shown"]]
    assert f"{min(shown):.0f} to {max(shown):.0f} % of its attention to the input" in PAGE
    written = {name: 100 * numbers["written"][f"{name}_share"] for name in ("largest", "even")}
    assert "{largest:.1f} % of the change (evenly: {even:.1f} %".format(**written) in PAGE


def test_the_core_that_ships_answers_as_its_card_says(monkeypatch):
    monkeypatch.chdir(README.parents[2])  # The card's paths are the repository's.
    card = RESULTS / "weights" / "README.md"
    found: dict = {}
    exec(re.findall(r"```python\n(.*?)```", card.read_text(), re.S)[0], found)
    score = float(re.findall(r"([\d.]+) % of 16,384 fresh", card.read_text())[0])
    task = nth_farthest_task.Config()
    batch = jax.jit(nth_farthest_task.sample, static_argnums=(1, 2))(jax.random.key(9), task, 2048)
    logits = jax.jit(make_model(found["config"]).apply)(found["params"], batch.inputs)
    assert found["step"] == 12_000
    assert abs(100 * jnp.mean(logits.argmax(-1) == batch.targets) - score) < 2  # 3 deviations.


def test_the_front_page_quotes_sizes_of_cores_and_the_lstm_at_the_papers_size():
    page = " ".join(FRONT_PAGE.read_text().split())
    laptop, paper = read("laptop"), read("paper")
    sizes = {name: f"{laptop[name]['summary']['core_parameters']:,}" for name in ("rmc", "lstm")}
    assert "without it the RMC has {rmc}, the LSTM {lstm}".format(**sizes) in page
    curves = paper["lstm"]["accuracy"].values()
    for step, said in ((2000, "units {} to {} %;"), (9000, "that LSTM had {} to {} %")):
        at = sorted(100 * c["value"][c["step"].index(step)] for c in curves)
        assert said.format(f"{at[0]:.1f}", f"{at[-1]:.1f}") in page
