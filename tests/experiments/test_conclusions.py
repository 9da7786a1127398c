"""The numbers of experiments/README.md are those of experiments/results."""

import copy
import json
import re
from pathlib import Path

import pytest

from experiments import conclusions
from experiments.common.report import difference

README = conclusions.README.read_text()
BLOCK = re.compile(r"<!-- begin: \w+ -->.*?<!-- end: \w+ -->", re.S)


def test_readme_holds_the_numbers_of_the_results():
    assert conclusions.main(["--check"]) == 0


def test_kept_differences_follow_from_the_scores():
    for path in (conclusions.RESULTS / "ablations").glob("*.json"):
        rows = json.loads(path.read_text())["rows"]
        for name, row in rows.items():
            found = difference(row["accuracy"], rows["base"]["accuracy"])._asdict()
            assert name == "base" or row["against_base"] == json.loads(json.dumps(found)), path


def test_no_measured_number_stands_outside_of_the_blocks():
    prose = BLOCK.sub("", README)
    assert not re.findall(r"\d[\d,.]* ?(?:%|points|min\b|h\b|s\b)", prose)


def test_files_that_are_named_exist():
    for target in set(re.findall(r"\]\(([^)#:]+)", README)):
        assert (conclusions.README.parent / target).exists(), target


def test_commands_exist():
    root = Path(__file__).parents[2]
    modules = set(re.findall(r"(?:python -m |^\| `)(experiments[\w.]+)", README, re.M))
    assert len(modules) > 5
    for module in modules:
        path = root / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Writes results of our choice in place of the committed ones."""
    monkeypatch.setattr(conclusions, "RESULTS", tmp_path)

    def write(name, content):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    return write


LAPTOP, QUICK, PROGRAMS = (
    json.loads((conclusions.RESULTS / f"{name}.json").read_text())
    for name in ("nth_farthest/laptop", "nth_farthest/small", "program_evaluation/quick")
)


ON_XEON = {"processor": "Intel(R) Xeon(R) Processor, AVX-512"}


def test_another_result_is_another_text(results):
    other = copy.deepcopy(QUICK)
    results("nth_farthest/laptop", LAPTOP)
    other["lstm"]["summary"]["test"]["accuracy"] = [0.9876]
    results("nth_farthest/small", other)
    for worst, said in ((1.0, "not clearly different from"), (0.82, "behind")):
        results("ablations/quick", grid(base=[0.9] * 5, lstm=[0.8] * 4 + [worst]))
        text = conclusions.nth_farthest()
        assert "| 98.8 % | 50.0 % |" in text
        assert f"2 seeds a row) the LSTM is {said} the RMC: 8" in text


def test_programs_stand_beside_the_papers(results):
    other = copy.deepcopy(PROGRAMS)
    sweep = other["sweeps"]["control"]["final"]
    sweep["lstm"]["summary"]["test"]["accuracy"] = [0.25] * 5
    sweep["rmc"]["summary"]["test"]["accuracy"] = [0.5] * 5
    results("program_evaluation/quick", other)
    text = conclusions.programs()
    assert "25.0 (97.4)" in text
    assert "50.0 (99.6)" in text
    assert "5 seeds at the best rate of each model and task." in text
    assert "up to 2 digits and nesting 1 (paper: 5 and 2)" in text


def grid(**accuracies):
    factors = {
        "base": ("", "base"),
        "slots_1": ("memory slots", "1"),
        "heads_1": ("heads", "1"),
        "zeros": ("initial memory", "zeros"),
        "lstm": ("model", "LSTM, 1 x 8"),
    }
    rows = {
        name: dict(zip(("factor", "value"), factors[name], strict=True))
        | {"accuracy": values, "trivial_accuracy": 0.5, "seconds": 36.0}
        for name, values in accuracies.items()
    }
    config = {
        "task": "nth_farthest",
        "nth_farthest": {"num_objects": 3, "num_features": 2},
        "train": {"steps": 1500, "num_seeds": 2},
    }
    about = {"config": config, "environment": ON_XEON, "not_run": ["mlp_4"]}
    return {"rows": rows, **about}


def test_ablations_by_hand(results, monkeypatch):
    monkeypatch.setattr(conclusions, "GRIDS", {"quick": ""})
    rows = grid(base=[0.9, 0.94], slots_1=[0.8, 0.82], heads_1=[0.91, 0.89], zeros=[0.5, 0.51])
    rows["rows"]["lstm"] = {"factor": "model", "value": "LSTM", "accuracy": [], "seconds": None}
    results("ablations/quick", rows)
    text = conclusions.ablations()
    assert "base 92.0 % (90.0 to 94.0), trivial score 50.0 %" in text
    assert "| memory slots 1: 81.0 %, -11.0 (-12.0 to -10.0) |" in text
    assert "| heads 1: 90.0 %, -2.0 (-5.0 to +1.0) |" in text
    assert "**Nth Farthest, 3 objects of 2 features, 1,500 updates, 2 seeds a row**" in text
    assert "| RMC better than LSTM (figure 4) | not run |" in text
    assert "[All rows](results/ablations/quick_findings.md)" in text


def test_a_memorization_task_is_named_as_one(results, monkeypatch):
    monkeypatch.setattr(conclusions, "GRIDS", {"quick_program": " --preset quick_program"})
    reverse = grid(base=[0.9, 0.94], slots_1=[0.8, 0.82])
    reverse["config"] |= {"task": "program_evaluation", "program": {"program_task": "reverse"}}
    results("ablations/quick_program", reverse)
    text = conclusions.ablations()
    assert "**reverse, 5 digits, 1,500 updates, 2 seeds a row**; base 92.0 %" in text
    assert "(reverse is one of the memorization tasks of program evaluation, chosen" in text
    reverse["config"]["program"] = {"program_task": "addition", "length": 2, "nesting": 1}
    results("ablations/quick_program", reverse)
    text = conclusions.ablations()
    assert "**addition, length 2, nesting 1, 1,500 updates, 2 seeds a row**; base 92.0 %" in text
    assert "memorization tasks" not in text


def test_hours_of_a_part_of_a_grid_are_not_those_of_all(results, monkeypatch):
    monkeypatch.setattr(conclusions, "GRIDS", {"quick": ""})
    results("nth_farthest/laptop", LAPTOP)
    results("nth_farthest/small", QUICK)
    results("program_evaluation/quick", PROGRAMS)
    for name, seeds in (("box_world", [0]), ("mini_pacman", [0]), ("language_model", [0, 1])):
        summary = {"wall_seconds": 240, "seeds": seeds}
        results(f"{name}/quick", {"rmc": {"summary": summary, "environment": ON_XEON}})
    part = grid(base=[0.9, 0.94], slots_1=[0.8, 0.82])
    for row in part["rows"].values():
        row["seconds"] = 3600
    results("ablations/quick", part)
    lines = conclusions.index().splitlines()
    assert any(
        "3 objects of 2 features" in line
        and "| 2.0 h of training, 2 of 3 rows | Intel Xeon |" in line
        for line in lines
    )
    assert any(
        "box_world --model all`" in line
        and "| 4 min of 1 core, all models, one seed | Intel Xeon |" in line
        for line in lines
    )
    assert any("language_model`" in line and "| 2 min of 1 core" in line for line in lines)
    results("ablations/quick", part | {"not_run": []})
    assert "| 2.0 h of training |" in conclusions.index()


def test_marks_and_blocks_must_agree():
    text = "a\n<!-- begin: one -->\nold\n<!-- end: one -->\nb"
    filled = conclusions.fill(text, {"one": "new"})
    assert filled == "a\n<!-- begin: one -->\n\nnew\n\n<!-- end: one -->\nb"
    assert conclusions.fill(filled, {"one": "new"}) == filled
    with pytest.raises(ValueError, match=r"marks for \['two'\], got \['one'\]"):
        conclusions.fill(text, {"two": "new"})


def test_check_tells_what_is_out_of_date(tmp_path, monkeypatch, capsys):
    fresh, blocks = next(iter((path.read_text(), x) for path, x in conclusions.documents().items()))
    stale = tmp_path / "README.md"
    stale.write_text(fresh.replace("begin: nth_farthest -->", "begin: nth_farthest -->\n1.0 %"))
    monkeypatch.setattr(conclusions, "documents", lambda: {stale: blocks})
    assert conclusions.main(["--check"]) == 1
    assert f"out of date: {stale}" in capsys.readouterr().out
    assert conclusions.main([]) == 0
    assert stale.read_text() == fresh
    assert conclusions.main(["--check"]) == 0
