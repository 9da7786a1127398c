"""The training loop: resume, interruption, damage, NaN, and the files of a run."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import loop, steps
from experiments.common.checkpoint import Writer
from experiments.common.metrics import read_metrics
from experiments.common.problem import Mean, Problem, accuracy
from experiments.common.records import read_json, read_rows
from experiments.common.run_directory import ConfigMismatchError, RunExistsError, open_run
from experiments.common.steps import Programs, to_values
from experiments.common.supervised import Curriculum, supervised
from experiments.common.train_config import TrainConfig
from tests.experiments import toys
from tests.experiments.toys import Whole

ROOT = Path(__file__).parents[2]

CONFIG = dataclasses.replace(toys.CONFIG, num_seeds=2)


def regression(config: TrainConfig = CONFIG, poison: int | None = None) -> Problem:
    """Is a number positive? Two parameters; `poison` makes the loss NaN from that level on."""

    def sample(key, level, batch_size):
        x = jax.random.normal(key, (batch_size,))
        return {"x": x, "level": jnp.full((batch_size,), level)}

    def loss(params, batch):
        logits = params["w"] * batch["x"] + params["b"]
        labels = (batch["x"] > 0).astype(jnp.float32)
        losses = jnp.mean(jnp.square(logits - labels))
        if poison is not None:
            losses = jnp.where(batch["level"][0] >= poison, jnp.nan, losses)
        return losses, {"accuracy": Mean.of((logits > 0.5) == (labels > 0.5))}

    return supervised(
        config,
        init=lambda key: {"w": jax.random.normal(key, ()), "b": jnp.zeros(())},
        sample=sample,
        loss=loss,
        sample_eval=lambda key, batch_size: sample(key, jnp.int32(-1), batch_size),
        score=accuracy(0.5),
        curriculum=Curriculum(jnp.int32(0), lambda level, metrics: level + 1),
    )


def run(directory: Path, config: TrainConfig = CONFIG, problem: Problem | None = None):
    return toys.run(directory, problem or regression(config), config)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)


def assert_same(directory: Path, outcome: loop.Outcome, uninterrupted) -> None:
    other, expected = uninterrupted
    assert (directory / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert outcome.metrics == expected.metrics
    jax.tree.map(np.testing.assert_array_equal, outcome.state, expected.state)


def test_learns_and_writes_what_a_run_leaves(uninterrupted):
    directory, outcome = uninterrupted
    assert min(outcome.metrics["accuracy"]) > 0.8
    assert outcome.state.step == 40
    np.testing.assert_array_equal(outcome.state.inner.level, [40, 40])
    rows = read_metrics(directory)
    train = [(row["step"], row["seed"]) for row in rows if row["split"] == "train"]
    assert train == [(step, seed) for step in range(5, 41, 5) for seed in (0, 1)]
    evaluated = [row["step"] for row in rows if row["split"] == "valid" and row["seed"] == 1]
    assert evaluated == [0, 10, 20, 30, 40]
    assert set(rows[2]) == {"step", "split", "seed", "loss", "accuracy", "gradient_norm"}
    (session,) = read_rows(directory / "sessions.jsonl")
    assert read_json(directory / "environment.json") == session["environment"]
    assert session["step"] == 0
    assert session["environment"]["packages"]["jax"] == jax.__version__
    assert list((directory / "tensorboard").iterdir())
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["20", "30", "40"]


def test_stopped_between_checkpoints_it_resumes_bit_exactly(tmp_path, uninterrupted, monkeypatch):
    check = loop._check_finite

    def fail_late(metrics, config, step, saved):
        if step == 25:
            raise RuntimeError("power cut")
        check(metrics, config, step, saved)

    monkeypatch.setattr(loop, "_check_finite", fail_late)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path)
    monkeypatch.setattr(loop, "_check_finite", check)
    # A row of the lost chunk and half a row are on the disk as well.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "split": "train", "seed": 0, "loss": 1.0}\n{"step": 25, "sp')
    assert_same(tmp_path, run(tmp_path), uninterrupted)


@pytest.mark.slow
def test_a_shorter_last_chunk(tmp_path):
    """Twelve steps in chunks of 5, 5 and 2 are those in chunks of 4."""
    config = dataclasses.replace(CONFIG, steps=12, eval_every=12, checkpoint_every=12)
    first, second = (
        run(tmp_path / str(n), dataclasses.replace(config, chunk_steps=n)).state for n in (5, 4)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_times_are_without_compilation_and_on_the_disk_before_a_checkpoint(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, steps=12, eval_every=12, checkpoint_every=5)
    calls, compile_it = [], steps._Program.compile

    def slow(self, *args):
        time.sleep(0 if args[-1] in self._compiled else 0.5)
        compile_it(self, *args)

    monkeypatch.setattr(steps._Program, "compile", slow)
    sync, save = loop._Clock.flush, Writer.save
    monkeypatch.setattr(loop._Clock, "flush", lambda self: calls.append("sync") or sync(self))
    monkeypatch.setattr(Writer, "save", lambda *args: calls.append("save") or save(*args))
    assert run(tmp_path, config).seconds < 0.5
    assert calls[:4] == ["sync", "save"] * 2


def test_times_that_are_read_back_are_those_that_were_told(tmp_path):
    clock = loop._Clock(tmp_path / "timings.jsonl", 0, time.perf_counter())
    for step in range(1, 4):
        clock.add(step, 1, 0.12349)
    clock.close()
    again = loop._Clock(tmp_path / "timings.jsonl", 3, time.perf_counter())
    again.close()
    assert (again.seconds, again.wall_seconds) == (clock.seconds, clock.wall_seconds)
    assert clock.seconds == pytest.approx(0.37, abs=2e-3)


# A process that is killed in the middle of a chunk, with no more warning than by a power cut.
KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.common import loop
from tests.experiments.test_training import run

check = loop._check_finite

def kill(metrics, config, step, saved):
    if step == 25:
        os.kill(os.getpid(), signal.SIGKILL)
    check(metrics, config, step, saved)

loop._check_finite = kill
run(Path(sys.argv[1]))
"""


