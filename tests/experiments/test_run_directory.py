"""Run directories: two writers, readers, full disks, lost and incomplete files."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments.common import cells, checkpoint, loop, run_directory
from experiments.common import runs as runs_module
from experiments.common.actor_critic.learner import LearnerConfig
from experiments.common.metrics import read_metrics
from experiments.common.records import read_rows
from experiments.common.refused import RefusedError
from experiments.common.run_directory import (
    ConfigMismatchError,
    RunBusyError,
    RunExistsError,
    check_run,
    hold,
    is_finished,
    open_run,
    write_evaluation,
)
from experiments.common.train_config import TrainConfig
from tests.experiments.test_training import CONFIG, ROOT, command, regression, run
from tests.experiments.toys import Whole

QUICK = dataclasses.replace(CONFIG, steps=10, checkpoint_every=5, eval_every=5)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A config with a core and a learner, as experiments have."""

    train: TrainConfig
    lstm: cells.LSTMConfig
    model: str
    learner: LearnerConfig = dataclasses.field(default_factory=LearnerConfig)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    run(directory, QUICK)
    return directory


def files(directory: Path) -> dict[str, bytes]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_looking_at_a_run_changes_nothing_in_it(finished):
    half_written = finished / "checkpoints" / "15.orbax-checkpoint-tmp"
    half_written.mkdir()
    (half_written / "data").write_text("of the trainer")
    before = files(finished)
    with hold(finished):  # As its trainer does.
        step, values = loop.evaluate_run(regression(), QUICK, finished)
    assert step == 10
    assert values == loop.train(regression(), QUICK, finished, progress=False).metrics
    assert "checkpoints/15.orbax-checkpoint-tmp/data" in before
    del before["lock"]
    assert not (half_written / "data").exists()  # The trainer has cleaned up.


def test_a_reader_writes_nothing_beside_a_damaged_checkpoint(finished, tmp_path):
    subprocess.run(["cp", "-r", finished, tmp_path / "run"], check=True)
    directory = tmp_path / "run"
    for file in (directory / "checkpoints" / "10").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    before = files(directory)
    assert loop.evaluate_run(regression(), QUICK, directory)[0] == 5
    assert files(directory) == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        loop.evaluate_run(regression(), QUICK, tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        checkpoint.read_latest(tmp_path / "absent" / "checkpoints", None)
    assert not (tmp_path / "absent").exists()


def test_two_processes_in_one_directory(tmp_path):
    with hold(tmp_path):
        with pytest.raises(RunBusyError) as caught:
            run(tmp_path, QUICK)
        message = str(caught.value)
        assert f"{tmp_path} is in use by process {os.getpid()} on " in message
        assert time.strftime("since %Y-%m-%d ", time.gmtime()) in message
        with pytest.raises(RunBusyError):
            loop.train(regression(), QUICK, tmp_path, progress=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]
    run(tmp_path, QUICK)


def test_a_killed_holder_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from experiments.common.run_directory import hold\n"
        "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path, ROOT], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunBusyError, match=f"process {process.pid} on"), hold(tmp_path):
        pass
    process.kill()
    process.communicate()
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("at", [5, 10])
def test_stopped_before_the_first_checkpoint(tmp_path, finished, monkeypatch, at):
    save = loop._Session._save

    def cut(self, *args):
        if self.step == at:
            raise RuntimeError("power cut")
        return save(self, *args)

    config = dataclasses.replace(QUICK, checkpoint_every=10)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Session, "_save", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path, config)
    assert max(row["step"] for row in read_metrics(tmp_path)) == at
    assert not list((tmp_path / "checkpoints").iterdir())
    run(tmp_path, config)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert [row["step"] for row in read_rows(tmp_path / "timings.jsonl")] == [5, 10]
    assert [row["step"] for row in read_rows(tmp_path / "sessions.jsonl")] == [0, 0]


