"""A training cut off by its deadline and taken up again elsewhere is the uninterrupted one."""

import functools
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import files, keep, search, training
from benchmarks.accelerator.candidates import CANDIDATES, change, make_config, parse_change
from benchmarks.accelerator.deadline import Deadline
from experiments.common import loop
from experiments.common.checkpoint import Checkpoints
from experiments.common.metrics import read_metrics
from experiments.common.problem import Mean, Problem
from experiments.common.run_directory import ConfigMismatchError
from experiments.common.steps import make_programs

STEPS = [
    *("train.steps=12", "train.chunk_steps=2", "train.eval_every=4", "train.checkpoint_every=6"),
    "train.learning_rate=0.05",
]
TOY = ["--toy", "--no-progress", "--reserve-seconds", "0", "--num-seeds", "2"]


@functools.cache
def line(config):
    """Is a number positive? Two parameters; they compile in no time."""
    del config

    def sample(key, level, batch_size):
        return jax.random.normal(key, (batch_size,))

    def loss(params, x):
        logits = params["w"] * x + params["b"]
        labels = (x > 0).astype(jnp.float32)
        right = (logits > 0.5) == (labels > 0.5)
        return jnp.mean(jnp.square(logits - labels)), {"accuracy": Mean.of(right)}

    return Problem(
        init=lambda key: {"w": jax.random.normal(key, ()), "b": jnp.zeros(())},
        sample=sample,
        loss=loss,
        sample_eval=lambda key, batch_size: sample(key, (), batch_size),
        trivial_accuracy=0.5,
    )


cached_programs = functools.cache(make_programs)


@pytest.fixture(autouse=True)
def small_problem(monkeypatch, request):
    if "real_problem" not in request.fixturenames:
        monkeypatch.setattr(training, "make_problem", lambda config: line(None))
        monkeypatch.setattr(loop, "make_programs", cached_programs)


@pytest.fixture
def real_problem():
    """Asked for by tests of the models themselves."""


def ticking(monkeypatch, ticks):
    """Deadlines of this many looks at the clock."""

    class Ticking(Deadline):
        def __init__(self, seconds, clock=None):
            counter = itertools.count()
            super().__init__(ticks, lambda: float(next(counter)))

        def share(self, parts):
            return self

    monkeypatch.setattr(command, "Deadline", Ticking)


def run(*arguments, parts=("train_rmc",), options=STEPS):
    options = ["--set", *options] if options else []
    return command.main(["--parts", *parts, *TOY, *map(str, arguments), *options])


def read_run(out, place, name="train_rmc"):
    """Metrics, state and config of a run that was left."""
    run_dir = place / "unpacked"
    shutil.rmtree(run_dir, ignore_errors=True)
    assert files.unpack(out, name, run_dir)
    config = training.config_there(out, name)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    like = jax.eval_shape(cached_programs(line(None), config.train).init)
    restored = checkpoints.restore_latest(like)
    checkpoints.close()
    return read_metrics(run_dir), restored, config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_problem", lambda config: line(None))
        patch.setattr(loop, "make_programs", cached_programs)
        assert run("--out", out, "--target", "1.1") == 0
    return out


def test_what_a_training_leaves(whole):
    assert sorted(path.name for path in whole.iterdir()) == [
        "train_rmc.json",
        "train_rmc.tar.00-of-01",
    ]
    result = json.loads((whole / "train_rmc.json").read_text())
    summary = result["summary"]
    assert (summary["steps"], summary["ended_by"], summary["seeds"]) == (12, "steps", [0, 1])
    assert [entry["step"] for entry in result["evaluations"]] == [0, 4, 8, 12]
    seconds = [entry["wall_seconds"] for entry in result["evaluations"]]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0 < seconds[1]
    for seed, entry in enumerate(summary["reached"]["50%"]):
        curve = result["accuracy"][str(seed)]
        assert curve["value"][curve["step"].index(entry["step"])] >= 0.5
    assert summary["reached"]["97%"] == [None, None] or any(summary["reached"]["97%"])
    assert result["calls"][0]["to_step"] == 12
    assert "--out" not in result["environment"]["command"]


@pytest.mark.parametrize("ticks", [4, 7])
def test_cut_off_by_time_it_goes_on_bit_exactly(tmp_path, whole, monkeypatch, ticks):
    first, second = tmp_path / "first", tmp_path / "second"
    with monkeypatch.context() as patch:
        ticking(patch, ticks)
        assert run("--out", first, "--target", "1.1") == 0
    result = json.loads((first / "train_rmc.json").read_text())
    assert result["summary"]["ended_by"] == "time"
    assert 0 < result["summary"]["steps"] < 12
    for path in first.iterdir():
        path.chmod(0o444)
    first.chmod(0o555)
    assert run("--out", second, "--resume-from", first, "--target", "1.1", options=()) == 0
    first.chmod(0o755)
    found, wanted = (read_run(out, tmp_path) for out in (second, whole))
    assert found[0] == wanted[0]
    assert found[2] == wanted[2]
    assert found[1][0] == wanted[1][0] == 12
    jax.tree.map(np.testing.assert_array_equal, found[1][1], wanted[1][1])
    result = json.loads((second / "train_rmc.json").read_text())
    assert [call["to_step"] for call in result["calls"]][1:] == [12]


