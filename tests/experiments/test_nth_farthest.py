"""Nth Farthest from its command line: presets, plots, summaries, exit codes."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import nth_farthest
from experiments.common.cli import parse
from experiments.common.report import FEWEST_SEEDS, difference
from experiments.nth_farthest import PRESETS, train
from experiments.nth_farthest.__main__ import main
from experiments.nth_farthest.config import Config, TaskConfig
from experiments.nth_farthest.model import make_model
from experiments.nth_farthest.train import make_problem, plot
from rrnn_jax.tasks import nth_farthest as nth_farthest_task
from tests.experiments import test_recorded_metrics as recorded

README = Path(nth_farthest.__file__).with_name("README.md")
RECORDED = "nth_farthest lstm"
FAST = [*recorded.CASES[RECORDED][1:], *recorded.RMC, *recorded.TRAIN, "--model", "all"]


def parameters(config: Config) -> int:
    shapes = jax.eval_shape(make_problem(config).init, jax.random.key(0)).params
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("preset", PRESETS)
def test_lstm_has_at_least_as_many_parameters(preset):
    config = PRESETS[preset]
    rmc, lstm = (parameters(dataclasses.replace(config, model=m)) for m in ("rmc", "lstm"))
    assert rmc <= lstm <= 1.2 * rmc


def test_paper_preset_has_the_papers_sizes():
    config = PRESETS["paper"]
    assert config.task == TaskConfig(num_objects=8, num_features=16)
    assert config.rmc.mem_slots * config.rmc.num_heads * config.rmc.head_size == 2048
    assert config.train.batch_size == 1600
    # The core alone: 605K parameters by the formulas of the authors' module.
    model = make_model(dataclasses.replace(config, model="rmc"))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 40)))
    core = shapes["params"]["cell"]
    assert round(sum(leaf.size for leaf in jax.tree.leaves(core)) / 1000) == 605
    readout = shapes["params"]["readout"]
    assert [readout[f"hidden_{i}"]["kernel"].shape for i in range(4)] == [
        (2048, 256),
        *[(256, 256)] * 3,
    ]
    assert readout["output"]["kernel"].shape == (256, 8)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("nth_farthest") / "run"
    assert main(["--run-dir", str(run_dir), *FAST]) == 0
    return run_dir


def test_trains_both_models_and_draws_them_side_by_side(both, capsys, monkeypatch):
    summary = json.loads((both / "summary.json").read_text())
    assert set(summary) == {"rmc", "lstm"}
    for name, numbers in summary.items():
        assert numbers["steps"] == 6
        assert 0 <= numbers["evaluation"]["accuracy"][0] <= 1
        assert numbers["parameters"] > 1000
        config = json.loads((both / name / "config.json").read_text())
        assert config["model"] == name
    for plots in (both / "plots", both / "rmc" / "plots", both / "lstm" / "plots"):
        assert sorted(p.name for p in plots.iterdir()) == ["accuracy.png", "loss.png"]
    # Finished: the same command again trains nothing and says the same. (It draws the same, too.)
    monkeypatch.setattr("experiments.common.plots.writes", lambda: False)
    assert main(["--run-dir", str(both), *FAST]) == 0
    assert json.loads((both / "summary.json").read_text()) == summary
    printed = capsys.readouterr().out
    accuracy = summary["rmc"]["test"]["accuracy"][0]
    assert f"Relational Memory Core: {accuracy:.1%} on fresh sequences" in printed


def test_metrics_are_those_that_were_recorded(both):
    recorded.check(RECORDED, both / "lstm")


def test_plots_can_be_rebuilt_from_metrics_alone(both, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes((both / "rmc" / "metrics.jsonl").read_bytes())
    config = dataclasses.replace(PRESETS["small"], task=TaskConfig(3, 2), model="rmc")
    plot(config, {"rmc": tmp_path}, tmp_path, make_problem(config).score)
    # The file's metadata names the versions, not the time.
    for path in (both / "rmc" / "plots").iterdir():
        assert (tmp_path / "plots" / path.name).read_bytes() == path.read_bytes()


def test_eval_only(both, capsys, tmp_path):
    assert main(["--run-dir", str(both), "--eval-only", *FAST]) == 0
    evaluation = json.loads((both / "lstm" / "evaluation.json").read_text())
    summary = json.loads((both / "summary.json").read_text())
    assert evaluation["step"] == 6
    assert evaluation["evaluation"] == summary["lstm"]["evaluation"]
    assert main(["--run-dir", str(tmp_path / "none"), "--eval-only", *FAST]) == 2
    assert "there is no run" in capsys.readouterr().err


def test_another_config_in_the_directory_exits_with_2(both, capsys):
    arguments = ["--run-dir", str(both), *FAST, "--learning-rate", "0.5"]
    assert main(arguments) == 2
    assert (
        f"train.learning_rate: {PRESETS['small'].train.learning_rate} there, 0.5 asked"
        in capsys.readouterr().err
    )


def test_default_directories():
    _, run = parse(PRESETS, "nth_farthest", "", [])
    assert run.run_dir.as_posix() == "runs/nth_farthest/quick"
    _, run = parse(PRESETS, "nth_farthest", "", ["--preset=paper", "--model=rmc"])
    assert run.run_dir.as_posix() == "runs/nth_farthest/paper/rmc"


def test_commands_of_the_readme_are_understood():
    blocks = re.findall(r"```bash\n(.*?)```", README.read_text(), re.S)
    text = "".join(blocks).replace("$seed", "1").replace("$rate", "1e-2").replace("\\\n", "")
    loops = re.findall(r"for options in (.*); do\n.*nth_farthest (.*) --run-dir", text)
    assert len(loops) == 2
    commands = re.findall(r"-m experiments.nth_farthest( .*?)?(?:#|;|$)", text, re.M)
    assert len(commands) >= 10
    for command in commands:
        if "$options" not in command:
            parse(PRESETS, "nth_farthest", "", shlex.split(command))
    for options, command in loops:
        asked = [command.replace("$options", each) for each in shlex.split(options)]
        configs = [parse(PRESETS, "nth_farthest", "", shlex.split(each))[0] for each in asked]
        assert len(set(configs)) == len(configs)
        for config in configs:
            make_problem(config)


@pytest.mark.parametrize("model", ["rmc", "lstm"])
def test_bfloat16_keeps_parameters_in_float32(model):
    config = dataclasses.replace(PRESETS["small"], model=model, dtype="bfloat16")
    problem, key = make_problem(config), jax.random.key(0)
    before, (after, _) = jax.eval_shape(
        lambda key: (state := problem.init(key), problem.update(state, key, None)), key
    )
    assert after == before
    assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_the_memory_core_learns_the_small_task(tmp_path):
    preset = dataclasses.replace(PRESETS["small"], model="rmc")
    summary = train(preset, tmp_path, progress=False)
    assert min(summary["rmc"]["evaluation"]["accuracy"]) >= 0.9


@pytest.mark.parametrize("preset", ["laptop", "small", "paper"])
@pytest.mark.parametrize(
    "document", [README, README.parents[2] / "README.md"], ids=["own", "front"]
)
def test_documents_quote_what_was_kept(document, preset):
    kept = README.parents[1] / "results" / "nth_farthest" / f"{preset}.json"
    text = document.read_text()
    for run in json.loads(kept.read_text()).values():
        summary = run["summary"]
        if "stopped_at" in summary:
            continue
        scores = summary.get("test", summary["evaluation"])["accuracy"]
        assert ", ".join(f"{100 * score:.1f} %" for score in scores) in text
        assert f"{summary['parameters']:,}" in text


def test_the_quick_runs_are_quoted():
    kept = json.loads((README.parents[1] / "results" / "nth_farthest" / "quick.json").read_text())
    text = " ".join(README.read_text().split())
    rmc, lstm = (
        ", ".join(f"{100 * score:.1f} %" for score in kept[model]["summary"]["test"]["accuracy"])
        for model in ("rmc", "lstm")
    )
    assert f"**RMC {rmc}, LSTM {lstm}**" in text
    for share in (30, 50):
        reached = kept["rmc"]["summary"]["steps_to"][f"{share}%"]
        assert f"{share} % after {', '.join(f'{step:,}' for step in reached)}" in text


def test_the_timed_run_is_quoted():
    kept = README.parents[1] / "results" / "nth_farthest" / "quick_timed.json"
    runs = [json.loads(kept.read_text())[model] for model in ("rmc", "lstm")]
    assert [run["environment"]["num_devices"] for run in runs] == [2, 2]
    core, lstm = (run["summary"]["wall_seconds"] / 60 for run in runs)
    scores = [f"{100 * run['summary']['test']['accuracy'][0]:.1f} %" for run in runs]
    text = " ".join(README.read_text().split())
    assert f"**{core + lstm:.0f} minutes for both models**" in text
    assert f"{core:.1f} minutes for the RMC (seed 0: {scores[0]})" in text
    assert f"{lstm:.1f} for the LSTM ({scores[1]})" in text


def test_the_run_of_twice_the_updates_is_quoted():
    results = README.parents[1] / "results" / "nth_farthest"
    long, usual = (
        json.loads((results / name).read_text())["rmc"]
        for name in ("laptop_24000.json", "laptop.json")
    )
    assert long["environment"]["num_devices"] == 2
    assert long["config"]["train"]["steps"] == 24_000
    ends = [f"{100 * run['summary']['test']['accuracy'][0]:.1f} %" for run in (long, usual)]
    text = " ".join(README.read_text().split())
    assert f"{long['summary']['train_seconds'] / 60:.0f} minutes" in text
    assert f"end at {ends[0]} (" in text
    assert f"the first row's seed 0 at {ends[1]}" in text
    curves = (run["accuracy"]["0"] for run in (long, usual))
    early = [curve["value"][curve["step"].index(4000)] for curve in curves]
    assert "it was at {:.0f} %, the other at {:.0f} %".format(*(100 * x for x in early)) in text


def test_the_ablation_is_quoted():
    kept = json.loads((README.parents[1] / "results" / "nth_farthest" / "rows.json").read_text())
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
    kept = json.loads((README.parents[1] / "results" / "nth_farthest" / "recipe.json").read_text())
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
    kept = json.loads((README.parents[1] / "results" / "nth_farthest" / "laptop.json").read_text())
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
    kept = json.loads((README.parents[1] / "results" / "nth_farthest" / "laptop.json").read_text())
    summary = kept["rmc"]["summary"]
    reached = [summary["steps_to"][f"{share}%"][0] for share in (30, 50, 70, 80, 91)]
    pace = summary["train_seconds"][0] / 60 / summary["steps"]
    millions = ", ".join(f"{512 * step / 1e6:.1f}" for step in reached)
    minutes = ", ".join(f"{pace * step:.0f}" for step in reached)
    assert kept["rmc"]["config"]["train"]["batch_size"] == 512
    quoted = f"after {millions} million of them, at its mean pace after {minutes} minutes."
    assert quoted in " ".join(README.read_text().split())


def test_the_papers_sizes_are_quoted_as_they_were_measured():
    kept = json.loads((README.parents[1] / "results" / "nth_farthest" / "paper.json").read_text())
    text = " ".join(README.read_text().split())
    summary = kept["rmc"]["summary"]
    assert f"| **{summary['steps_to']['91%'][0]:,} updates, " in text
    whole, wall = (f"{summary[name]:.0f} s" for name in ("train_seconds", "wall_seconds"))
    assert f"| {whole} of training, {wall} with compilation" in text
    seconds = dict(zip(*kept["rmc"]["seconds"].values(), strict=True))
    reached = [seconds[summary["steps_to"][f"{share}%"][0]] for share in (50, 70, 80, 90, 91)]
    assert "90 % | {:.0f}, {:.0f}, {:.0f}, {:.0f} |".format(*reached[:4]) in text
    assert f"updates, {reached[4]:.0f} s of training**" in text


def test_all_models_at_the_papers_sizes_are_quoted_as_they_were_measured():
    kept = json.loads((README.parents[1] / "results" / "nth_farthest" / "paper.json").read_text())
    text = " ".join(README.read_text().split())
    core = ("rmc-0", "rmc-1", "rmc-2")

    def at(names, step):
        curves = [curve for name in names for curve in kept[name]["accuracy"].values()]
        values = (curve["value"][curve["step"].index(step)] for curve in curves)
        return ", ".join(f"{100 * value:.1f} %" for value in values)

    cells = " | ".join(at(core, step) for step in (2000, 9000, 13_000))
    assert f"| RMC, seeds 0, 1, 2 | {cells} at 13,000 |" in text
    early, late = (at(["lstm"], step) for step in (2000, 9000))
    assert f"seeds 0, 1, 2 | {early} | {late} | {late} at 9,000 |" in text
    assert f"{parameters(dataclasses.replace(PRESETS['paper'], model='dnc')):,} parameters" in text
    assert f"| DNC, seed 0 | {at(['dnc'], 2000)} | | {at(['dnc'], 2000)} at 2,000 |" in text
    steps, seconds = [], []
    spent = {name: dict(zip(*kept[name]["seconds"].values(), strict=True)) for name in kept}
    for name in core:
        (curve,) = kept[name]["accuracy"].values()
        pairs = zip(*curve.values(), strict=True)
        steps.append(next(step for step, value in pairs if value >= 0.91))
        seconds.append(spent[name][steps[-1]])
    quoted = ", ".join(f"{step:,}" for step in steps)
    assert f"{quoted} updates ({', '.join(f'{x:.0f}' for x in seconds)} s of the" in text
    slower = [spent["dnc"][2000] / spent[name][2000] for name in core]
    assert f"took it {min(slower):.1f} to {max(slower):.1f} times as long" in text
    assert f"on the H200, has {at(['lstm-0'], 11_500)} after 11,500 updates" in text


def test_twice_the_rate_of_laptop_is_quoted():
    kept = README.parents[1] / "results" / "nth_farthest" / "laptop_2e-2.json"
    run = json.loads(kept.read_text())["rmc"]
    assert run["config"]["train"]["learning_rate"] == 2e-2
    scores = ", ".join(f"{100 * x:.1f} %" for x in run["summary"]["test"]["accuracy"])
    assert f"seeds 0 and 1 end at {scores} (" in " ".join(README.read_text().split())


def test_scores_and_minutes_are_those_of_the_runs():
    quick = json.loads((README.parents[1] / "results" / "nth_farthest" / "quick.json").read_text())
    minutes = [seconds / 60 for seconds in quick["rmc"]["summary"]["train_seconds"]]
    spent = f"{min(minutes):.0f} to {max(minutes):.0f} minutes"
    scores = ", ".join(f"{100 * x:.1f} %" for x in quick["rmc"]["summary"]["test"]["accuracy"])
    text = " ".join(README.read_text().split())
    assert f"takes the RMC {spent} and gives {scores}" in text
    kept = README.parents[1] / "results" / "nth_farthest" / "laptop_lstm_40000.json"
    summary = json.loads(kept.read_text())["lstm"]["summary"]
    score = f"{100 * summary['test']['accuracy'][0]:.1f} %"
    minutes = f"for {summary['train_seconds'] / 60:.0f} minutes"
    assert f"trained {minutes} there ({summary['steps']:,} updates" in text
    assert f"has {score} (" in text
    front_page = " ".join((README.parents[2] / "README.md").read_text().split())
    assert f"[{spent}](experiments/nth_farthest/README.md#results) of training give" in front_page
    assert f"Memory Core {scores}; an LSTM that trained there {minutes} has" in front_page
    assert f"has {score} ({summary['steps']:,} updates" in front_page


def test_the_rates_of_the_lstm_are_quoted():
    kept = README.parents[1] / "results" / "nth_farthest" / "laptop_rates.json"
    runs = json.loads(kept.read_text())
    quoted = [
        f"{100 * run['summary']['test']['accuracy'][0]:.1f} % at {rate}"
        for rate, run in sorted(runs.items(), key=lambda item: float(item[0]))
    ]
    assert ", ".join(quoted) in " ".join(README.read_text().split())
    for rate, run in runs.items():
        assert run["config"]["train"]["learning_rate"] == float(rate)


def test_attention_is_quoted_as_it_was_measured():
    kept = README.parents[1] / "results" / "nth_farthest" / "laptop_figures" / "attention.json"
    numbers, text = json.loads(kept.read_text()), " ".join(README.read_text().split())
    shown = [100 * share for share in numbers["input"]["head 4"]["shown"]]
    assert f"{min(shown):.0f} to {max(shown):.0f} % of its attention to the input" in text
    written = {name: 100 * numbers["written"][f"{name}_share"] for name in ("largest", "even")}
    assert "{largest:.1f} % of the change (evenly: {even:.1f} %".format(**written) in text


def test_the_core_that_ships_answers_as_its_card_says(monkeypatch):
    monkeypatch.chdir(README.parents[2])  # The card's paths are the repository's.
    card = README.parents[1] / "results" / "nth_farthest" / "weights" / "README.md"
    found: dict = {}
    exec(re.findall(r"```python\n(.*?)```", card.read_text(), re.S)[0], found)
    score = float(re.findall(r"([\d.]+) % of 16,384 fresh", card.read_text())[0])
    task = nth_farthest_task.Config()
    batch = jax.jit(nth_farthest_task.sample, static_argnums=(1, 2))(jax.random.key(9), task, 2048)
    logits = jax.jit(make_model(found["config"]).apply)(found["params"], batch.inputs)
    assert found["step"] == 12_000
    assert abs(100 * jnp.mean(logits.argmax(-1) == batch.targets) - score) < 2  # 3 deviations.