@pytest.mark.slow
def test_lost_metrics_are_noticed_and_do_not_cost_the_run(tmp_path, capsys):
    run(tmp_path, QUICK)
    more = dataclasses.replace(QUICK, steps=15)
    rows = read_metrics(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]))
    (tmp_path / "summary.json").write_text("{}")
    run(tmp_path, more)
    assert not (tmp_path / "summary.json").exists()  # Of 10 steps: the program writes a new one.
    message = f"metrics.jsonl holds 3 of the {len(rows)} rows that belong to step 10"
    assert message in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").unlink()
    run(tmp_path, dataclasses.replace(QUICK, steps=20))
    assert "metrics.jsonl holds 0 of the" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sessions.jsonl", "timings.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize("content", [b"", b'{"step": 0, "en', b"\0\0\0\0"])
def test_torn_files_do_not_keep_a_run_from_going_on(finished, tmp_path, name, content):
    subprocess.run(["cp", "-r", finished, tmp_path / "run"], check=True)
    (tmp_path / "run" / name).write_bytes(content)
    outcome = run(tmp_path / "run", QUICK)
    assert outcome.state.step == 10


@pytest.mark.parametrize("content", ["", '{"train": {"st', "\0\0", "[]"])
def test_a_damaged_config_is_refused_in_a_line(tmp_path, content):
    open_run(tmp_path, Whole(QUICK))
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RefusedError, match=r"config\.json is (empty or )?damaged"):
        open_run(tmp_path, Whole(QUICK))


def test_checkpoints_without_a_config_are_refused(finished, tmp_path):
    subprocess.run(["cp", "-r", finished, tmp_path / "run"], check=True)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(RunExistsError, match=r"has checkpoints, but no config\.json"):
        open_run(tmp_path / "run", Whole(QUICK))


def test_what_changes_nothing_learned_may_change(tmp_path):
    open_run(tmp_path, Whole(QUICK))
    changes = {"eval_every": 10, "checkpoint_every": 20, "minutes": 1.0}
    changes |= {"eval_samples": 24}
    changed = dataclasses.replace(QUICK, devices=1, **changes)
    open_run(tmp_path, Whole(changed))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["eval_every"] == 10
    wrong = {"batch_size": 16, "micro_batch_size": 4, "learning_rate": 1.0, "seed": 3, "steps": 5}
    for more in ({name: value} for name, value in wrong.items()):
        with pytest.raises(ConfigMismatchError, match=f"train.{next(iter(more))}: "):
            open_run(tmp_path, Whole(dataclasses.replace(changed, **more)))


def test_of_two_configs_that_come_at_once_one_is_refused(tmp_path, monkeypatch):
    def late():
        monkeypatch.undo()
        open_run(tmp_path, Whole(dataclasses.replace(QUICK, learning_rate=1.0)))

    monkeypatch.setattr(run_directory, "find_device", late)
    with pytest.raises(ConfigMismatchError, match=r"learning_rate: 1.0 there, 0.05 asked"):
        open_run(tmp_path, Whole(QUICK))


def train_each(runs):
    runs = {name: (directory, Whole(config)) for name, (directory, config) in runs.items()}
    problems = {name: regression(whole.train) for name, (_, whole) in runs.items()}
    runs_module.train_each(runs, problems, lambda *_: {}, lambda *_: None, progress=False)


def test_runs_are_refused_together_and_go_on_one_by_one(tmp_path):
    runs = [tmp_path / name for name in "ab"]
    constant = dataclasses.replace(QUICK, schedule="constant")
    train_each({path.name: (path, constant) for path in runs})
    more, before = dataclasses.replace(constant, steps=20), files(runs[0])
    wrong = dataclasses.replace(more, learning_rate=1.0)
    with pytest.raises(ConfigMismatchError, match="/b holds a run with another config"):
        train_each({"a": (runs[0], more), "b": (runs[1], wrong)})
    assert files(runs[0]) == before
    with pytest.raises(loop.Interrupted):
        train_each({path.name: (path, dataclasses.replace(more, minutes=1e-9)) for path in runs})
    assert is_finished(runs[1], Whole(constant))  # Its turn did not come.
    open_run(runs[1], Whole(more))
    assert not is_finished(runs[1], Whole(more))