def test_killed_process_resumes_bit_exactly(tmp_path, uninterrupted):
    run_dir = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(run_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 0 < read_metrics(run_dir)[-1]["step"] < 25
    assert_same(run_dir, run(run_dir), uninterrupted)


def test_one_signal_saves_and_stops(tmp_path, uninterrupted, monkeypatch):
    check = loop._check_finite

    def press(metrics, config, step, saved):
        if step == 15:
            signal.raise_signal(signal.SIGINT)
        check(metrics, config, step, saved)

    monkeypatch.setattr(loop, "_check_finite", press)
    with pytest.raises(loop.Interrupted, match="stopped at step 15"):
        run(tmp_path)
    assert (tmp_path / "checkpoints" / "15").exists()
    monkeypatch.setattr(loop, "_check_finite", check)
    assert_same(tmp_path, run(tmp_path), uninterrupted)


@pytest.mark.slow
def test_a_signal_when_a_run_is_done_keeps_the_next_from_beginning(
    tmp_path, uninterrupted, monkeypatch
):
    check = loop._check_finite

    def press(metrics, config, step, saved):
        if step == CONFIG.steps:
            signal.raise_signal(signal.SIGTERM)
        check(metrics, config, step, saved)

    monkeypatch.setattr(loop, "_check_finite", press)
    assert_same(tmp_path / "first", run(tmp_path / "first"), uninterrupted)
    with pytest.raises(loop.Interrupted, match=r"stopped before .*; run the same command"):
        run(tmp_path / "second")
    assert not (tmp_path / "second" / "metrics.jsonl").exists()
    monkeypatch.setattr(loop, "_check_finite", check)
    assert_same(tmp_path / "second", run(tmp_path / "second"), uninterrupted)


def test_damaged_checkpoints_are_skipped_with_a_message(tmp_path, uninterrupted, capsys):
    run(tmp_path, dataclasses.replace(CONFIG, steps=40))
    newest = tmp_path / "checkpoints" / "40"
    for file in newest.rglob("*"):  # Half-written.
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    capsys.readouterr()
    outcome = run(tmp_path)
    printed = capsys.readouterr().out
    assert "Checkpoint of step 40 is damaged and is skipped" in printed
    assert "resumes at step 30" in printed
    assert_same(tmp_path, outcome, uninterrupted)


def test_silent_damage_is_found_by_the_digest(tmp_path, capsys):
    checkpoints = Writer(tmp_path / "c")
    state = {"w": np.arange(4, dtype=np.float32)}
    checkpoints.save(1, state)
    checkpoints.save(2, {"w": state["w"] + 1})
    digest = next((tmp_path / "c" / "2").rglob("metadata*"), None)
    files = [f for f in (tmp_path / "c" / "2" / "digest").iterdir() if f.is_file()]
    assert digest is None or files
    for file in files:
        file.write_text(file.read_text().replace('"sha256": "', '"sha256": "0'))
    step, restored, _ = checkpoints.restore_latest(state) or (None, None, None)
    checkpoints.close()
    assert "step 2 is damaged and is skipped: the digest does not match" in capsys.readouterr().out
    assert step == 1
    np.testing.assert_array_equal(restored["w"], state["w"])


def test_only_damaged_checkpoints_is_an_error(tmp_path):
    checkpoints = Writer(tmp_path / "c")
    checkpoints.save(1, {"w": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"none of the checkpoints \(steps \[1\]\)"):
        checkpoints.restore_latest({"w": np.zeros(4, np.float32)})
    checkpoints.close()


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(loop.NonFiniteError, match=r"became nan \(seed 0\).*step 25"):
        run(tmp_path, problem=regression(CONFIG, poison=22))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "20"]
    assert max(row["step"] for row in read_metrics(tmp_path)) == 20


def test_nan_in_an_evaluation_stops_too(tmp_path):
    config = dataclasses.replace(CONFIG, steps=10, checkpoint_every=5)
    problem = regression(config)
    step = problem.evaluations["valid"].step

    def lost(state, carry, key, batch):
        carry, metrics = step(state, carry, key, batch)
        accuracy = metrics["accuracy"]
        total = jnp.where(state.level >= 10, jnp.nan, accuracy.total)
        return carry, {**metrics, "accuracy": accuracy._replace(total=total)}

    evaluations = {"valid": dataclasses.replace(problem.evaluations["valid"], step=lost)}
    problem = dataclasses.replace(problem, evaluations=evaluations)
    with pytest.raises(loop.NonFiniteError, match=r"accuracy became nan .* evaluation at step 10;"):
        run(tmp_path, config, problem)
    assert (tmp_path / "failure.json").exists()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["5"]


def test_another_config_is_refused_with_its_fields(tmp_path):
    open_run(tmp_path / "r", Whole(CONFIG))
    other = Whole(dataclasses.replace(CONFIG, learning_rate=0.1), note="b")
    with pytest.raises(ConfigMismatchError) as caught:
        open_run(tmp_path / "r", other)
    message = str(caught.value)
    assert "train.learning_rate: 0.05 there, 0.1 asked" in message
    assert "note: 'a' there, 'b' asked" in message
    assert "batch_size" not in message


def test_resume_flags(tmp_path):
    with pytest.raises(RunExistsError, match=r"there is no run in .*without --resume"):
        open_run(tmp_path / "r", Whole(CONFIG), resume=True)
    open_run(tmp_path / "r", Whole(CONFIG), resume=False)
    open_run(tmp_path / "r", Whole(CONFIG), resume=True)
    with pytest.raises(RunExistsError, match="holds a run already"):
        open_run(tmp_path / "r", Whole(CONFIG), resume=False)


def test_seeds_side_by_side_equal_seeds_alone(uninterrupted):
    _, together = uninterrupted
    alone = dataclasses.replace(CONFIG, seed=1, num_seeds=1)
    programs = Programs(regression(alone), alone)
    state = programs.init()
    for _ in range(8):
        state, _ = programs.train_chunk(state, 5)
    second = jax.tree.map(lambda a: a[1:], together.state.params)
    chex.assert_trees_all_close(state.params, second, rtol=1e-5)


def test_micro_batches_give_the_same_update():
    whole = dataclasses.replace(CONFIG, num_seeds=1)
    results = []
    for config in (whole, dataclasses.replace(whole, micro_batch_size=2)):
        programs = Programs(regression(config), config)
        state, metrics = programs.train_chunk(programs.init(), 5)
        results.append((state, to_values(metrics)))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)


