"""The documents quote what was kept."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments import box_world, mini_pacman
from experiments.box_world.train import make_game as make_box_world
from experiments.common.actor_critic.config import MODELS, POLICIES, TITLES
from experiments.common.actor_critic.runs import policy_scores
from experiments.common.report import paired_interval
from experiments.common.run_directory import as_json
from experiments.mini_pacman.train import make_game as make_mini_pacman

README = Path(box_world.__file__).with_name("README.md")
RESULTS = README.parents[1] / "results"
KINDS = ("solved", "solved_L1_F0", "solved_L1_F1", "solved_L2_F0", "solved_L2_F1")


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def percents(values):
    return " | ".join(f"{100 * value:.1f} %" for value in values)


def mean(values):
    return sum(values) / len(values)


def error_of(means, metric, count=1000):
    """The standard error of a policy's mean; a share is the mean of its squares."""
    squares = means.get(f"{metric}_squared", means[metric])
    return math.sqrt((squares - means[metric] ** 2) / (count - 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["box_world/quick", "box_world/smoke", "mini_pacman/quick"])
def test_kept_scores_of_policies_are_measured_again(name):
    game, preset = name.split("/")
    config = {"box_world": box_world, "mini_pacman": mini_pacman}[game].PRESETS[preset]
    make_game = {"box_world": make_box_world, "mini_pacman": make_mini_pacman}[game]
    kept = read(f"{name}_policies")
    assert kept["config"] == {"preset": preset, "task": as_json(config)["task"]}
    for policy, means in policy_scores(make_game(config)).items():
        assert means == pytest.approx(kept[policy], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "metric", "text"),
    [
        ("box_world/quick", "solved", "(standard errors 0.5 and 1.5 points;"),
        ("box_world/smoke", "solved", None),
        ("box_world/paper", "solved", None),
        ("mini_pacman/quick", "return", "(standard errors 0.2 and 1.4;"),
    ],
)
def test_policies_were_measured_as_the_runs_say(name, metric, text):
    """The random policy of kept runs had the same levels; the heuristic is better by far."""
    kept = read(f"{name}_policies")
    assert kept["environment"]["command"].endswith(" --policies-only")
    assert kept["config"]["task"]["test_episodes"] == 1000
    errors = [error_of(kept[policy], metric) for policy in POLICIES]
    assert kept["heuristic"][metric] > kept["random"][metric] + 10 * max(errors)
    if text:
        scale = 100 if metric == "solved" else 1
        said = " and ".join(f"{scale * error:.1f}" for error in errors)
        assert text.startswith(f"(standard errors {said}")
        assert text in (RESULTS.parent / name.split("/")[0] / "README.md").read_text()
    old = read({"box_world/paper": "box_world/paper_200"}.get(name, name))
    for run in [old] if "summary" in old else old.values():
        assert run["summary"]["random"] == pytest.approx(kept["random"], abs=1e-6)
        task = {"preset": run["config"]["preset"], "task": run["config"]["task"]}
        assert task == kept["config"]


def test_box_world_is_quoted():
    text, runs = README.read_text(), read("box_world/quick")
    for name, kept in runs.items():
        summary = kept["summary"]
        assert summary["frames"] == 600 * 256 * 40
        assert summary["seeds"] == [0, 1, 2]
        solved, *parts = (summary["test"][kind] for kind in KINDS)
        seeds = ", ".join(f"{100 * value:.1f}" for value in solved)
        shares = percents(mean(part) for part in parts)
        minutes = np.min(summary["train_seconds"]) / 60
        row = f"| {TITLES[name]} | {100 * mean(solved):.1f} % ({seeds}) | {shares} | "
        assert f"{row}{summary['parameters']:,} | {minutes:.0f} |" in text
        assert f"| random policy | {percents(summary['random'][kind] for kind in KINDS)} |" in text
        assert kept["config"]["agent"]["skip"]
    rmc, lstm, conv, none = (np.asarray(runs[name]["summary"]["test"]["solved"]) for name in MODELS)
    low, high = paired_interval(list(rmc), list(lstm)) or (0, 0)
    rule = read("box_world/quick_policies")["heuristic"]
    assert f"| heuristic | {percents(rule[kind] for kind in KINDS)} | | |" in text
    said = " ".join(text.split())
    gains = [100 * (rmc.mean() - other) for other in (none.mean(), rule["solved"])]
    assert f"**With memory, {gains[0]:.0f} points more** (and twice the parameters)" in said
    assert f"most with two boxes; over the heuristic, {gains[1]:.0f}" in said
    none_by_kind = runs["none"]["summary"]["test"]
    assert all(rule[kind] > mean(none_by_kind[kind]) + 0.1 for kind in KINDS[3:])
    assert rule["solved_L1_F1"] < mean(none_by_kind["solved_L1_F1"]) - 0.2
    behind = 100 * (rule["solved"] - none.mean())
    assert f"The heuristic is {behind:.0f} points ahead of the agent without memory" in said
    assert f"by {100 * (rmc - lstm).mean():.1f} points (95 % bootstrap interval" in said
    assert f"paired difference {100 * low:.1f} to {100 * high:.1f})" in said
    low, high = paired_interval(list(rmc), list(conv)) or (0, 0)
    ahead = f"by {100 * (rmc - conv).mean():.1f} points ({100 * low:.1f} to {100 * high:.1f})"
    assert f"ahead of the ConvLSTM in every seed, {ahead}" in said
    ratio = min(runs["rmc"]["summary"]["train_seconds"]) / min(
        runs["lstm"]["summary"]["train_seconds"]
    )
    step = int(600 / ratio) // 25 * 25
    rmc, lstm = (
        100 * mean([c["value"][c["step"].index(at)] for c in runs[name]["solved"].values()])
        for name, at in (("rmc", step), ("lstm", 600))
    )
    assert f"take {ratio:.1f} times as long (fastest seeds), and at {step} updates it" in said
    assert (
        f"it solves {rmc:.1f} % of the validation levels, where the LSTM has {lstm:.1f} %" in said
    )