def test_ends_at_the_target_of_every_seed(tmp_path, capsys):
    assert run("--out", tmp_path, "--target", "0.01") == 0
    result = json.loads((tmp_path / "train_rmc.json").read_text())
    assert result["summary"]["ended_by"] == "target"
    assert result["summary"]["steps"] == 2
    assert "ended by target" in capsys.readouterr().out

    stop = training.Stop(Deadline(1e9), target=0.9, reserve=0.0)
    assert not stop(1, {"accuracy": np.array([0.95, 0.89])})
    assert stop(2, {"accuracy": np.array([0.95, 0.9])})
    assert stop.reason == "target"


def test_a_chunk_that_would_not_end_in_time_is_not_started():
    now = iter([0.0, 10.0, 30.0, 45.0])
    stop = training.Stop(Deadline(70.0, lambda: next(now)), target=None, reserve=6.0)
    accuracy = {"accuracy": np.zeros(1)}
    # Chunks of 20 and 15 seconds; 40 and then 25 are left, of which 6 are kept.
    assert [stop(step, accuracy) for step in range(3)] == [False, False, True]
    assert stop.reason == "time"


def test_seconds_count_from_the_first_chunk():
    now = [0.0]
    stop = training.Stop(Deadline(100.0, lambda: now[0]), None, reserve=5.0, seconds=20.0)
    ended = []
    for now[0] in (40.0, 50.0, 51.0):  # Compiled for 40 seconds; a chunk takes 10.
        ended.append(stop(1, {"accuracy": np.zeros(1)}))
    assert ended == [False, False, True]


def test_other_options_than_those_of_the_run_are_refused(tmp_path, whole, capsys):
    out = tmp_path / "out"
    other = ["train.learning_rate=0.1"]
    assert run("--out", out, "--resume-from", whole, options=other) == 2
    assert "train.learning_rate: 0.05 there, 0.1 asked" in capsys.readouterr().err
    assert run("--out", out, "--resume-from", whole, options=other) == 2
    assert "holds results already" in capsys.readouterr().err
    assert run("--out", out, "--resume-from", tmp_path / "none") == 2
    assert "there is no directory" in capsys.readouterr().err
    with pytest.raises(ConfigMismatchError, match="num_seeds: 2 there, 3 asked"):
        training.check_same(out, *(make_seeds(n) for n in (2, 3)))


def make_seeds(number):
    return change(make_config("rmc", "fast"), [("train.num_seeds", number)])


def test_schedule_follows_from_the_rate(monkeypatch):
    config = make_config("rmc", "fast")
    train = training.scheduled(config, 15.0, steps_per_second=100.0).train
    assert (train.schedule, train.steps) == ("cosine", 90_000)
    endless = training.scheduled(config, None, None).train
    assert (endless.schedule, endless.warmup_steps) == ("constant", 500)
    monkeypatch.setattr(training, "measure_rate", lambda config: 2.0)
    assert training.scheduled(config, 10.0, None).train.steps == 1200
    slow = training.scheduled(config, 0.01, None).train
    assert slow.steps == slow.warmup_steps == 500


def test_rate_is_measured():
    config = change(make_config("rmc", "paper"), [("train.batch_size", 8)])
    small = change(config, [("train.chunk_steps", 2)])
    assert training.measure_rate(small, chunks=1) > 1


def test_checkpoints_at_the_papers_sizes_can_be_brought_back(real_problem, capsys, tmp_path):
    sizes = {}
    for model in ("rmc", "lstm"):
        config = change(make_config(model, "paper"), [("train.num_seeds", 1)])
        sizes[model] = training.training_state_bytes(config)
        assert sizes[model] < 18 * 10**6  # Parameters and Adam's two moments, in float32.
        assert files.PIECE_BYTES < 16 * 10**6
        files.check_fits({model: 3 * sizes[model]}, other_files=1)
    assert sizes["rmc"] < 16 * 10**6
    with pytest.raises(files.TooLargeError, match="Ask for fewer seeds"):
        files.check_fits({name: 3 * size for name, size in sizes.items()}, other_files=2)
    parts = ["--parts", "train_rmc", "--num-seeds", "9"]
    assert command.main([*parts, "--out", str(tmp_path)]) == 2
    assert "one call may leave 8 files of 60 MiB" in capsys.readouterr().err


