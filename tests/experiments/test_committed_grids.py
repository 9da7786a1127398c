"""The committed ablations: enough seeds, the same numbers in all files, clean commits."""

import csv
import json
import re

import pytest

from experiments.ablations import PRESETS
from experiments.ablations.config import Config
from experiments.common.restore import config_from
from experiments.common.results import RESULTS

GRIDS = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("ablations/*.json")}
FILES = {name: RESULTS / "ablations" / name for name in GRIDS}


def text_of(name, ending):
    return FILES[name].with_name(name + ending).read_text()


def shown(row):
    """Mean and range, as the reports write them."""
    values = row["accuracy"]
    mean, low, high = 100 * (sum(values) / len(values)), 100 * min(values), 100 * max(values)
    return f"{mean:.1f}", f"({low:.1f} to {high:.1f})"


def test_grids_are_kept():
    assert set(GRIDS) == {"quick", "quick_program", "quick_program_10", "quick_addition"}


def test_figures_are_kept():
    for path in FILES.values():
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", GRIDS)
def test_enough_seeds_of_clean_commits(name):
    grid = GRIDS[name]
    seeds = grid["config"]["train"]["num_seeds"]
    assert seeds >= 3
    assert {len(row["accuracy"]) for row in grid["rows"].values()} <= {0, seeds}
    for commit in [*grid["commits"], grid["environment"]["git_commit"]]:
        assert re.fullmatch(r"[0-9a-f]{40}", commit), commit


@pytest.mark.parametrize("name", GRIDS)
def test_table_by_seed_has_the_numbers(name):
    lines = list(csv.DictReader(text_of(name, ".csv").splitlines()))
    for key, row in GRIDS[name]["rows"].items():
        mine = [line for line in lines if line["row"] == key]
        assert {(line["factor"], line["value"]) for line in mine} == {(row["factor"], row["value"])}
        rounded = [round(value, 5) for value in row["accuracy"]]
        assert [float(line["accuracy"]) for line in mine if line["seed"]] == rounded, key
    assert {line["row"] for line in lines} == set(GRIDS[name]["rows"])


@pytest.mark.parametrize("name", GRIDS)
def test_table_and_findings_have_the_numbers(name):
    rows = GRIDS[name]["rows"].values()
    table, findings = text_of(name, ".md"), text_of(name, "_findings.md")
    assert sum(line.startswith("| ") for line in table.splitlines()) == 1 + len(rows)
    for row in rows:
        start = f"| {row['factor'] or 'base'} | {row['value'] if row['factor'] else ''} | "
        if not row["accuracy"]:
            assert f"{start}NaN |" in table
            continue
        mean, span = shown(row)
        assert f"{start}{mean} {span} |" in table
        assert f"{mean}% {span}" in findings


@pytest.mark.parametrize("name", ["quick", "quick_program"])
def test_the_same_command_makes_the_same_grid(name):
    """What was run is what the preset is by now."""
    assert config_from(Config(), GRIDS[name]["config"], name) == PRESETS[name]