@pytest.mark.slow
def test_minutes_are_those_of_all_runs(tmp_path, monkeypatch):
    ends, train, config = [], loop.train, dataclasses.replace(QUICK, minutes=10.0)
    monkeypatch.setattr(loop, "train", lambda *rest: ends.append(rest[-1]) or train(*rest))
    train_each({name: (tmp_path / name, config) for name in "ab"})
    assert ends[0] == ends[1] == pytest.approx(time.perf_counter() + 600, abs=60)


def test_a_finished_run_is_evaluated_on_the_samples_asked_for(tmp_path):
    before = run(tmp_path, QUICK)
    assert run(tmp_path, QUICK).metrics == before.metrics
    more = dataclasses.replace(QUICK, eval_samples=64)
    outcome = run(tmp_path, more)
    assert outcome.metrics != before.metrics
    assert outcome.metrics == loop.evaluate_run(regression(more), more, tmp_path)[1]


@pytest.mark.slow
def test_more_steps_at_a_constant_rate(finished, tmp_path):
    more = dataclasses.replace(QUICK, steps=20)
    whole = run(tmp_path / "whole", more)
    run(tmp_path / "run", QUICK)
    outcome = run(tmp_path / "run", more)
    assert outcome.metrics == whole.metrics
    falls = dataclasses.replace(QUICK, schedule="cosine")
    open_run(tmp_path / "cosine", Whole(falls))
    with pytest.raises(ConfigMismatchError, match=r"train\.steps: 10 there, 20 asked"):
        open_run(tmp_path / "cosine", Whole(dataclasses.replace(falls, steps=20)))


def test_more_steps_only_if_nothing_depends_on_their_number(tmp_path):
    """The schedule that counts is the model's own; other fields are about the whole run, too."""
    steady = dataclasses.replace(QUICK, schedule="constant", warmup_steps=0)
    falls = dataclasses.replace(steady, schedule="cosine")
    core = cells.LSTMConfig()
    cosine, constant = (
        dataclasses.replace(core, lstm_schedule=name) for name in ("cosine", "constant")
    )

    def grows(name, train, core=core, model="lstm", learner=None):
        config = Trained(train, core, model, learner or LearnerConfig())
        open_run(tmp_path / name, config)
        more = dataclasses.replace(config, train=dataclasses.replace(train, steps=20))
        with contextlib.suppress(ConfigMismatchError):
            open_run(tmp_path / name, more)
            return True
        return False

    assert grows("plain", steady)
    assert not grows("own", steady, cosine)
    assert grows("own constant", falls, constant)
    assert grows("of another", steady, cosine, model="rmc")
    assert not grows("share", steady, learner=LearnerConfig(easy_share=0.25))
    assert not grows("entropy", steady, learner=LearnerConfig(final_entropy_cost=0.1))


def test_settings_of_other_models_do_not_matter(tmp_path):
    open_run(tmp_path, Trained(QUICK, cells.LSTMConfig(8), "rmc"))
    open_run(tmp_path, Trained(QUICK, cells.LSTMConfig(9), "rmc"))
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"gru": {"gru_features": 8}}))
    open_run(tmp_path, Trained(QUICK, cells.LSTMConfig(9), "rmc"))
    own = tmp_path / "own"
    open_run(own, Trained(QUICK, cells.LSTMConfig(8), "lstm"))
    with pytest.raises(ConfigMismatchError, match=r"lstm\.lstm_features: 8 there, 9 asked"):
        open_run(own, Trained(QUICK, cells.LSTMConfig(9), "lstm"))