def test_the_front_page_quotes_it_too():
    text = (RESULTS.parents[1] / "README.md").read_text()
    report = {row["model"]: row["values"] for row in read("language_model/quick_report")[:2]}
    bytes_, words = (
        {name: np.array(run["summary"]["test"]["nats"]) for name, run in read(kept).items()}
        for kept in ("language_model/bytes", "language_model/austen")
    )
    two, signs = ("rmc", "lstm"), {}
    for title, found, digits in (
        ("levels solved, %", scores("box_world/quick", "solved", 100), 1),
        ("mean return", scores("mini_pacman/quick", "return"), 0),
        ("by character, 175,000 parameters: nats", [report[name] for name in two], 3),
        ("by byte, 200,000 parameters: nats", [bytes_[name] for name in two], 3),
        ("by word, 460,000 parameters: perplexity", [np.exp(words[name]) for name in two], 1),
    ):
        cells = (" to ".join(f"{x:.{digits}f}" for x in (min(one), max(one))) for one in found)
        cells = [f"{mean(one):.{digits}f} ({cell})" for one, cell in zip(found, cells, strict=True)]
        assert f"{title} | {' | '.join(cells)} |" in text
        signs[title] = set(np.sign(np.subtract(*found[:2])))
    # "In every seed": games are better with more, texts with less.
    assert list(signs.values())[:2] == [{1}, {-1}]
    assert list(signs.values())[3:] == [{-1}, {1}]
    rules = (
        f" | {100 * read('box_world/quick_policies')['heuristic']['solved']:.1f} |",
        f" | {read('mini_pacman/quick_policies')['heuristic']['return']:.0f} |",
    )
    assert all(rule in text for rule in rules)


def scores(name, key, scale=1):
    """The scores of every seed, by model."""
    kept = read(name)
    return [scale * np.array(kept[model]["summary"]["test"][key]) for model in MODELS]


def test_the_skip_is_worth_what_is_said():
    without = read("box_world/no_skip")
    found = {}
    for name, kept in without.items():
        assert "skip" not in kept["config"]["agent"]  # An option that came later.
        (curve,) = kept["solved"].values()
        found[name] = round(100 * curve["value"][curve["step"].index(200)])
    said = " ".join(README.read_text().split())
    assert (
        "{rmc} % of the 512 validation levels after 200 updates, where the LSTM had {lstm}".format(
            **found
        )
        in said
    )


def check_shorter_schedule(game, text):
    """The rate of the 200 updates falls to zero, as the preset's does at its end."""
    train = read(f"{game}/paper_200")["config"]["train"]
    assert (train["schedule"], train["steps"]) == ("linear", 200)
    games = {"box_world": box_world, "mini_pacman": mini_pacman}
    paper = games[game].PRESETS["paper"].train
    assert paper.schedule == "linear"
    said = f"200 updates, in which its rate falls to zero (the preset's has {paper.steps:,})"
    assert said in " ".join(text.split())


def test_the_first_updates_at_the_papers_size_are_quoted():
    summary = read("box_world/paper_200")["summary"]
    said = f"{summary['frames']:,} frames with {summary['parameters']:,} parameters"
    assert said in " ".join(README.read_text().split())
    check_shorter_schedule("box_world", README.read_text())
    chance, rule = (100 * read("box_world/paper_policies")[name]["solved"] for name in POLICIES)
    said = " ".join(README.read_text().split())
    assert f"solves {100 * summary['test']['solved'][0]:.1f} % of the levels after" in said
    assert f"The random policy solves {chance:.1f} %, the heuristic {rule:.1f} %" in said
    share = 100 * summary["test"]["solved"][0]
    assert f"levels each do not tell {share:.1f} % from {chance:.1f} %" in said
    error = math.sqrt((share * (100 - share) + chance * (100 - chance)) / 1000)
    assert abs(share - chance) < 1.5 * error


