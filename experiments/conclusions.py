"""Writes numbers of the READMEs: ``python -m experiments.conclusions``.

A block between two marks, ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``, is made from the
files in ``experiments/results``; in ``experiments/README.md`` all scores are in such blocks.
``--check`` writes nothing; its exit code is 1 if a README is out of date.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablations.config import Config
from experiments.ablations.problems import describe_task
from experiments.common import markdown
from experiments.common.records import write_text
from experiments.common.report import Difference, difference, points, spread
from experiments.common.restore import config_from
from experiments.common.results import RESULTS, fastest
from experiments.program_evaluation import table
from experiments.program_evaluation.config import MEMORIZATION
from experiments.program_evaluation.config import PRESETS as PROGRAMS
from rrnn_jax.visualize import InputShare

README = Path(__file__).with_name("README.md")
GRIDS = {
    "quick": "",
    "quick_program": " --preset quick_program",
    "quick_program_10": " --preset quick_program --num-seeds 10 --only base slots_1 slots_8 "
    "heads_1 blocks_2 gates_unit gates_none output_gate no_qkv_norm initial_zeros lstm "
    "--run-dir runs/ablations/quick_program_10",
}
"""The options of each ablation's command."""


def read(name: str) -> Any:
    """Reads a file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def documents() -> dict[Path, dict[str, str]]:
    """The blocks of each document by name, in Markdown."""
    kept = read(table.NAME)
    of_all = {
        "index": index(),
        "nth_farthest": nth_farthest(),
        "programs": programs(),
        "attention": attention(),
        "ablations": ablations(),
    }
    scores, verdicts = table.scores(kept), table.verdicts(kept)
    return {
        README: of_all,
        README.parent / "program_evaluation/README.md": {"scores": scores, "verdicts": verdicts},
        README.parents[1] / "README.md": {"scores": scores},
    }


def fill(text: str, content: dict[str, str]) -> str:
    """Inserts blocks between their marks.

    Raises:
      ValueError: the marks in the text are not those of the blocks.
    """
    pattern = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end: \2 -->)", re.S)
    found = [name for _, name, _ in pattern.findall(text)]
    if sorted(found) != sorted(content):
        raise ValueError(f"text must have marks for {sorted(content)}, got {sorted(found)}")
    return pattern.sub(lambda m: f"{m[1]}\n{content[m[2]].strip()}\n\n{m[3]}", text)


def index() -> str:
    """The experiments: command, what it reproduces, time, results."""
    quick, programs = read("nth_farthest/small"), read(table.NAME)
    minutes = sum(run["summary"]["wall_seconds"] for run in quick.values()) / 60
    finals = [run for sweep in programs["sweeps"].values() for run in sweep["final"].values()]
    hours = sum(run["summary"]["wall_seconds"] for run in finals) / 3600
    rows = []
    for command, what, name in (
        ("nth_farthest --preset laptop",
         "[Nth Farthest](nth_farthest/README.md), the paper's task: RMC and LSTM (4.1, A.1)",
         "nth_farthest/laptop"),
        ("box_world --model all", "[BoxWorld](box_world/README.md), small (4.3, A.3)",
         "box_world/quick"),
        ("mini_pacman --model all", "[Mini-Pacman](mini_pacman/README.md), small (4.3)",
         "mini_pacman/quick"),
        ("language_model", "[text](language_model/README.md), by character (4.4)",
         "language_model/quick"),
    ):  # fmt: skip
        spent = [fastest(run["summary"], "wall_seconds") for run in read(name).values()]
        time = f"{sum(spent) / 60:.0f} min of 1 core, all models, one seed"
        where = _processors(read(name).values())
        rows.append(
            (f"experiments.{command}", what, time, where, f"[numbers](results/{name}.json)")
        )
    rows += [
        (
            "experiments.nth_farthest --preset small",
            "[Nth Farthest](nth_farthest/README.md), small: RMC and LSTM (4.1, A.1)",
            f"{minutes:.0f} min",
            _processors(quick.values()),
            "[numbers](results/nth_farthest/small.json)",
        ),
        (
            "experiments.nth_farthest.figures runs/nth_farthest/small",
            "figure 3: attention and memory of the run above",
            "half a minute",
            "",
            "[numbers](results/nth_farthest/figures/attention.json), "
            "[figures](results/nth_farthest/figures)",
        ),
        (
            "experiments.sweep program_evaluation ...",
            "[table 1](program_evaluation/README.md#commands), small: 4 models, 6 tasks (4.2, A.2)",
            f"{hours:.0f} h of 1 core while other jobs ran, without the search",
            _processors(finals),
            f"[numbers](results/{table.NAME}.json)",
        ),
    ]
    for name, option in GRIDS.items():
        grid = read(f"ablations/{name}")
        task = describe_task(_config(name, grid))
        what = f"[ablations](ablations/README.md) on {task}: "
        what += "ten rows with ten seeds" if name.endswith("_10") else "slots, heads, gates"
        what += "" if option else " (figure 4)"
        kept = f"[numbers](results/ablations/{name}.json)"
        where = _processors([grid])
        rows.append((f"experiments.ablations{option}", what, _hours(grid), where, kept))
    rows.append(("experiments.tour", "the [guided tour](tour.ipynb)", "minutes", "", ""))
    lines = ([f"`{command}`", *cells] for command, *cells in rows)
    return markdown.table(["`python -m`", "what", "time", "on", "results"], lines)


def _processors(records: Iterable[Mapping[str, Any]]) -> str:
    """The processors of runs, without their vector instructions."""
    environments = [record["environment"] for record in records]
    names = [x for e in environments for x in e.get("processors", [e["processor"]])]
    short = (re.sub(r"\(R\)|Processor|,.*", "", name) for name in names)
    return " and ".join(dict.fromkeys(" ".join(name.split()) for name in short))


def nth_farthest() -> str:
    """The memory core and the LSTM on the paper's task and a small one."""
    rows, said = [], []
    for preset in ("laptop", "small"):
        kept = read(f"nth_farthest/{preset}")
        found = {name: kept[name] for name in ("rmc", "lstm")}
        task, train = (found["rmc"]["config"][name] for name in ("task", "train"))
        scores = {name: _mean(_fresh(run["summary"])) for name, run in found.items()}
        trivial = 2 / task["num_objects"]
        sizes = " and ".join(f"{run['summary']['parameters']:,}" for run in found.values())
        counts = {name: len(run["summary"]["seeds"]) for name, run in found.items()}
        minutes = " and ".join(
            f"{fastest(run['summary'], 'train_seconds') / 60:.0f}" for run in found.values()
        )
        seeds = " and ".join(_seeds(count) for count in dict.fromkeys(counts.values()))
        rows.append(
            f"| `--preset {preset}` | {task['num_objects']}, {task['num_features']} | "
            f"{train['steps']:,} | {_percent(scores['rmc'])} | {_percent(scores['lstm'])} | "
            f"{_percent(trivial)} |"
        )
        said.append(
            f"`--preset {preset}`: {sizes} parameters, {minutes} minutes of training "
            f"(the fastest seed), {seeds} ([numbers](results/nth_farthest/{preset}.json))"
        )
    return f"""\
| | objects, features | updates | RMC | LSTM | trivial score |
|---|---|---|---|---|---|
| paper | 8, 16 | not stated | 91 % | below 30 % | 25 % |
{chr(10).join(rows)}

`python -m experiments.nth_farthest`, RMC and LSTM in this order. \
{". ".join(said)}.{_elsewhere()}"""


