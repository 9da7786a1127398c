"""The model: reading in windows equals reading the whole text, and sizes are as requested."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.refused import RefusedError
from experiments.language_model.config import PRESETS, TextConfig
from experiments.language_model.data.token_files import Split, Tokens
from experiments.language_model.data.vocabulary import Words
from experiments.language_model.model import make_model
from experiments.language_model.problem import (
    init_params,
    make_problem,
    per_unit,
    training_loss,
    unigram_losses,
    unigram_nats,
)
from experiments.language_model.report import by_frequency, carried_nats, windowed_nats
from tests.experiments.language_model.small import TEXT, small_config, small_saved
from tests.grids import mostly_slow


def text_split(saved) -> Split:
    tokens = saved.vocabulary.encode(TEXT)
    start = np.array([saved.vocabulary.start])
    return Split("test", np.concatenate([start, tokens]), len(TEXT), 1)


STREAMED = {
    "rmc": {},
    "lstm": {"model": "lstm"},
    "adaptive rmc": {"text": {"cutoffs": (5, 12), "tied": True}},
}


@pytest.mark.parametrize("name", mostly_slow(STREAMED, keep=["adaptive rmc"]))
def test_streamed_is_whole(name):
    saved = small_saved(scale=1, **STREAMED[name])  # Large parameters amplify rounding.
    split = text_split(saved)
    assert len(split.targets) > 1000
    whole = carried_nats(saved, split, len(split.targets))
    for window in (7, 64, 1000):
        carried = carried_nats(saved, split, window)
        np.testing.assert_allclose(carried, whole, rtol=1e-5, atol=1e-5, err_msg=str(window))
    # Without the state it is something else, but for the first window.
    apart = windowed_nats(saved, split, 64)
    np.testing.assert_allclose(apart[:64], whole[:64], rtol=1e-5, atol=1e-5)
    assert np.abs(apart - whole).max() > 1e-2


def test_windows_without_a_state_are_read_alone():
    saved = small_saved(scale=1)
    split = text_split(saved)
    found = windowed_nats(saved, split, 50)
    part = Split("test", split.tokens[100:151], 1, 1)
    np.testing.assert_allclose(found[100:150], carried_nats(saved, part, 50), rtol=1e-5, atol=1e-5)


def test_step_by_step_is_a_window():
    saved = small_saved()
    tokens = jnp.asarray(saved.vocabulary.encode(TEXT[:9]))
    carry = saved.model.initial_carry(1)
    apply = jax.jit(saved.model.apply, static_argnames="method")
    read = apply(saved.params, tokens[None, :-1], tokens[None, 1:], carry)
    for t in range(8):
        carry, output = apply(saved.params, tokens[t : t + 1], carry, method="step")
        log_probs = apply(saved.params, output, method="log_probs")
        np.testing.assert_allclose(log_probs[0, tokens[t + 1]], read.likelihood[0, t], atol=1e-5)
    np.testing.assert_allclose(carry, read.carry, atol=1e-5)


def test_dropout_and_penalties_are_in_the_loss_of_training_alone():
    text = {
        "word_dropout": 0.3,
        "input_dropout": 0.3,
        "output_dropout": 0.3,
        "activation_penalty": 2.0,
        "change_penalty": 1.0,
    }
    saved = small_saved(text=text)
    plain = dataclasses.replace(
        saved.config, text=dataclasses.replace(saved.config.text, activation_penalty=0.0,
                                               change_penalty=0.0)
    )  # fmt: skip
    tokens = saved.vocabulary.encode(TEXT[:9])[None]
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones((1, 8), bool))
    carry = saved.model.initial_carry(1)

    def loss(config, key):
        of = training_loss(saved.model, config)
        return jax.jit(lambda key: of(saved.params, carry, batch, key))(jax.random.key(key))

    value, (_, metrics) = loss(saved.config, 0)
    without, (_, same) = loss(plain, 0)
    assert float(value) > float(without)
    np.testing.assert_allclose(metrics["nats"].value(), same["nats"].value())
    np.testing.assert_allclose(without, same["nats"].value())
    assert abs(float(loss(plain, 1)[0]) - float(without)) > 1e-3


@dataclasses.dataclass
class Batch:
    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray


def count(config, vocab_size: int) -> int:
    model = make_model(config, vocab_size)
    shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_the_papers_size_is_that_of_the_arithmetic():
    """2,500 units, MLP of 5 layers, words of 512, of 250,000 and WikiText-103's 267,735."""
    f, d, cutoffs = 2500, 512, (10_000, 20_000, 200_000)
    core = d * f + f  # The input's projection.
    core += f * 3 * f + 3 * f + 2 * 3 * f  # Queries, keys and values, and their norm.
    core += 2 * 2 * f + 5 * (f * f + f)  # Two norms; the MLP.
    core += 2 * (f * 2 * f + 2 * f)  # Gates by the input and by the memory.
    words = f * d + (cutoffs[0] + 3) * d
    config = dataclasses.replace(PRESETS["paper"], model="rmc")
    for v, expected in ((250_000, 90_265_052), (267_735, 90_406_932)):
        tails = 0
        for j, size in enumerate((10_000, 180_000, v - 200_000)):
            width = d // 4 ** (j + 1)
            tails += size * width + d * width
        assert count(config, v) == core + words + tails == expected
    lstm = count(dataclasses.replace(config, model="lstm"), v)
    assert abs(lstm / expected - 1) < 0.02