def test_the_first_updates_of_mini_pacman_at_the_papers_size_are_quoted():
    kept = read("mini_pacman/paper_200")
    summary = kept["summary"]
    returns = summary["test"]["return"][0], *(summary[name]["return"] for name in POLICIES)
    said = " ".join((RESULTS.parent / "mini_pacman" / "README.md").read_text().split())
    check_shorter_schedule("mini_pacman", said)
    assert f"{summary['frames']:,} frames with {summary['parameters']:,} parameters" in said
    assert (
        "return of 96 fresh episodes is {:.1f}, of the random policy {:.1f}, of the heuristic "
        "{:.0f}".format(*returns)
        in said
    )
    parts = [{name: value[0] for name, value in summary["test"].items()}]
    parts += [summary[name] for name in POLICIES]
    errors = [math.sqrt((x["return_squared"] - x["return"] ** 2) / 96) for x in parts]
    assert "standard errors {:.1f}, {:.1f}, {:.0f};".format(*errors) in said
    assert f"`{kept['environment']['command']}`" in said
    assert kept["config"]["task"]["test_episodes"] == 96


def test_smoke_is_quoted():
    text, kept = README.read_text(), read("box_world/smoke")
    test = kept["summary"]["test"]
    for prefix, actions in (("", "sampled"), ("greedy_", "most likely")):
        (share,), (mean,) = test[f"{prefix}solved"], test[f"{prefix}return"]
        error = math.sqrt(share * (1 - share) / 1024)
        spread = math.sqrt((test[f"{prefix}return_squared"][0] - mean**2) / 1024)
        row = f"{100 * share:.1f} ± {100 * error:.1f} % | {mean:.1f} ± {spread:.2f} |"
        assert f"| LSTM, {actions} actions | {row}" in text
    policies = read("box_world/smoke_policies")
    for name, title in POLICIES.items():
        means = policies[name]
        share = f"{100 * means['solved']:.1f} ± {100 * error_of(means, 'solved'):.1f} %"
        row = f"{share} | {means['return']:.1f} ± {error_of(means, 'return'):.2f} |"
        assert f"| {title} | {row}" in text
    assert f"in {kept['summary']['train_seconds']:.0f} s of one core" in text


def test_mini_pacman_is_quoted():
    text, runs = (RESULTS.parent / "mini_pacman" / "README.md").read_text(), {}
    errors = []
    for name, kept in read("mini_pacman/quick").items():
        summary = kept["summary"]
        assert (summary["frames"], summary["seeds"]) == (400 * 256 * 40, [0, 1, 2])
        cells = []
        for metric in ("return", "greedy_return"):
            values = summary["test"][metric]
            cells.append(f"{mean(values):.0f} ({', '.join(f'{value:.0f}' for value in values)})")
        runs[name] = np.asarray(summary["test"]["return"])
        squared = np.asarray(summary["test"]["return_squared"])
        errors += list(np.sqrt((squared - runs[name] ** 2) / 1024))
        minutes = min(summary["train_seconds"]) / 60
        row = (
            f"| {TITLES[name]} | {' | '.join(cells)} | {summary['parameters']:,} | {minutes:.0f} |"
        )
        assert row in text
        assert f"| random policy | {summary['random']['return']:.0f} |" in text
    said = " ".join(text.split())
    assert f"standard error of a seed is {min(errors):.1f} to {max(errors):.1f}" in said
    low, high = paired_interval(list(runs["rmc"]), list(runs["none"])) or (0, 0)
    rule = read("mini_pacman/quick_policies")["heuristic"]["return"]
    assert f"| heuristic | {rule:.0f} |" in text
    ahead, behind = runs["rmc"].mean() - rule, rule - runs["none"].mean()
    assert (
        f"the memory core is {ahead:.0f} points ahead of it, the agent without memory "
        f"{behind:.0f} behind" in said
    )
    gain = (runs["rmc"] - runs["none"]).mean()
    assert f"The memory core gains {gain:.0f} points over no memory (95 % bootstrap" in said
    assert f"paired difference {low:.0f} to {high:.0f})" in said
    ahead = runs["lstm"] - runs["rmc"]
    low, high = paired_interval(list(runs["lstm"]), list(runs["rmc"])) or (0, 0)
    assert min(ahead) > 0
    assert f"in every seed**, by {ahead.mean():.1f} points ({low:.1f} to {high:.1f})" in said
    behind = runs["rmc"] - runs["conv_lstm"]
    low, high = paired_interval(list(runs["rmc"]), list(runs["conv_lstm"])) or (0, 0)
    assert min(behind) > 0
    assert f"in every seed, by {behind.mean():.1f} points ({low:.1f} to {high:.1f})" in said