def _fresh(summary: dict[str, Any]) -> list[float]:
    """Accuracy by seed on the test stream, or on the only stream of older runs."""
    return summary.get("test", summary["evaluation"])["accuracy"]


def _elsewhere() -> str:
    """The same two models on the task of the ablations, with several seeds."""
    grid = read("ablations/quick")
    base, lstm = grid["rows"]["base"], grid["rows"]["lstm"]
    said = {"better": "ahead of", "worse": "behind", "not told apart": "not clearly different from"}
    return (
        f" On the ablations' task ({_task(_config('quick', grid))}) the LSTM is "
        f"{said[_against(lstm, base).verdict]} the RMC: {_spread(lstm)} against {_spread(base)} "
        "([numbers](results/ablations/quick.json))."
    )


def programs() -> str:
    """Table 1 beside the paper's, and on which tasks the models differ from the LSTM."""
    kept, quick = read(table.NAME), PROGRAMS["quick"]
    finals = [record for sweep in kept["sweeps"].values() for record in sweep["final"].values()]
    (seeds,) = {len(record["summary"]["seeds"]) for record in finals}
    difficulty = quick.difficulty
    return f"""\
{table.scores(kept, paper=True)}

In parentheses: the paper's Table 1. {_seeds(seeds).capitalize()} at the best rate of each model \
and task. Literals of up to {difficulty.length} digits and nesting {difficulty.nesting} (paper: 5 \
and 2), numbers of up to {difficulty.memorization_length} digits, {quick.train.steps:,} updates \
(paper: 200,000; \
[numbers](results/{table.NAME}.json), [commands](program_evaluation/README.md#commands)).

{table.verdicts(kept)}"""


