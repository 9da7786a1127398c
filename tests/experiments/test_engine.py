"""Streams, files, optimisers and scores of the training engine."""

import dataclasses
import functools
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.common import loop
from experiments.common.metrics import curve, read_metrics
from experiments.common.modules import Linear
from experiments.common.optimizers import averaged, decaying, make_optimizer, make_schedule
from experiments.common.problem import Evaluation, Mean, Problem, Score
from experiments.common.steps import Programs, to_values
from experiments.common.streaming import Windows
from experiments.common.supervised import supervised
from experiments.common.train_config import TrainConfig
from tests.experiments.toys import CONFIG, regression, run, stream, write_tokens
from tests.grids import mostly_slow


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens.npy")


def test_windows_hold_every_target_once():
    tokens = np.arange(23)
    for rows, length in ((1, 4), (3, 5), (4, 2), (2, 30), (15, 1), (22, 3)):
        windows = Windows(tokens, rows, length)
        epoch = windows(0, windows.num_steps)
        assert sorted(epoch.targets[epoch.mask]) == list(range(1, 23))
        np.testing.assert_array_equal(epoch.targets[epoch.mask], epoch.inputs[epoch.mask] + 1)
        np.testing.assert_array_equal(epoch.starts[1:], False)
        assert epoch.starts[0].all()
        again = windows(windows.num_steps + 1, 2)
        first = windows(1, 2) if windows.num_steps > 2 else again
        jax.tree.map(np.testing.assert_array_equal, again, first)
    with pytest.raises(ValueError, match="tokens must be more than one for each of 3 rows, got 3"):
        Windows(np.arange(3), 3, 2)


def test_a_stream_learns_with_its_carry_and_its_rows_are_those_of_one_pass(tokens, tmp_path):
    config = dataclasses.replace(CONFIG, num_seeds=2, micro_batch_size=4)
    outcome = run(tmp_path, stream(config, tokens), config)
    assert max(outcome.metrics["nats"]) < 1.3 < np.log(7)
    assert set(outcome.test) == {"loss", "nats"}
    np.testing.assert_allclose(outcome.test["loss"], outcome.test["nats"], rtol=1e-6)
    assert outcome.state.inner.carry.shape == (2, 8, 6)
    whole = dataclasses.replace(config, micro_batch_size=None)
    programs = Programs(stream(whole, tokens), whole)
    state = programs.init()
    for _ in range(8):
        state, _ = programs.train_chunk(state, 5)
    found, wanted = ((s.params, s.inner.carry) for s in (state, outcome.state))
    chex.assert_trees_all_close(found, wanted, rtol=2e-3, atol=2e-5)


def test_the_carry_of_an_evaluation_passes_from_window_to_window(tokens, monkeypatch):
    """In pieces or in one, the same; and another number without a carry."""
    programs = Programs(stream(CONFIG, tokens), CONFIG)
    state = programs.init()
    state, _ = programs.train_chunk(state, 20)
    whole = programs.evaluate(state)
    monkeypatch.setattr("experiments.common.steps._PIECE", 7)
    assert programs.evaluate(state)["nats"] == pytest.approx(whole["nats"], rel=1e-6)
    cold = dataclasses.replace(
        programs.problem.evaluations["valid"],
        step=lambda state, carry, key, batch: programs.problem.evaluations["valid"].step(
            state, carry, key, batch._replace(starts=jnp.ones_like(batch.starts))
        ),
    )
    problem = dataclasses.replace(programs.problem, evaluations={"valid": cold})
    other = Programs(problem, CONFIG).evaluate(state)["nats"]
    assert abs(other[0] - whole["nats"][0]) > 1e-4


