"""A small model and a small text, for all tests of the language model."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.common.train_config import TrainConfig
from experiments.language_model.config import Config, LSTMConfig, RMCConfig, TextConfig
from experiments.language_model.data.token_files import DataConfig
from experiments.language_model.data.vocabulary import Bytes, Characters
from experiments.language_model.model import make_model
from experiments.language_model.problem import init_params
from experiments.language_model.saved import Saved

TEXT = "".join(f"{n} fish, {n + 1} fish; a fish is {n * 7 % 13}.\n" for n in range(60))


def small_config(path: Path | None = None, **options) -> Config:
    """Trains in a moment."""
    text = {"window": 8, "embedding_size": 6, "eval_rows": 2, "eval_window": 32}
    return Config(
        model=options.pop("model", "rmc"),
        data=DataConfig(
            path=None if path is None else str(path),
            **({"fractions": (0.8, 0.1, 0.1)} | options.pop("data", {})),
        ),
        text=TextConfig(**(text | options.pop("text", {}))),
        rmc=options.pop("rmc", RMCConfig(mem_slots=1, num_heads=2, head_size=4)),
        lstm=LSTMConfig(lstm_features=8),
        train=TrainConfig(
            **{
                "steps": 8,
                "batch_size": 4,
                "learning_rate": 1e-2,
                "chunk_steps": 4,
                "eval_every": 4,
                "checkpoint_every": 4,
                **options,
            }
        ),
    )


def small_saved(vocabulary=None, scale=2, **options) -> Saved:
    """A model of random parameters, by default large enough to be far from uniform."""
    config = small_config(**options)
    vocabulary = vocabulary or Characters(TEXT)
    model = make_model(config, vocabulary.size)
    params = jax.jit(partial(init_params, model))(jax.random.key(0))
    params = jax.tree.map(lambda x: np.asarray(scale * x), params)
    return Saved(config, vocabulary, model, params, 0)


def bytes_saved() -> Saved:
    """The same over bytes."""
    return small_saved(Bytes())


def with_text(config: Config, path: Path) -> Config:
    """Another text."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(path)))