def test_settings_of_a_core_without_a_schedule_do_not_matter_either(tmp_path):
    """One of the user's own; and a row of a grid has its own schedule in a section of a section."""
    make = {"make": lambda self, dtype: None}
    width = ("width", int, 3)
    plain = dataclasses.make_dataclass("Plain", [width], bases=(cells.Core,), namespace=make)
    fields = [("train", TrainConfig), ("plain", plain), ("model", str)]
    made = dataclasses.make_dataclass("Made", fields)
    open_run(tmp_path / "own", made(QUICK, plain(3), "rmc"))
    open_run(tmp_path / "own", made(QUICK, plain(4), "rmc"))
    with pytest.raises(ConfigMismatchError, match=r"plain\.width: 3 there, 4 asked"):
        check_run(tmp_path / "own", made(QUICK, plain(4), "plain"))
    row = dataclasses.make_dataclass("Row", [("config", made), ("model", str)])
    cosine = Trained(QUICK, cells.LSTMConfig(lstm_schedule="cosine"), "lstm")
    more = dataclasses.replace(cosine, train=dataclasses.replace(QUICK, steps=20))
    open_run(tmp_path / "row", row(cosine, "lstm"))
    with pytest.raises(ConfigMismatchError, match=r"config\.train\.steps: 10 there, 20 asked"):
        check_run(tmp_path / "row", row(more, "lstm"))


def test_a_field_that_came_later_had_its_default(tmp_path):
    open_run(tmp_path, Whole(QUICK))
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["note"], content["train"]["clip_norm"], content["train"]["schedule"]
    path.write_text(json.dumps(content))
    open_run(tmp_path, Whole(QUICK))
    with pytest.raises(ConfigMismatchError, match="note: 'a' there, 'b' asked"):
        open_run(tmp_path, Whole(QUICK, note="b"))
    with pytest.raises(ConfigMismatchError, match=r"train\.clip_norm: None there, 1\.0 asked"):
        open_run(tmp_path, Whole(dataclasses.replace(QUICK, clip_norm=1.0)))


def test_a_damaged_best_checkpoint_is_removed(finished, tmp_path, capsys):
    subprocess.run(["cp", "-r", finished, tmp_path / "run"], check=True)
    (best,) = (tmp_path / "run" / "best").iterdir()
    for file in (best / "digest").iterdir():
        file.write_text("")
    outcome = run(tmp_path / "run", dataclasses.replace(QUICK, steps=15))
    assert outcome.state.step == 15
    assert f"{best} is damaged and is removed" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == ["15"]


@pytest.mark.slow
def test_a_target_is_for_the_evaluations_of_the_run(tmp_path):
    """A run that was stopped between two of them does not end where it was stopped."""
    sparse = dataclasses.replace(QUICK, eval_every=10)
    with pytest.raises(loop.Interrupted, match="stopped at step 5"):
        run(tmp_path, dataclasses.replace(sparse, minutes=1e-9))
    ended = dataclasses.replace(sparse, target=0.0)
    assert run(tmp_path, ended).state.step == 10
    # It stays ended, on whatever samples it is evaluated.
    assert run(tmp_path, dataclasses.replace(ended, eval_samples=32)).state.step == 10


@pytest.mark.slow
def test_nan_in_the_first_chunk_says_so_and_does_not_repeat(tmp_path, monkeypatch):
    with pytest.raises(loop.NonFiniteError, match=r"step 5; there is no checkpoint yet\."):
        run(tmp_path, QUICK, regression(poison=0))
    with pytest.raises(run_directory.RunFailedError, match=r"ended so: loss became nan .* remove"):
        run(tmp_path, QUICK, regression(poison=0))
    (tmp_path / "failure.json").unlink()
    run(tmp_path, QUICK)


def test_no_device_is_refused(tmp_path, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu'\nand more")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(RefusedError, match=r"^JAX finds no device: Unable to .* 'tpu'$"):
        open_run(tmp_path / "run", Whole(QUICK))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_no_device_ends_a_command_in_a_line(tmp_path):
    done = subprocess.run(
        command(tmp_path / "run"),
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "tpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: JAX finds no device: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_what_was_computed_is_told_where_it_cannot_be_written(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_directory, "write_json", fail)
    write_evaluation(tmp_path, {"accuracy": 1.0})
    assert "evaluation.json is not written: Permission denied" in capsys.readouterr().out
