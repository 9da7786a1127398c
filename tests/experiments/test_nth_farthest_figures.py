"""Figures of a trained run: restored as trained, measured as defined, drawn from the command."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from experiments.common.refused import RefusedError
from experiments.common.restore import read_config, restore_params
from experiments.common.run_directory import open_run
from experiments.common.steps import Programs
from experiments.nth_farthest import PRESETS, train
from experiments.nth_farthest.config import LSTMConfig, RMCConfig, TaskConfig
from experiments.nth_farthest.figures import main, make_figures
from experiments.nth_farthest.measurements import Run, measure, run_model
from experiments.nth_farthest.train import make_problem
from rrnn_jax.tasks.nth_farthest import Question

CONFIG = dataclasses.replace(
    PRESETS["small"],
    model="rmc",
    task=TaskConfig(3, 2),
    rmc=RMCConfig(mem_slots=3, num_heads=2, head_size=4),
    lstm=LSTMConfig(3),
    train=dataclasses.replace(
        PRESETS["small"].train,
        **{"steps": 2, "batch_size": 8, "micro_batch_size": None, "chunk_steps": 2},
        **{"warmup_steps": 0, "num_seeds": 2, "seed": 5, "eval_samples": 8},
    ),
)
FILES = [
    *("attention.gif", "attention.json", "attention.png", "attention_heads.png"),
    *("attention_input.png", "attention_share.png", "dynamics.png", "paths.png"),
    "similarity.png",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nth_farthest")
    train(CONFIG, directory / "rmc", progress=False)
    return directory


def test_config_is_read_back(tmp_path):
    open_run(tmp_path / "rmc", CONFIG)
    assert read_config(tmp_path / "rmc", PRESETS["paper"]) == CONFIG
    with pytest.raises(FileNotFoundError, match="no run in"):
        read_config(tmp_path, PRESETS["paper"])
    # The section of a core that is not registered now does not matter, unless it is the run's.
    config = json.loads((tmp_path / "rmc" / "config.json").read_text())
    for model in ("rmc", "gru"):
        more = {"gru": {"gru_features": 8}, "model": model}
        (tmp_path / "config.json").write_text(json.dumps(config | more))
        if model == "rmc":
            assert read_config(tmp_path, PRESETS["paper"]) == CONFIG
    with pytest.raises(ValueError, match="fields that Config lacks: gru"):
        read_config(tmp_path, PRESETS["paper"])
    for text, message in (
        ('{"rmc": {"mem_slots": 2, "colour": "red"}}', "fields that RMCConfig lacks: colour"),
        ("[]", r"config\.json must hold a config, got \[\]"),
        ('{"train": 3}', r"config\.json must hold a config, got 3"),
        ('{"train": {"steps": 0}}', r"config\.json must hold a config: steps must be at least 1"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(RefusedError, match=message):
            read_config(tmp_path, PRESETS["paper"])


@pytest.mark.slow
def test_command_writes_all_files(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.nth_farthest.figures.DPI", 50)  # Drawn in less time.
    out, weights = tmp_path / "figures", tmp_path / "weights"
    # Found below the directory of all models; another seed than the first.
    options = ["--out-dir", str(out), "--seed", "6", "--sequences", "128"]
    assert main([str(run_dir), *options, "--weights", str(weights)]) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert (out / "attention.gif").stat().st_size < 500_000
    with Image.open(out / "attention.gif") as image:
        assert image.n_frames == 3
    numbers = json.loads((out / "attention.json").read_text())
    assert (numbers["step"], numbers["seed"], numbers["sequences"]) == (2, 6, 128)
    for kind in ("memory_share", "share"):
        assert set(numbers[kind]) == {
            *("all", "seen last", "seen first", "seen middle", "head 1", "head 2")
        }
    assert set(numbers["by_lag"]) == set(numbers["input"]) == {"all", "head 1", "head 2"}
    assert f"{numbers['memory_share']['all']['after']:.1%} after" in capsys.readouterr().out
    # The written weights can replace the run.
    config = read_config(weights, PRESETS["quick"])
    given = restore_params(make_problem(config), config.train, weights, 6)
    chex.assert_trees_all_equal(
        given, restore_params(make_problem(CONFIG), CONFIG.train, run_dir / "rmc", 6)
    )
    other = dataclasses.replace(CONFIG, readout_features=7)
    with pytest.raises(ValueError, match=r"params\.npz does not hold the parameters"):
        restore_params(make_problem(other), other.train, weights, 6)


def test_what_is_not_there_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    open_run(tmp_path / "run", CONFIG)
    with pytest.raises(FileNotFoundError, match=r"no seed 9 in .*, but \[5, 6\]"):
        make_figures(tmp_path / "run", tmp_path, seed=9)
    (tmp_path / "config.json").write_text('{"model": "lstm"}')
    with pytest.raises(FileNotFoundError, match=r"no run of the memory core in .*, but of 'lstm'"):
        make_figures(tmp_path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "--sequences must be at least 1, got 0"),
        (1, "--sequences 1 is too few: question must hold a sequence that shows the reference"),
    ],
)
def test_too_few_sequences_are_refused_before_anything_is_written(
    count, message, run_dir, tmp_path, capsys
):
    out, weights = tmp_path / "figures", tmp_path / "weights"
    options = ["--out-dir", str(out), "--sequences", str(count), "--weights", str(weights)]
    assert main([str(run_dir), *options]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not out.exists()
    assert not weights.exists()


@pytest.mark.slow
def test_parameters_are_those_that_were_trained(run_dir):
    problem = make_problem(CONFIG)
    found = [restore_params(problem, CONFIG.train, run_dir / "rmc", seed)[1] for seed in (5, 6)]
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    programs = Programs(problem, CONFIG.train)
    state = programs.init()
    evaluation = programs.evaluate(state._replace(inner=state.inner._replace(params=both)))
    summary = json.loads((run_dir / "rmc" / "summary.json").read_text())
    np.testing.assert_array_equal(evaluation["loss"], summary["evaluation"]["loss"])


@pytest.mark.slow
def test_another_vector_changes_memory_from_its_step_on(run_dir):
    problem = make_problem(CONFIG)
    _, params = restore_params(problem, CONFIG.train, run_dir / "rmc", 5)
    run = run_model(CONFIG, params, seed=5, count=128)
    for other, steps in (
        (run.without_reference, run.steps),
        (run.without_other, (run.steps + 1) % 3),
    ):
        differs = (other != run.memories).any((2, 3))
        np.testing.assert_array_equal(differs, np.arange(3) >= steps[:, None])


def test_measure_by_hand():
    """Two sequences of three objects; m changes slot 0 most, attended to after m is shown."""
    to_input = np.array([[0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])  # Slot 0, slot 1.
    to_first = np.array([[0.4, 0.1, 0.5], [0.8, 0.2, 0.0]])
    # Sequence 0 sees m first, sequence 1 last.
    weights = np.stack([[to_input, to_first, to_first], [to_first, to_first, to_input]])
    question = Question(None, np.array([[2, 0, 1], [0, 1, 2]]), None, np.array([2, 2]))
    memories = np.zeros((2, 3, 2, 2))
    changed = memories + np.array([[3.0, 4.0], [0.0, 1.0]])  # 5 and 1 away.
    run = Run(
        question=question,
        is_correct=np.array([True, False]),
        weights=weights[:, :, None, None],
        memories=memories,
        initial=np.zeros((2, 2)),
        input_gate=None,
        forget_gate=None,
        without_reference=changed,
        without_other=changed / 2,
    )
    numbers = measure(run)
    assert numbers["accuracy"] == 0.5
    assert numbers["written"] == {
        "largest_share": round(5 / 6, 5),
        "even_share": 0.5,
        "same_slot_by_attention_and_gate": 1.0,
        "change_by_reference": 6.0,
        "change_by_other_object": 3.0,
    }
    # Of memory's attention. `to_input` gives it none in slot 0, and halves of slot 1's.
    share = numbers["memory_share"]
    assert share["all"]["after"] == 0.8  # Sequence 0 alone has steps after m.
    assert share["all"]["before"] == round((0.25 + (0.8 + 0.8 + 0.25) / 3) / 2, 5)
    assert share["all"]["others_after"] == round((0.8 + 0.25) / 2, 5)
    assert share["all"]["uniform"] == 0.5
    assert share["seen last"]["after"] is None
    assert share["seen middle"]["before"] is None
    assert share["head 1"] == share["all"]
    assert numbers["share"]["all"]["after"] == 0.6
    assert numbers["share"]["all"]["uniform"] == round(1 / 3, 5)
    assert numbers["more_than_others"] == 1.0
    assert numbers["by_lag"]["head 1"]["lag"] == [-2, -1, 0, 1, 2]
    shown = {"before": [0.25, 0.25, None], "shown": [0.5, None, 0.5], "after": [None, 0.25, 0.25]}
    assert numbers["input"]["head 1"] == {**shown, "uniform": 1 / 3}
