"""Language modelling as a training problem: windows of a text with a carried state."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.cells import recipe
from experiments.common.problem import Mean, Metrics, Params, Problem, Score
from experiments.common.refused import RefusedError
from experiments.common.streaming import Window, Windows, streaming
from experiments.language_model.config import Config
from experiments.language_model.data.token_files import Split, Tokens
from experiments.language_model.model import LanguageModel, make_model
from rrnn_jax.language import activation_regularisation


def make_problem(
    config: Config, tokens: Tokens, show: Callable[[Params], str] | None = None
) -> Problem:
    """The text and the model of a config.

    Args:
      config: a config with one model.
      tokens: the text.
      show: writes a sample.

    Returns:
      The problem, whose score ``nats`` is the mean loss per token of the validation text.

    Raises:
      RefusedError: a split is missing or too short, or the cut-offs are not for the vocabulary.
    """
    text, train = config.text, recipe(config, config.model, config.train)
    if "valid" not in tokens.splits:
        raise RefusedError(
            "there is no text to validate on: see --valid, or for one file --fractions; a folder "
            "with splits of its own needs one for validation"
        )
    if text.cutoffs and not tokens.vocabulary.by_frequency:
        raise RefusedError(
            "--cutoffs are for vocabularies sorted by frequency (words), got "
            f"{tokens.vocabulary.kind}"
        )
    size = tokens.vocabulary.size
    if any(low >= high for low, high in itertools.pairwise((0, *text.cutoffs, size))):
        raise RefusedError(
            f"--cutoffs must rise from at least 1 to below the vocabulary's size, {size}, got "
            f"{text.cutoffs}"
        )
    check_rows(tokens.splits["train"], train.batch_size, text.window)
    model = make_model(config, size)
    evaluations = {}
    for name in tokens.splits.keys() - {"train"}:
        check_rows(tokens.splits[name], text.eval_rows, 1)
        evaluations[name] = Windows(tokens.splits[name].tokens, text.eval_rows, text.eval_window)
    return streaming(
        train,
        init=lambda key: init_params(model, key),
        initial_carry=model.initial_carry,
        loss=training_loss(model, config),
        eval_loss=evaluation_loss(model),
        needs_key=True,
        train=Windows(tokens.splits["train"].tokens, train.batch_size, text.window),
        evaluations=evaluations,
        score=Score(
            "nats",
            "min",
            unigram_nats(tokens),
            f"loss per {unit_of(tokens)} of the validation text (nats)",
        ),
        show=show,
    )


def init_params(model: LanguageModel, key: jax.Array) -> Params:
    """New parameters."""
    token = jnp.zeros((1, 1), jnp.int32)
    return model.init(key, token, token, model.initial_carry(1))


def training_loss(model: LanguageModel, config: Config) -> Callable[..., Any]:
    """The loss of a window, with dropout and penalties; see `streaming`.

    Penalties also count the padded positions of an epoch's last window.
    """
    alpha, beta = config.text.activation_penalty, config.text.change_penalty

    def loss(params: Params, carry: Any, batch: Window, key: jax.Array) -> tuple:
        read: Any = model.apply(
            params,
            batch.inputs,
            batch.targets,
            carry,
            deterministic=False,
            rngs={"dropout": key},
        )
        value, metrics = _nats(read.likelihood, batch.mask)
        if alpha or beta:
            value = value + activation_regularisation(read.dropped, read.outputs, alpha, beta)
        return value, (read.carry, metrics)

    return loss


def evaluation_loss(model: LanguageModel) -> Callable[..., Any]:
    """The loss of a window without dropout and penalties; see `streaming`."""

    def loss(params: Params, carry: Any, batch: Window) -> tuple:
        read: Any = model.apply(params, batch.inputs, batch.targets, carry)
        value, metrics = _nats(read.likelihood, batch.mask)
        return value, (read.carry, metrics)

    return loss


def unigram_nats(tokens: Tokens) -> float:
    """The mean of `unigram_losses` over the validation text."""
    losses = unigram_losses(tokens.counts)
    valid = np.bincount(tokens.splits["valid"].targets, minlength=len(losses))
    return float((valid * losses).sum() / valid.sum())


def unigram_losses(counts: np.ndarray) -> np.ndarray:
    """The loss of each token by its frequency in the training text alone: (count + 1) / sum."""
    return -np.log((counts + 1) / (counts + 1).sum())


def per_unit(split: Split, nats: float) -> dict[str, float]:
    """Converts a loss per token to bits per byte and perplexity per word.

    >>> split = Split("test", np.zeros(5, np.uint16), bytes=8, words=2)
    >>> {name: round(value, 3) for name, value in per_unit(split, math.log(2)).items()}
    {'nats': 0.693, 'bits_per_byte': 0.5, 'word_perplexity': 4.0}

    Args:
      split: the text.
      nats: mean loss of its tokens.

    Returns:
      ``nats``, ``bits_per_byte`` and ``word_perplexity``, exp of all nats over all words and ends
      of lines (as PG-19 counts, whatever the vocabulary).
    """
    total = nats * len(split.targets)
    return {
        "nats": nats,
        "bits_per_byte": total / math.log(2) / split.bytes,
        "word_perplexity": math.exp(min(total / split.words, 700.0)),
    }


def unit_of(tokens: Tokens) -> str:
    """The name of a token's unit."""
    names = {"characters": "character", "bytes": "byte", "words": "word", "bpe": "token"}
    return names[tokens.vocabulary.kind]


def check_rows(split: Split, rows: int, window: int) -> None:
    """Raises unless each row has a window."""
    if len(split.targets) < rows * window:
        raise RefusedError(
            f"the {split.name} split has {len(split.targets)} tokens, less than a window of "
            f"{window} in each of {rows} rows; choose fewer rows, a shorter window or a longer text"
        )


def _nats(likelihood: jax.Array, mask: jax.Array) -> tuple[jax.Array, Metrics]:
    nats = Mean.of(-likelihood, mask)
    return nats.value(), {"nats": nats}
