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
from experiments.nth_farthest import PRESETS, train
from experiments.nth_farthest.__main__ import main
from experiments.nth_farthest.config import Config, TaskConfig
from experiments.nth_farthest.model import make_model
from experiments.nth_farthest.train import make_problem, plot
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
    loop = r"for options in (.*); do\n(?:  for seed .*\n)?.*nth_farthest (.*) --run-dir"
    loops = re.findall(loop, text)
    assert len(loops) == 4
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