@pytest.mark.parametrize("points", mostly_slow([1, 10], keep=[1]))
def test_a_stream_killed_anywhere_goes_on_bit_exactly(points, tokens, tmp_path, monkeypatch):
    """At random points; what is read again is what was lost with the chunks since the save."""
    config = dataclasses.replace(CONFIG, checkpoint_every=15)
    whole = run(tmp_path / "whole", stream(config, tokens), config)
    generator = np.random.default_rng(1)
    to_chunk = loop.to_values
    for kill in generator.permutation(np.arange(1, 41))[:points]:
        directory, left, reads = tmp_path / str(kill), [int(kill)], []

        def fail(metrics, left=left):
            left[0] -= 5
            if left[0] <= 0:
                raise RuntimeError("power cut")
            return to_chunk(metrics)

        monkeypatch.setattr(loop, "to_values", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            run(directory, stream(config, tokens, reads), config)
        monkeypatch.setattr(loop, "to_values", to_chunk)
        # Only the chunk in work and the one that is ready for it have been read.
        assert reads == list(range(min(40, 5 * (-(-int(kill) // 5) + 1))))
        saved = max([0, *(int(p.name) for p in (directory / "checkpoints").iterdir())])
        reads.clear()
        outcome = run(directory, stream(config, tokens, reads), config)
        assert reads == list(range(saved, 40))
        jax.tree.map(np.testing.assert_array_equal, outcome.state, whole.state)
        metrics = [(d / "metrics.jsonl").read_bytes() for d in (directory, tmp_path / "whole")]
        assert metrics[0] == metrics[1]
        shutil.rmtree(directory)


class Episodes:
    """Returns of episodes that end every 20 updates: not defined in most chunks."""

    def __init__(self, lost: bool = False) -> None:
        self.lost = lost

    def problem(self) -> Problem:
        @jax.tree_util.register_dataclass
        @dataclasses.dataclass
        class State:
            params: jax.Array
            clock: jax.Array

        def update(state, key, batch):
            ends = state.clock % 20 == 19
            metrics = {
                "return": Mean.of(state.clock[None], ends[None]),
                "loss": Mean.of(jnp.ones(1), jnp.asarray([not self.lost])),
            }
            return State(state.params, state.clock + 1), metrics

        def step(state, carry, key, batch):
            return carry, {"return": Mean.of(state.clock)}

        return Problem(
            init=lambda key: State(jnp.zeros(()), jnp.zeros(())),
            update=update,
            evaluations={"valid": Evaluation(step, 1)},
            score=Score("return"),
        )


def test_a_metric_that_is_not_defined_is_left_out(tmp_path):
    run(tmp_path / "a", Episodes().problem())
    rows = [row for row in read_metrics(tmp_path / "a") if row["split"] == "train"]
    assert [row.get("return") for row in rows] == [None, None, None, 19, None, None, None, 39]
    assert "return" not in rows[0]
    with pytest.raises(loop.NonFiniteError, match=r"loss became None \(seed 0\)"):
        run(tmp_path / "b", Episodes(lost=True).problem())


def test_ends_at_the_target_and_keeps_the_best_checkpoint(tokens, tmp_path):
    config = dataclasses.replace(CONFIG, steps=200, target=1.5)
    outcome = run(tmp_path, stream(config, tokens), config)
    steps, nats = curve(read_metrics(tmp_path), "valid", "nats")[0]
    assert nats[-1] <= 1.5 < min(nats[:-1])
    assert outcome.state.step == steps[-1] < 200
    best = steps[1:][int(np.argmin(nats[1:]))]
    assert [p.name for p in (tmp_path / "best").iterdir()] == [str(best)]
    # Asked again it is done.
    again = run(tmp_path, stream(config, tokens), config)
    assert (again.metrics, again.test) == (outcome.metrics, outcome.test)


@pytest.mark.slow
def test_stops_after_its_minutes_and_goes_on(tmp_path):
    config = dataclasses.replace(CONFIG, minutes=1e-9)
    with pytest.raises(loop.Interrupted, match="stopped at step 5"):
        run(tmp_path, regression(config), config)
    assert (tmp_path / "checkpoints" / "5").exists()


@pytest.mark.slow
def test_checkpoints_by_time(tmp_path):
    config = dataclasses.replace(CONFIG, checkpoint_minutes=1e-9, checkpoint_every=1000)
    run(tmp_path, regression(config), config)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["30", "35", "40"]


OPTIMIZERS = {
    "adam": {},
    "adamw": {"weight_decay": 0.1, "beta2": 0.99},
    "rmsprop": {"beta1": 0.5, "epsilon": 1e-3},
    "muon": {"weight_decay": 0.1, "adam_learning_rate": 1e-3, "clip_norm": 1.0},
}


@pytest.mark.parametrize("name", mostly_slow(OPTIMIZERS, keep=["rmsprop", "muon"]))
def test_optimizers_learn(name):
    config = dataclasses.replace(CONFIG, optimizer=name, learning_rate=0.02, **OPTIMIZERS[name])
    programs = Programs(regression(config), config)
    state = programs.init()
    before = programs.evaluate(state)["loss"][0]
    state, _ = programs.train_chunk(state, 60)
    assert programs.evaluate(state)["loss"][0] < 0.5 * before


def test_muon_is_for_matrices_and_adam_has_its_own_rate():
    config = dataclasses.replace(
        CONFIG, optimizer="muon", learning_rate=0.1, adam_learning_rate=1e-4
    )
    params = {"kernel": jnp.eye(3), "bias": jnp.ones(3), "embedding": jnp.ones((3, 2))}
    params |= {name: jnp.ones((3, 2)) for name in ("head", "entries", "tail_0")}  # Of a softmax.
    optimizer = make_optimizer(config)
    gradient = jax.tree.map(jnp.ones_like, params)
    gradient["kernel"] = jnp.diag(jnp.array([3.0, 1.0, 1.0]))
    updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    # The first step of Adam with Nesterov's momentum is 0.9 / 1.9 + 1 rates; Muon's is orthogonal,
    # whatever the gradient's size.
    first = -1e-4 * (0.9 / 1.9 + 1)
    np.testing.assert_allclose(updates["bias"], first, rtol=1e-4)
    for name in ("embedding", "head", "entries", "tail_0"):
        np.testing.assert_allclose(updates[name], first, rtol=1e-4)
    singular = np.linalg.svd(updates["kernel"], compute_uv=False)
    optimizer = make_optimizer(dataclasses.replace(config, beta1=0.5, epsilon=1.0))
    own, _ = jax.jit(optimizer.update)(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(own["bias"], -1e-4 * (0.5 / 1.5 + 1) / 2, rtol=1e-4)
    assert singular.min() > 0.05
    assert singular.max() < 0.13


def test_weights_decay_but_no_biases_and_norms():
    params = {"norm": {"scale": jnp.ones(3)}, "kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    assert decaying(params) == {"norm": {"scale": False}, "kernel": True, "bias": False}
    config = dataclasses.replace(CONFIG, optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_the_average_of_weights_by_hand_and_beside_them():
    config = dataclasses.replace(CONFIG, average_decay=0.5)
    programs = Programs(regression(config), config)
    state, average = programs.init(), None
    for step in range(3):
        params = jax.device_get(state.params)
        if average is None:
            average = params
        state, _ = programs.train_chunk(state, 1)
        decay = min(0.5, (2 + step) / (11 + step))
        new = jax.device_get(state.params)
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, new)
    found = averaged(state.inner.opt_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, average)
    evaluation = programs.evaluate(state)
    assert set(evaluation) == {"loss", "accuracy", "average_loss", "average_accuracy"}
    swapped = programs.evaluate(state._replace(inner=state.inner._replace(params=found)))
    assert swapped["loss"] == evaluation["average_loss"] != evaluation["loss"]


def test_schedules_hold_and_fall():
    config = TrainConfig(steps=12, warmup_steps=2, schedule="linear", hold=0.5, learning_rate=1.0)
    rates = [round(float(make_schedule(config)(step)), 4) for step in range(13)]
    assert rates == [0, 0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]
    cosine = make_schedule(dataclasses.replace(config, schedule="cosine", warmup_steps=0))
    assert [round(float(cosine(step)), 4) for step in (0, 6, 9, 12)] == [1, 1, 0.5, 0]


def test_the_loss_gets_a_key_of_its_own_for_each_update_and_pass():
    seen = []

    def loss(params, batch, key):
        jax.debug.callback(lambda key: seen.append(tuple(key.tolist())), jax.random.key_data(key))
        return jnp.mean(params * batch), {}

    config = dataclasses.replace(CONFIG, micro_batch_size=4)
    problem = supervised(
        config,
        init=lambda key: jnp.ones(()),
        sample=lambda key, level, rows: jnp.ones(rows),
        sample_eval=lambda key, rows: jnp.ones(rows),
        loss=loss,
        eval_loss=lambda params, batch: (params, {}),
        needs_key=True,
        score=Score("loss", "min"),
    )
    programs = Programs(problem, config)
    state, _ = programs.train_chunk(programs.init(), 3)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) == 6


def test_data_is_an_argument_and_no_constant():
    table = np.arange(50_000, dtype=np.float32)

    def pick(key, rows, data):
        return data[jax.random.randint(key, (rows,), 0, len(data))]

    problem = supervised(
        CONFIG,
        init=lambda key: jnp.zeros(()),
        sample=lambda key, level, rows, data: pick(key, rows, data),
        sample_eval=pick,
        loss=lambda params, batch: (jnp.mean(batch) + params, {"mean": Mean.of(batch)}),
        score=Score("mean"),
        data=table,
    )
    programs = Programs(problem, CONFIG)
    state = programs.init()
    _, metrics = programs.train_chunk(state, 5)
    assert 10_000 < to_values(metrics)["mean"][0] < 40_000
    with pytest.raises(ValueError, match="exactly one of sample and feed"):
        supervised(
            CONFIG,
            init=lambda key: jnp.zeros(()),
            loss=lambda params, batch: (params, {}),
            score=Score("loss"),
        )


def test_batches_from_the_host_are_those_of_the_step():
    seen = []

    def feed(step, num_steps):
        seen.append((step, num_steps))
        values = np.arange(step, step + num_steps, dtype=np.float32)
        return np.repeat(values[:, None], CONFIG.batch_size, 1)

    problem = supervised(
        CONFIG,
        init=lambda key: jnp.zeros(()),
        feed=feed,
        eval_feeds={"valid": (feed, 3)},
        loss=lambda params, batch: (jnp.mean(batch) + 0 * params, {"mean": Mean.of(batch)}),
        score=Score("mean"),
    )
    programs = Programs(problem, CONFIG)
    state, metrics = programs.train_chunk(programs.init(), 5)
    assert to_values(metrics)["mean"] == [2.0]
    state, metrics = programs.train_chunk(state, 5)
    assert to_values(metrics)["mean"] == [7.0]
    assert programs.evaluate(state)["mean"] == [1.0]
    assert seen == [(0, 5), (5, 5), (0, 3)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_linear_layers_are_those_of_flax_with_gradients_in_float32(dtype):
    """In bfloat16, to its rounding, and the weights' gradients have more digits than that."""
    ours, theirs = (kind(3, dtype=dtype) for kind in (Linear, nn.Dense))
    x = jax.random.normal(jax.random.key(0), (4, 5, 6), dtype)
    params = jax.jit(theirs.init)(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(ours.init)(jax.random.key(1), x), params)
    params["params"]["bias"] += 0.3

    def gradients(layer):
        def loss(params, x):
            return jnp.sum(jnp.sin(layer.apply(params, x).astype(jnp.float32)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    (value, (weights, d_x)), expected = gradients(ours), gradients(theirs)
    assert d_x.dtype == dtype
    found = value, (weights, d_x)
    if dtype == jnp.float32:
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    close = functools.partial(np.testing.assert_allclose, rtol=0.02, atol=0.02)
    jax.tree.map(lambda a, b: close(a.astype(float), b.astype(float)), found, expected)
    for leaf in jax.tree.leaves(weights):
        assert (leaf != leaf.astype(jnp.bfloat16).astype(leaf.dtype)).mean() > 0.5
