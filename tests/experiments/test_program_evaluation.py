"""Program evaluation from its command line: training, samples, plots, curriculum, exit codes."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.checkpoint import Writer
from experiments.common.cli import parse
from experiments.common.problem import Mean, accuracy
from experiments.common.samples import SamplesWriter
from experiments.common.steps import Programs, to_values
from experiments.common.supervised import supervised
from experiments.common.train_config import TrainConfig
from experiments.program_evaluation import PRESETS
from experiments.program_evaluation.__main__ import default_dir, main
from experiments.program_evaluation.config import MEMORIZATION, DifficultyConfig, LSTMConfig
from experiments.program_evaluation.data import make_task
from experiments.program_evaluation.train import list_runs, make_problem, plot, train

FAST = [
    *("--task", "copy", "--model", "lstm", "--memorization-length", "2"),
    *("--lstm-features", "3", "--lstm-layers", "1", "--decoding", "autoregressive"),
    *("--steps", "6", "--batch-size", "4", "--chunk-steps", "3", "--warmup-steps", "2"),
    *("--eval-every", "3", "--eval-samples", "8", "--checkpoint-every", "3", "--no-progress"),
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("program_evaluation") / "run"
    assert main(["--run-dir", str(directory), *FAST]) == 0
    return directory


def test_leaves_a_summary_plots_and_samples(run_dir):
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["core_parameters"] == 4 * 3 * (45 + 3 + 1)
    assert summary["parameters"] > 3 * 256**2 > summary["core_parameters"]
    (accuracy,) = summary["evaluation"]["accuracy"]
    assert 0.1 <= summary["trivial_accuracy"] < 0.15
    assert summary["evaluation"]["sequence_accuracy"][0] <= accuracy <= 1
    assert sorted(p.name for p in (run_dir / "plots").iterdir()) == ["accuracy.png", "loss.png"]
    blocks = (run_dir / "samples.txt").read_text().split("== step ")[1:]
    assert [block.split()[0] for block in blocks] == ["0", "3", "6"]
    for block in blocks:
        lines = block.splitlines()[1:]
        assert len(lines) == 4
        for line in lines:
            question, _, rest = line.partition(" = ")
            target, _, answered = rest.partition(", answered ")
            answer, _, mark = answered.partition(": ")
            assert len(question) == 2
            assert question == target
            assert mark == ("right" if answer == target else "wrong")


def test_the_same_command_again_trains_nothing_and_evaluation_agrees(run_dir, capsys):
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert main(["--run-dir", str(run_dir), "--eval-only", *FAST]) == 0
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation["evaluation"] == summary["evaluation"]
    accuracy = evaluation["test"]["accuracy"][0]
    assert f"copy, LSTM: {accuracy:.1%} of characters" in capsys.readouterr().out
    assert main(["--run-dir", str(run_dir), *FAST]) == 0
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics
    assert json.loads((run_dir / "summary.json").read_text()) == summary


def test_lost_metrics_of_a_finished_run_are_an_error_in_a_line(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert main(["--run-dir", str(tmp_path / "run"), *FAST]) == 2
    assert "metrics.jsonl must hold accuracy of valid" in capsys.readouterr().err


def test_plots_can_be_rebuilt_from_metrics_alone(run_dir, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes((run_dir / "metrics.jsonl").read_bytes())
    trivial = json.loads((run_dir / "summary.json").read_text())["trivial_accuracy"]
    score = accuracy(trivial, "characters right, at full difficulty")
    plot({("copy", "lstm"): tmp_path}, tmp_path, score)
    for path in (run_dir / "plots").iterdir():
        assert (tmp_path / "plots" / path.name).read_bytes() == path.read_bytes()


def test_directories():
    config, run = parse(PRESETS, "program_evaluation", "", [], default_dir=default_dir)
    assert run.run_dir.as_posix() == "runs/program_evaluation/quick"
    runs = list_runs(config, run.run_dir)
    assert len(runs) == 24
    directory, one = runs["reverse", "dnc"]
    assert (one.task, one.model) == ("reverse", "dnc")
    arguments = ["--task=reverse", "--model=dnc"]
    alone, run = parse(PRESETS, "program_evaluation", "", arguments, default_dir=default_dir)
    assert (run.run_dir, alone) == (directory, one)


@pytest.mark.slow
def test_a_curriculum_is_part_of_the_state_and_resumes_exactly(tmp_path):
    config = dataclasses.replace(
        PRESETS["quick"],
        task="copy",
        model="lstm",
        difficulty=DifficultyConfig(memorization_length=3, curriculum="naive"),
        lstm=LSTMConfig(2, 1),
        train=TrainConfig(steps=20, batch_size=4, chunk_steps=5),
    )
    programs = Programs(make_problem(config), config.train)
    state, levels, logged = programs.init(), [], []
    checkpoints = Writer(tmp_path)
    for chunk in range(1, 5):
        state, metrics = programs.train_chunk(state, 5)
        levels.append(int(state.inner.level.length[0]))
        logged.append(to_values(metrics)["length"][0])
        if chunk == 2:
            checkpoints.save(10, state)
    # A step up with every ten losses that do not rise much.
    assert levels == [1, 2, 2, 3]
    assert logged == [1.0, 1.0, 2.0, 2.0]  # What was trained on, before the step up.
    step, resumed, _ = checkpoints.restore_latest(programs.shapes)
    checkpoints.close()
    assert (step, resumed.inner.level.count[0], resumed.inner.level.length[0]) == (10, 0, 2)
    for _ in range(2):
        resumed, _ = programs.train_chunk(jax.device_put(resumed), 5)
    jax.tree.map(np.testing.assert_array_equal, state, resumed)


def test_window_and_threshold_of_a_curriculum_are_options():
    difficulty = DifficultyConfig(
        curriculum="combined", curriculum_window=3, curriculum_threshold=-0.5
    )
    for task in ("copy", "program"):
        config = dataclasses.replace(PRESETS["quick"], task=task, difficulty=difficulty)
        task_config = make_task(config).config
        found = (task_config.curriculum_window, task_config.curriculum_threshold)
        assert found == (3, -0.5)


def test_samples_after_the_step_that_is_resumed_are_dropped(tmp_path, capsys):
    writer = SamplesWriter(tmp_path, 0)
    for step in (0, 5, 10):
        writer.write(step, f"1+1 = 2,\r\nanswered {step}\n")
    assert capsys.readouterr().out.startswith("== step 0 ==\n1+1 = 2,\r\nanswered 0\n== step 5")
    resumed = SamplesWriter(tmp_path, 5)
    resumed.write(10, "new")
    kept = b"== step 0 ==\n1+1 = 2,\r\nanswered 0\n== step 5 ==\n1+1 = 2,\r\nanswered 5\n"
    assert (tmp_path / "samples.txt").read_bytes() == kept + b"== step 10 ==\nnew\n"


def test_evaluation_may_have_a_loss_of_its_own():
    def loss(params, batch):
        return params * jnp.mean(batch), {"accuracy": Mean.of(jnp.zeros(1))}

    config = TrainConfig(steps=1, batch_size=2, num_seeds=2)
    problem = supervised(
        config,
        init=lambda key: jnp.float32(2.0),
        sample=lambda key, level, rows: jnp.ones(rows),
        loss=loss,
        sample_eval=lambda key, rows: jnp.ones(rows),
        score=accuracy(0.0),
        eval_loss=lambda params, batch: (params + 5, {"accuracy": Mean.of(jnp.ones(1))}),
        show=lambda params: f"{params.ndim} {float(params)}",
    )
    programs = Programs(problem, config)
    state = programs.init()
    evaluation = programs.evaluate(state)
    np.testing.assert_array_equal(evaluation["loss"], [7.0, 7.0])
    np.testing.assert_array_equal(evaluation["accuracy"], [1.0, 1.0])
    assert programs.show(state) == "0 2.0"


@pytest.mark.slow
@pytest.mark.parametrize("task", MEMORIZATION)
def test_quick_preset_teaches_the_rmc_to_memorize(tmp_path, task):
    config = dataclasses.replace(PRESETS["quick"], task=task, model="rmc")
    summary = train(config, tmp_path, progress=False)
    assert summary[task]["rmc"]["evaluation"]["accuracy"][0] >= 0.99
