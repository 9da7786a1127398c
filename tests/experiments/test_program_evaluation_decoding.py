"""A decoder that is fed characters: it learns, and is judged by what it feeds itself."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.common.metrics import curve, read_metrics
from experiments.common.train_config import TrainConfig
from experiments.program_evaluation import PRESETS, Config, train
from experiments.program_evaluation.config import DifficultyConfig, LSTMConfig
from experiments.program_evaluation.train import make_problem

FED = ("teacher_forced", "autoregressive")


def config_of(decoding: str) -> Config:
    return dataclasses.replace(
        PRESETS["quick"],
        task="copy",
        model="lstm",
        decoding=decoding,
        difficulty=DifficultyConfig(memorization_length=2),
        lstm=LSTMConfig(lstm_features=32, lstm_layers=1),
        train=TrainConfig(
            steps=160,
            batch_size=32,
            learning_rate=3e-3,
            chunk_steps=80,
            eval_every=160,
            eval_samples=256,
            checkpoint_every=160,
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("decoding", FED)
def test_learns_to_copy(decoding, tmp_path):
    summary = train(config_of(decoding), tmp_path, progress=False)["copy"]["lstm"]
    (_, accuracies) = curve(read_metrics(tmp_path), "valid", "accuracy")[0]
    assert 0.1 < summary["trivial_accuracy"] < 0.13
    assert accuracies[0] < 0.2  # Before the first update.
    assert accuracies[-1] == summary["evaluation"]["accuracy"][0] > 0.8
    assert summary["evaluation"]["sequence_accuracy"][0] > 0.6  # By chance: 1 %.


def test_teacher_forcing_is_judged_without_a_teacher():
    taught, alone = (make_problem(config_of(decoding)) for decoding in FED)
    state = jax.jit(taught.init)(jax.random.key(0))  # Nothing learned: hardly an answer is right.
    key = jax.random.key(1)

    @jax.jit
    def metrics():
        judged = [
            each.evaluations["valid"].step(state, (), key, None)[1] for each in (taught, alone)
        ]
        return judged, [each.update(state, key, None)[1]["loss"] for each in (taught, alone)]

    judged, (with_teacher, fed_back) = metrics()
    jax.tree.map(np.testing.assert_array_equal, *judged)
    assert abs(float(with_teacher.value() - fed_back.value())) > 1e-4