@pytest.mark.parametrize("preset", ["quick", "shakespeare", "books"])
def test_models_of_a_preset_are_of_equal_size(preset):
    sizes = [count(dataclasses.replace(PRESETS[preset], model=m), 65) for m in ("rmc", "lstm")]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02, sizes


def test_losses_in_all_units():
    """By hand: 4 tokens of ln 2 nats are 4 bits, over 8 bytes and 2 words."""
    split = Split("test", np.zeros(5, np.uint16), bytes=8, words=2)
    found = per_unit(split, float(np.log(2)))
    assert found["bits_per_byte"] == pytest.approx(0.5)
    assert found["word_perplexity"] == pytest.approx(4.0)


def test_unigram_and_groups_by_hand():
    words = Words.of(["a a a b\n"])
    splits = {
        "train": Split("train", np.array([1, 0, 0, 0, 2, 1]), 8, 5),
        "valid": Split("valid", np.array([1, 0, 2]), 4, 2),
    }
    tokens = Tokens(words, splits, np.array([3, 1, 1, 0]), {})
    assert unigram_nats(tokens) == pytest.approx(-(np.log(4 / 9) + np.log(2 / 9)) / 2)
    np.testing.assert_allclose(np.exp(-unigram_losses(tokens.counts)) * 9, [4, 2, 2, 1])
    found = by_frequency(np.log([2.0, 8.0]), np.array([0, 2]), tokens.counts, bounds=(2, 1))
    assert found["all"] == {"tokens": 2, "perplexity": pytest.approx(4.0)}
    assert found["1-2"] == {"tokens": 1, "perplexity": pytest.approx(8.0)}
    assert "<1" not in found


def test_what_does_not_fit_is_refused():
    saved = small_saved()
    splits = {"train": text_split(saved), "valid": text_split(saved)}
    tokens = Tokens(saved.vocabulary, splits, np.ones(saved.vocabulary.size, np.int64), {})
    config = small_config(text={"cutoffs": (5,)})
    with pytest.raises(RefusedError, match=r"cutoffs .* sorted by frequency .* got characters"):
        make_problem(config, tokens)
    words = Words.of([TEXT])
    of_words = tokens.__class__(words, splits, np.ones(words.size, np.int64), {})
    for cutoffs in ((5, words.size), (0,), (5, 5)):
        with pytest.raises(
            RefusedError, match=rf"cutoffs must rise .*, {words.size}, got \({cutoffs[0]}"
        ):
            make_problem(small_config(text={"cutoffs": cutoffs}), of_words)
    with pytest.raises(RefusedError, match="less than a window of 5000 in each of 4 rows"):
        make_problem(small_config(text={"window": 5000}), tokens)
    with pytest.raises(RefusedError, match="no text to validate on"):
        make_problem(saved.config, tokens.__class__(tokens.vocabulary, {"train": splits["train"]},
                                                    tokens.counts, {}))  # fmt: skip
    with pytest.raises(ValueError, match="word_dropout must be at least 0 and below 1, got 1"):
        TextConfig(word_dropout=1.0)
