"""The documents quote what was kept."""

import json
import math
from pathlib import Path

import numpy as np

from experiments import box_world
from experiments.common.report import paired_interval

README = Path(box_world.__file__).with_name("README.md")
RESULTS = README.parents[1] / "results"
TITLES = {
    "rmc": "Relational Memory Core",
    "lstm": "LSTM",
    "conv_lstm": "ConvLSTM",
    "none": "no memory",
}
KINDS = ("solved", "solved_L1_F0", "solved_L1_F1", "solved_L2_F0", "solved_L2_F1")


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def percents(values):
    return " | ".join(f"{100 * value:.1f} %" for value in values)


def mean(values):
    return sum(values) / len(values)


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
    rmc, lstm, conv, none = (np.asarray(runs[name]["summary"]["test"]["solved"]) for name in TITLES)
    low, high = paired_interval(list(rmc), list(lstm)) or (0, 0)
    assert f"**Memory gains {100 * (rmc.mean() - none.mean()):.0f} points**" in text
    said = " ".join(text.split())
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
    kept = read("box_world/quick")
    cells = percents(mean(kept[name]["summary"]["test"]["solved"]) for name in TITLES)
    assert f"levels solved, three seeds | {cells} |" in text
    kept = read("mini_pacman/quick")
    returns = (f"{mean(kept[name]['summary']['test']['return']):.0f}" for name in TITLES)
    assert f"mean return, three seeds | {' | '.join(returns)} |" in text
    rows = {row["model"]: row for row in read("language_model/quick_report")[:2]}
    losses = " | ".join(f"{rows[name]['mean']:.3f}" for name in ("rmc", "lstm"))
    assert f"nats, three seeds | {losses} |" in text
    kept = read("language_model/bytes")
    losses = " | ".join(f"{mean(kept[m]['summary']['test']['nats']):.3f}" for m in ("rmc", "lstm"))
    assert f"by byte, 200,000 parameters: nats, three seeds | {losses} |" in text
    kept = read("language_model/austen")
    losses = (kept[m]["summary"]["test"]["nats"] for m in ("rmc", "lstm"))
    found = " | ".join(f"{mean(np.exp(one)):.1f}" for one in losses)
    assert f"perplexity, three seeds | {found} |" in text


def test_the_skip_is_worth_what_is_said():
    without = read("box_world/no_skip")
    found = {}
    for name, kept in without.items():
        assert "skip" not in kept["config"]["agent"]  # An option that came later.
        (curve,) = kept["solved"].values()
        found[name] = round(100 * curve["value"][curve["step"].index(200)])
    said = " ".join(README.read_text().split())
    assert (
        "{rmc} % of the levels after 200 updates, where the LSTM had {lstm}".format(**found) in said
    )


def test_the_first_updates_at_the_papers_size_are_quoted():
    summary = read("box_world/paper_200")["summary"]
    said = f"{summary['frames']:,} frames with {summary['parameters']:,} parameters"
    assert said in " ".join(README.read_text().split())
    assert f"solve {100 * summary['test']['solved'][0]:.1f} % of the levels" in README.read_text()


def test_smoke_is_quoted():
    text, kept = README.read_text(), read("box_world/smoke")
    test = kept["summary"]["test"]
    for prefix, actions in (("", "sampled"), ("greedy_", "most likely")):
        (share,), (mean,) = test[f"{prefix}solved"], test[f"{prefix}return"]
        error = math.sqrt(share * (1 - share) / 1024)
        spread = math.sqrt((test[f"{prefix}return_squared"][0] - mean**2) / 1024)
        row = f"{100 * share:.1f} ± {100 * error:.1f} % | {mean:.1f} ± {spread:.2f} |"
        assert f"| LSTM, {actions} actions | {row}" in text
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