def test_mean_pools_by_count():
    values = jnp.array([1.0, jnp.nan, 3.0])
    weighted = Mean.of(values, jnp.array([True, False, True]))
    assert weighted.value() == 2.0
    assert (weighted + Mean.of(jnp.array([8.0]))).value() == 4.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"optimizer": "sgd"}, "optimizer must be one of 'adam', .*; got 'sgd'"),
        ({"schedule": "step"}, "schedule must be one of 'constant', .*; got 'step'"),
        ({"micro_batch_size": 3}, "micro_batch_size must divide batch_size=128, got 3"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"warmup_steps": 2000}, "warmup_steps must lie between 0 and steps=1000, got 2000"),
        ({"clip_norm": -1.0}, "clip_norm must be positive, got -1.0"),
        ({"clip_norm": float("nan")}, "clip_norm must be positive, got nan"),
        ({"epsilon": -1.0}, "epsilon must be finite and not negative, got -1.0"),
        ({"target": float("nan")}, "target must be a number, got nan"),
        ({"seed": -1}, "seed must be a non-negative int32, got -1"),
    ],
)
def test_bad_train_config(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


TINY = [
    *("--model", "rmc", "--steps", "300", "--batch-size", "8", "--micro-batch-size", "None"),
    *("--mem-slots", "2", "--num-heads", "1", "--head-size", "4", "--chunk-steps", "5"),
    *("--eval-every", "50", "--eval-samples", "8", "--checkpoint-every", "25"),
    *("--warmup-steps", "5", "--no-progress"),
]


def command(run_dir: Path, *more: str) -> list[str]:
    where = ["--preset", "small", "--run-dir", str(run_dir)]
    return [sys.executable, "-m", "experiments.nth_farthest", *where, *TINY, *more]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_command_resumes_bit_exactly(tmp_path, number, killed_reference):
    run_dir = tmp_path / "killed"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(run_dir), cwd=ROOT, stdout=log, stderr=log)
        shown = (tmp_path / "log").read_text
        toys.wait_for(run_dir / "checkpoints" / "50", 240, process, log=shown)
        os.kill(process.pid, number)
        code = process.wait(timeout=120)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    before = read_metrics(run_dir)[-1]["step"]
    assert 50 <= before < 300
    subprocess.run(command(run_dir, "--resume"), cwd=ROOT, check=True, capture_output=True)
    for name in ("metrics.jsonl", "config.json"):
        assert (run_dir / name).read_bytes() == (killed_reference / name).read_bytes()
    assert digest(run_dir) == digest(killed_reference)


def digest(run_dir: Path) -> str:
    """Of the final parameters and optimiser, as the checkpoint states and verifies it."""
    return next((run_dir / "checkpoints" / "300" / "digest").iterdir()).read_text()


@pytest.fixture(scope="module")
def killed_reference(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    subprocess.run(command(run_dir), cwd=ROOT, check=True, capture_output=True)
    return run_dir