def test_archives(tmp_path, monkeypatch):
    run_dir, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    for name in ("checkpoints/8/state", "checkpoints/10/state", "tensorboard/x", "config.json"):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_bytes(bytes(30_000))
    monkeypatch.setattr(files, "PIECE_BYTES", 20_000)
    names = [path.name for path in files.pack(run_dir, out, "a")]
    assert names == [f"a.tar.{i:02d}-of-{len(names):02d}" for i in range(len(names))]
    assert len(names) > 3
    assert files.unpack(out, "a", tmp_path / "back")
    found = sorted(p.relative_to(tmp_path / "back").as_posix()
                   for p in (tmp_path / "back").rglob("*") if p.is_file())  # fmt: skip
    assert found == ["checkpoints/10/state", "config.json"]
    assert not files.unpack(out, "b", tmp_path / "none")
    # Fewer pieces than before: none of the old ones stays.
    shutil.rmtree(run_dir / "checkpoints")
    shorter = files.pack(run_dir, out, "a")
    assert files.pieces(out, "a") == shorter
    assert len(shorter) < len(names)
    shorter[1].unlink()
    with pytest.raises(ValueError, match=r"must hold a.tar.00-of-\d\d, .*, got a.tar.00-of-\d\d"):
        files.unpack(out, "a", tmp_path / "again")
    for path in files.pieces(out, "a"):
        path.unlink()
    (out / "a.tar.00-of-01").write_bytes(b"no archive" * 100)
    with pytest.raises(ValueError, match="are not a whole archive"):
        files.unpack(out, "a", tmp_path / "again")


def test_search_goes_on_and_makes_a_table(tmp_path, capsys, monkeypatch):
    arguments = ["--candidates", "fast", "paper", "--seconds-each", "100"]
    with monkeypatch.context() as patch:
        ticking(patch, 105)
        assert run("--out", tmp_path, *arguments, parts=["search"]) == 0
    assert "paper: no time left" in capsys.readouterr().out
    assert run("--out", tmp_path, *arguments, parts=["search"]) == 0
    rows = search.read_search(tmp_path)
    assert [row["candidate"] for row in rows] == ["fast", "paper"]
    assert rows[0]["summary"]["steps"] == 12
    table = capsys.readouterr().out
    assert "| Candidate | Updates / s | 25 s | 50 s | 75 s | 100 s | Loss | 50 % |" in table
    before = (tmp_path / search.FILE).read_text()
    assert run("--out", tmp_path, *arguments, parts=["search"]) == 0
    assert (tmp_path / search.FILE).read_text() == before
    assert "paper: done before" in capsys.readouterr().out
    # Another configuration is another candidate, and NaN is a result.
    bad = [*STEPS[:-1], "train.learning_rate=1e38"]
    assert run("--out", tmp_path, *arguments[:2], parts=["search"], options=bad) == 0
    assert "became" in search.read_search(tmp_path)[0]["error"]


def test_accuracy_at():
    row = {
        "evaluations": [{"seconds": 1.0}, {"seconds": 5.0}],
        "accuracy": {"0": {"value": [0.2, 0.6]}, "1": {"value": [0.4, 0.8]}},
    }
    found = [search.accuracy_at(row, seconds) for seconds in (0.5, 1.0, 4.9, 9.0)]
    assert found == [None, *map(pytest.approx, (0.3, 0.3, 0.7))]


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates(name):
    config = make_config("rmc", name)
    assert (config.task.num_objects, config.task.num_features) == (8, 16)
    assert config.rmc.num_heads * config.rmc.head_size == 256
    assert 1600 <= config.train.batch_size <= 12800
    assert training.paced(config).train.chunk_steps >= 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("train.batch=3", "there is no option 'train.batch'"),
        ("train=3", "there is no option 'train'"),
        ("train.batch_size=many", "train.batch_size must be of type int, got 'many'"),
        ("rmc.mem_slots=0", "mem_slots must be at least 1"),
    ],
)
def test_bad_options(given, message):
    with pytest.raises(ValueError, match=message):
        change(make_config("rmc", "paper"), [parse_change(given)])


def test_results_are_kept(tmp_path, whole, capsys):
    (tmp_path / "left").mkdir()
    row = {"device": "NVIDIA Abacus", "seconds_per_call": 1.0}
    (tmp_path / "left" / "profile.jsonl").write_text(json.dumps(row) + "\n")
    places = ["--benchmarks", str(tmp_path / "b"), "--experiments", str(tmp_path / "e")]
    arguments = [str(whole), str(tmp_path / "left"), *places]
    assert keep.main(arguments) == 0
    assert keep.main(arguments) == 0  # Nothing comes twice.
    kept = (tmp_path / "b" / "nvidia_abacus" / "profile.jsonl").read_text()
    assert json.loads(kept) == row
    result = json.loads((tmp_path / "e" / "accelerator_rmc.json").read_text())
    assert result["summary"]["steps"] == 12
    assert (tmp_path / "e" / "accelerator.png").stat().st_size > 1000
    assert "wrote" in capsys.readouterr().out
    assert keep.main([str(tmp_path), *places]) == 2
