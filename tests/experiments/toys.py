"""Small problems for tests of the engine, and their config."""

import argparse
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from experiments.common import loop, parallel
from experiments.common.actor_critic.agent import Agent
from experiments.common.actor_critic.learner import LearnerConfig
from experiments.common.actor_critic.problem import actor_critic
from experiments.common.problem import Mean, Problem, Score
from experiments.common.records import append_rows
from experiments.common.run_directory import open_run
from experiments.common.streaming import Windows, streaming
from experiments.common.supervised import supervised
from experiments.common.train_config import TrainConfig
from rrnn_jax.envs import Box, Environment
from rrnn_jax.envs.environment import Transition

CONFIG = TrainConfig(
    steps=40,
    batch_size=8,
    learning_rate=0.05,
    chunk_steps=5,
    eval_every=10,
    eval_samples=16,
    checkpoint_every=10,
)
VOCABULARY = 7


@dataclasses.dataclass(frozen=True)
class Whole:
    """A config with a section, as experiments have."""

    train: TrainConfig
    note: str = "a"


def run(directory: Path, problem: Problem, config: TrainConfig = CONFIG) -> loop.Outcome:
    """Trains without a bar, from the newest checkpoint."""
    open_run(directory, Whole(config))
    return loop.train(problem, config, directory, progress=False)


def write_run(
    directory: Path, metrics: list, timings: list = (), environment: Any = None, **files: Any
) -> Path:
    """What a run leaves: rows of metrics and timings, its session, and JSON files by name."""
    append_rows(directory / "metrics.jsonl", metrics)
    append_rows(directory / "timings.jsonl", timings)
    if environment is not None:
        append_rows(directory / "sessions.jsonl", [{"step": 0, "environment": environment}])
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def wait_for(
    path: Path, seconds: float = 60, *processes: subprocess.Popen, log: Callable[[], Any] = str
) -> None:
    """Until a file exists; all processes must run until then, or the log is shown."""
    end = time.time() + seconds
    while not path.exists():
        assert all(process.poll() is None for process in processes), log()
        assert time.time() < end, path
        time.sleep(0.01)


def write_tokens(path: Path, count: int = 4000) -> np.ndarray:
    """A file of tokens in which each tells the next, mostly; returned as a memory map."""
    generator = np.random.default_rng(0)
    steps = np.where(generator.random(count) < 0.8, 3, generator.integers(0, VOCABULARY, count))
    np.save(path, (np.cumsum(steps) % VOCABULARY).astype(np.uint8))
    return np.load(path, mmap_mode="r")


def stream(config: TrainConfig, tokens: np.ndarray, reads: list | None = None) -> Problem:
    """A recurrent model of tokens: the carry decays, and adds each token's row of a table.

    Args:
      config: how to train.
      tokens: what is read.
      reads: gets the steps that are asked for in training.
    """

    def loss(params, carry, batch):
        def step(h, token):
            h = 0.5 * h + jnp.tanh(params["in"][token])
            return h, h @ params["out"]

        carry, logits = jax.lax.scan(step, carry, batch.inputs.T)
        chances = jax.nn.log_softmax(logits.swapaxes(0, 1))
        picked = jnp.take_along_axis(chances, batch.targets[..., None], -1)[..., 0]
        nats = Mean.of(-picked, batch.mask)
        return nats.value(), (carry, {"nats": nats})

    class Noted(Windows):
        def __call__(self, step, num_steps):
            if reads is not None:
                reads.extend(range(step, step + num_steps))
            return super().__call__(step, num_steps)

    def init(key):
        keys = jax.random.split(key)
        return {
            "in": 0.1 * jax.random.normal(keys[0], (VOCABULARY, 6)),
            "out": 0.1 * jax.random.normal(keys[1], (6, VOCABULARY)),
        }

    middle = len(tokens) * 3 // 4
    return streaming(
        config,
        init=init,
        initial_carry=lambda rows: jnp.zeros((rows, 6)),
        loss=loss,
        train=Noted(tokens[:middle], config.batch_size, 6),
        evaluations={"valid": Windows(tokens[middle:], 4, 9), "test": Windows(tokens[:99], 2, 9)},
        score=Score("nats", "min", float(np.log(VOCABULARY))),
    )


def regression(config: TrainConfig) -> Problem:
    """A small network for the sign of a sum: batches from keys, matrices and vectors."""

    def sample(key, rows):
        return jax.random.normal(key, (rows, 5))

    def loss(params, x):
        logits = jnp.tanh(x @ params["kernel"] + params["bias"]) @ params["out"]
        labels = (x.sum(-1) > 0).astype(jnp.float32)
        losses = jnp.square(logits - labels)
        return losses.mean(), {"accuracy": Mean.of((logits > 0.5) == (labels > 0.5))}

    def init(key):
        keys = jax.random.split(key)
        return {
            "kernel": jax.random.normal(keys[0], (5, 4)),
            "bias": jnp.zeros(4),
            "out": jax.random.normal(keys[1], (4,)),
        }

    return supervised(
        config,
        init=init,
        sample=lambda key, level, rows: sample(key, rows),
        sample_eval=sample,
        loss=loss,
        score=Score("accuracy", "max", 0.5),
    )


@struct.dataclass
class Params:
    levels: None = None


class Count(Environment):
    """Counts to 3, shows the count, and cuts the episode off there."""

    default_params = Params()
    num_actions = 2

    def observation_space(self, params=None):
        return Box(0.0, 3.0, (2, 2, 1))

    def draw_level(self, key, params):
        return jnp.int32(0)

    def start(self, level, params):
        return level

    def get_obs(self, state, params):
        return jnp.full((2, 2, 1), state, jnp.float32)

    def transition(self, key, state, action, params):
        new = state + 1
        no = jnp.zeros((), bool)
        return Transition(new, new, jnp.float32(1), no, new == 3, {})


def counting(train: TrainConfig, cell: nn.RNNCellBase) -> Problem:
    """An actor-critic that counts along."""
    learner = LearnerConfig(unroll=3, minibatch_envs=4, epochs=1, level_pool=0)
    agent = Agent(Count.num_actions, cell, width=4)
    score = Score("return")
    return actor_critic(train, learner, env=Count(), agent=agent, score=score, test_episodes=4)


def parse_process(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Options of a program that may be one of several processes; makes its directory and joins."""
    parser.add_argument("directory", type=Path)
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    if given.coordinator:
        parallel.connect(given.coordinator, given.num_processes, given.process_id)
    return given
