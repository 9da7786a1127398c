"""The benchmark of the environments: its rows and its options."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import struct

from benchmarks import environments
from rrnn_jax.envs import BoxWorld


@pytest.mark.slow
def test_rows(tmp_path, capsys, monkeypatch):
    env = BoxWorld(grid_size=5, solution_length=(1,), num_distractors=(0,), max_steps=9)
    monkeypatch.setattr(
        environments,
        "environment_programs",
        lambda envs: {"small": environments._program(env, envs, 40)},
    )
    out = tmp_path / "rows.jsonl"
    arguments = ["--envs", "2", "--rounds", "2", "--min-seconds", "0.001", "--out", str(out)]
    assert environments.main(arguments) == 0
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (row["program"], row["environments"], row["seconds"]["n"]) == ("small", 2, 2)
    steps = 2 * environments.STEPS
    assert row["steps_per_second"] == pytest.approx(steps / row["seconds"]["median"])
    assert "small, 2 at once" in capsys.readouterr().out


def test_each_call_takes_the_state_of_the_last_one(monkeypatch):
    seen, copies, state = [], [], jnp.arange(1000)
    monkeypatch.setattr(jnp, "copy", lambda x: copies.append(x + 0) or copies[-1])

    def update(state, key, other):
        jax.debug.callback(lambda first: seen.append(int(first)), state[0])
        return state + 1, {"sum": (state * other).sum(), "bits": jax.random.bits(key)}

    run = environments._in_turn(update, state, state)
    for _ in range(3):
        run()
    jax.effects_barrier()
    assert seen == [0, 1, 2]
    assert copies[0].is_deleted()  # Its memory is reused, that of the given state is not.
    assert not state.is_deleted()


@struct.dataclass
class Params:
    levels: Any = None


class Counter:
    """An environment that counts steps; `drawn` are the sizes of its pools."""

    default_params, num_actions = Params(), 2

    def __init__(self):
        self.drawn = []

    def draw_levels(self, key, count, params=None):
        self.drawn.append(count)
        return jnp.zeros(count)

    def reset(self, key, params):
        return jnp.float32(0), jnp.int32(0)

    def step(self, key, state, action, params):
        return params.levels[0], state + 1, jnp.float32(action), False, {}


def test_all_levels_of_a_large_batch_are_drawn(monkeypatch):
    monkeypatch.setattr(environments, "POOL", 4)
    env = Counter()
    program = environments._program(env, envs=2, fresh=6)
    assert env.drawn == [6, 6]
    program.run()


def test_bad_options(capsys):
    for options, message in (
        (["--envs", "0"], "argument --envs: must be at least 1, got 0"),
        (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (
            ["--min-seconds", "nan"],
            "argument --min-seconds: must be finite and at least 0, got nan",
        ),
        (["--envs", "2", "--training"], "--envs must be left out with --training"),
    ):
        with pytest.raises(SystemExit):
            environments.main(options)
        assert message in capsys.readouterr().err
