"""What the engine costs in time; to be run on a machine that does nothing else.

``python -m pytest --noconftest -m slow -s tests/experiments/test_engine_speed.py``

Without the settings of the other tests, which compile faster and slower programs.
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import optax
import pytest

from experiments.common import loop
from experiments.common.run_directory import open_run
from experiments.common.steps import Programs
from experiments.nth_farthest.config import PRESETS
from experiments.nth_farthest.model import make_model
from experiments.nth_farthest.train import make_problem
from rrnn_jax.tasks import nth_farthest
from tests.experiments.toys import CONFIG, Whole, stream, write_tokens

pytestmark = pytest.mark.slow
STEPS = 10


def test_the_device_hardly_waits_for_the_host(tmp_path, monkeypatch):
    """From the end of a chunk to the start of the next, with batches of a file, in wall time."""
    config = dataclasses.replace(
        CONFIG, batch_size=512, steps=1000, eval_every=1000, chunk_steps=100
    )
    config = dataclasses.replace(config, checkpoint_every=1000)
    tokens = write_tokens(tmp_path / "tokens.npy", 2_000_000)
    marks = []

    def noted(name, function):
        def call(*args):
            marks.append((name, "begins", time.perf_counter()))
            result = function(*args)
            marks.append((name, "ends", time.perf_counter()))
            return result

        return call

    chunks, feeds = Programs.train_chunk, Programs.batches
    monkeypatch.setattr(Programs, "train_chunk", noted("chunk", chunks))
    monkeypatch.setattr(Programs, "batches", noted("feed", feeds))
    monkeypatch.setattr(loop, "to_values", noted("values", loop.to_values))
    open_run(tmp_path / "run", Whole(config))
    loop.train(stream(config, tokens), config, tmp_path / "run", progress=False)
    starts = [t for name, event, t in marks if (name, event) == ("chunk", "begins")]
    ends = [t for name, event, t in marks if (name, event) == ("values", "ends")]
    waits = [t for name, event, t in marks if (name, event) == ("values", "begins")]
    # The host waits for the device, and not the other way round: the feed was ready before.
    assert min(end - wait for end, wait in zip(ends[1:-1], waits[1:-1], strict=True)) > 0
    idle = sum(start - end for start, end in zip(starts[2:], ends[1:-1], strict=True))
    share = idle / (ends[-1] - starts[1])
    each = 1e3 * idle / len(ends[1:-1])
    print(f"the device waits for {share:.2%} of the time, {each:.1f} ms a chunk")
    assert share < 0.02


def test_a_chunk_is_not_slower_than_updates_by_hand():
    """Of the LSTM on Nth Farthest: the engine's chunk against a scan of gradient and optimiser."""
    config = PRESETS["small"]
    train = dataclasses.replace(config.train, batch_size=256, micro_batch_size=None)
    config = dataclasses.replace(config, model="lstm", train=train)
    problem = make_problem(config)
    programs = Programs(problem, train)
    task = nth_farthest.Config(config.task.num_objects, config.task.num_features)
    model = make_model(config)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps),
            optax.cosine_decay_schedule(train.learning_rate, train.steps - train.warmup_steps),
        ],
        [train.warmup_steps],
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss(params, batch):
        logits = model.apply(params, batch.inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        return losses.mean(), (jnp.argmax(logits, -1) == batch.targets).mean()

    def update(state, key):
        params, opt_state = state
        batch = nth_farthest.sample(key, task, train.batch_size)
        (value, right), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        metrics = value, right, optax.tree.norm(gradient)
        return (optax.apply_updates(params, updates), opt_state), metrics

    @jax.jit
    def chunk(state, key):
        state, metrics = jax.lax.scan(update, state, jax.random.split(key, STEPS))
        return state, jax.tree.map(jnp.mean, metrics)

    engine = programs.init()
    params = jax.tree.map(lambda x: x[0], engine.params)
    by_hand = params, optimizer.init(params)
    programs.compile(engine, STEPS, None)
    ratios = []
    for index in range(61):
        started = time.perf_counter()
        engine, metrics = programs.train_chunk(engine, STEPS)
        jax.block_until_ready((engine, metrics))
        between = time.perf_counter()
        by_hand, metrics = chunk(by_hand, jax.random.key(index))
        jax.block_until_ready((by_hand, metrics))
        if index:
            ratios.append((time.perf_counter() - between) / (between - started))
    low, ratio, high = statistics.quantiles(ratios)
    spread = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
    print(f"updates a second of the engine, as a share of those by hand: {spread}")
    assert ratio >= 0.97