def attention() -> str:
    """Figure 3 in numbers."""
    numbers = read("nth_farthest/figures/attention")
    written, memory, inputs = (numbers[name] for name in ("written", "memory_share", "input"))
    heads = [name for name in memory if name.startswith("head")]
    to_memory, to_input = [], []
    for name in ("all", *heads):
        label = "mean of heads" if name == "all" else name
        shares = [memory[name][key] for key in ("before", "after", "others_after", "uniform")]
        to_memory.append([label, *map(_percent, shares)])
    for name in heads:
        by_step = (np.array(inputs[name][k], float) for k in ("before", "shown", "after"))
        share = InputShare(*by_step, uniform=inputs[name]["uniform"])
        to_input.append([name, *map(_percent, (*share.in_common(), share.uniform))])
    of_memory = "share of the attention to memory: slot that m changes most"
    of_all = "share of all attention: input, mean over the steps with all three cases"
    tables = (
        markdown.table([of_memory, "before m is seen", "after", "same slot, other sequences, after",
                        "evenly spread"], to_memory),
        markdown.table([of_all, "m comes later", "m is shown", "m was seen before",
                        "evenly spread"], to_input),
    )  # fmt: skip
    ratio = written["change_by_reference"] / written["change_by_other_object"]
    return (
        "\n\n".join(tables)
        + f"""

Over {numbers["sequences"]:,} fresh sequences, {_percent(numbers["accuracy"])} of them answered \
right. m is spread over the slots: the slot that it changes most has \
{_percent(written["largest_share"])} of the change (evenly spread: \
{_percent(written["even_share"])}; in one slot: 100 %). Replacing m changes the last memory \
{ratio:.1f} times as much as replacing another object \
([numbers](results/nth_farthest/figures/attention.json), \
`python -m experiments.nth_farthest.figures runs/nth_farthest/small`)."""
    )


def ablations() -> str:
    """Slots, heads, gates and the other factors of the ablations."""
    return "\n\n".join(_grid(name) for name in GRIDS)


def _grid(name: str) -> str:
    grid = read(f"ablations/{name}")
    config = _config(name, grid)
    rows = {key: row for key, row in grid["rows"].items() if row["accuracy"]}
    base = rows["base"]
    claims = {
        "memory slots": "8 or 16 slots better than 1 (figure 4)",
        "heads": "with 1 slot, 8 or 16 heads better than 1; with more slots, the best runs have 1 "
        "(read from figure 4)",
        "gates": "per unit and per slot both reach about 90 % (read from figure 4)",
        "model": "RMC better than LSTM (figure 4)",
    }
    lines = [
        f"**{_task(config)}**; base {_spread(base)}, trivial score "
        f"{_percent(base['trivial_accuracy'])}{_why(config)}:",
        "",
        "| paper, on Nth Farthest | here: accuracy, difference from the base in points "
        "(95 % interval) |",
        "|---|---|",
    ]
    for factor, claim in claims.items():
        cells = [_effect(row, base) for row in rows.values() if row["factor"] == factor]
        lines.append(f"| {claim} | {'; '.join(cells) or 'not run'} |")
    return "\n".join(lines) + (
        f"\n\n[All rows](results/ablations/{name}_findings.md), "
        f"[numbers](results/ablations/{name}.json), "
        f"`python -m experiments.ablations{GRIDS[name]}`."
    )


def _config(name: str, grid: dict[str, Any]) -> Config:
    """The config of a grid."""
    return config_from(Config(), grid["config"], f"ablations/{name}.json")


def _hours(grid: dict[str, Any]) -> str:
    """The time of a grid's rows together, and the number of finished ones."""
    seconds = sum(row["seconds"] or 0 for row in grid["rows"].values())
    done, missing = len(grid["rows"]), len(grid["not_run"])
    hours = f"{seconds / 3600:.1f} h of training"
    return f"{hours}, {done} of {done + missing} rows" if missing else hours


def _task(config: Config) -> str:
    train = config.train
    return f"{describe_task(config)}, {train.steps:,} updates, {_seeds(train.num_seeds)} a row"


def _why(config: Config) -> str:
    """An explanation of the task, if its name needs one."""
    task = config.program.program_task
    if config.task == "nth_farthest" or task not in MEMORIZATION:
        return ""
    return (
        f" ({task} is one of the memorization tasks of program evaluation, chosen because its rows "
        "differ after few updates, unlike on addition)"
    )


def _against(row: dict[str, Any], base: dict[str, Any]) -> Difference:
    return difference(row["accuracy"], base["accuracy"])


def _effect(row: dict[str, Any], base: dict[str, Any]) -> str:
    """A row's accuracy, its difference from the base, and the verdict if there is one."""
    found = _against(row, base)
    said = "" if found.verdict == "not told apart" else f", {found.verdict}"
    return f"{_label(row)}: {_percent(_mean(row['accuracy']))}, {points(found)}{said}"


def _label(row: dict[str, Any]) -> str:
    if row["factor"] == "":
        return "base"
    return row["value"] if row["factor"] == "model" else f"{row['factor']} {row['value']}"


def _spread(row: dict[str, Any]) -> str:
    return spread(row["accuracy"], " %")


def _points(share: float) -> float:
    """Percent, rounded as it is written."""
    return round(100 * share, 1)


def _percent(share: float) -> str:
    return f"{_points(share):.1f} %"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.conclusions",
        description="Writes numbers of the READMEs from experiments/results.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    given = parser.parse_args(args)
    filled = {path: fill(path.read_text(), blocks) for path, blocks in documents().items()}
    stale = [path for path, text in filled.items() if text != path.read_text()]
    for path in stale:
        print(f"out of date: {path}" if given.check else f"wrote {path}")
        if not given.check:
            write_text(path, filled[path])
    return int(bool(given.check and stale))


if __name__ == "__main__":
    sys.exit(main())
