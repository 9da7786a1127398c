"""Nth Farthest against a brute-force oracle in NumPy, and its statistics."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrnn_jax.tasks import nth_farthest as nf
from tests.grids import mostly_slow

SAMPLES = 10_000
sample = jax.jit(nf.sample, static_argnums=(1, 2))


def oracle(inputs: np.ndarray, objects: int, features: int) -> tuple[list[int], list[float]]:
    """Answers in float64 by sorting, and how far (relatively) each is from a tie."""
    answers, margins = [], []
    for row in inputs.astype(np.float64):
        vectors = row[:, :features]
        labels = row[:, features : features + objects].argmax(-1)
        n = row[0, features + objects : features + 2 * objects].argmax()
        m = row[0, features + 2 * objects :].argmax()
        reference = vectors[list(labels).index(m)]
        pairs = [
            (float(np.sqrt(((vector - reference) ** 2).sum())), int(label))
            for vector, label in zip(vectors, labels, strict=True)
        ]
        pairs.sort(reverse=True)
        answers.append(pairs[n][1])
        distance = pairs[n][0]
        others = [abs(d - distance) for d, label in pairs if label != pairs[n][1]]
        margins.append(min(others) / max(distance, min(others)))
    return answers, margins


PAPER = nf.Config()


@pytest.mark.parametrize(
    "config", mostly_slow([PAPER, nf.Config(4, 2), nf.Config(2, 1)], keep=[PAPER])
)
def test_agrees_with_brute_force(config):
    batch = sample(jax.random.key(1), config, SAMPLES)
    assert batch.inputs.shape == (SAMPLES, config.num_objects, config.input_size)
    assert batch.inputs.dtype == jnp.float32
    assert batch.targets.dtype == jnp.int32
    answers, margins = oracle(np.asarray(batch.inputs), config.num_objects, config.num_features)
    wrong = np.asarray(batch.targets) != np.array(answers)
    # Only pairs within float32 rounding of a tie may trade places.
    assert not np.any(wrong & (np.array(margins) > 1e-6))
    assert wrong.sum() <= 2


def test_layout_of_the_inputs():
    config = nf.Config(num_objects=3, num_features=2)
    question = nf.Question(
        vectors=jnp.array([[0.1, 0.2], [0.3, 0.4], [-0.5, -0.6]], jnp.float32),
        labels=jnp.array([2, 0, 1], jnp.int32),
        rank=jnp.int32(1),
        reference=jnp.int32(2),
    )
    expected = np.array(
        [  # x         label    n        m
            [0.1, 0.2, 0, 0, 1, 0, 1, 0, 0, 0, 1],
            [0.3, 0.4, 1, 0, 0, 0, 1, 0, 0, 0, 1],
            [-0.5, -0.6, 0, 1, 0, 0, 1, 0, 0, 0, 1],
        ],
        np.float32,
    )
    np.testing.assert_array_equal(nf.encode(question, config), expected)
    # From (0.1, 0.2): label 1 is farthest, label 0 next, label 2 itself last.
    for rank, label in enumerate([1, 0, 2]):
        assert nf.answer(question._replace(rank=jnp.int32(rank))) == label


@pytest.fixture(scope="module")
def questions():
    config = nf.Config()
    return nf.decode(sample(jax.random.key(2), config, SAMPLES).inputs, config)


def chi_square(values: np.ndarray, categories: int) -> float:
    counts = np.bincount(values, minlength=categories)
    expected = len(values) / categories
    return float(((counts - expected) ** 2 / expected).sum())


# 99.99 % quantiles of chi-square with 7, 55 and 63 degrees of freedom.
def test_labels_ranks_and_references_are_uniform(questions):
    labels = np.asarray(questions.labels)
    assert (np.sort(labels, axis=-1) == np.arange(8)).all()  # Without replacement.
    for step in range(8):
        assert chi_square(labels[:, step], 8) < 29.9
    rank, reference = np.asarray(questions.rank), np.asarray(questions.reference)
    assert chi_square(rank, 8) < 29.9
    assert chi_square(reference, 8) < 29.9
    assert chi_square(8 * rank + reference, 64) < 110.0
    pairs = {pair: i for i, pair in enumerate(itertools.permutations(range(8), 2))}
    first_two = np.array([pairs[a, b] for a, b in labels[:, :2]])
    assert chi_square(first_two, 56) < 100.0


def test_vectors_are_uniform_and_say_nothing_of_labels(questions):
    vectors, labels = np.asarray(questions.vectors), np.asarray(questions.labels)
    bins = np.clip(((vectors[..., :3] + 1) * 10).astype(int), 0, 19).reshape(-1)
    assert chi_square(bins, 20) < 52.0  # 99.99 % at 19 degrees of freedom.
    assert vectors.min() >= -1
    assert vectors.max() < 1
    correlation = np.corrcoef(vectors[..., 0].reshape(-1), labels.reshape(-1))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(labels.size)


def test_trivial_strategy_scores_two_over_n():
    config = nf.Config()
    batch = sample(jax.random.key(3), config, 100_000)
    question = jax.jit(nf.decode, static_argnums=1)(batch.inputs, config)
    # The reference where it is asked for, else some other object.
    other = (question.reference + 1) % 8
    guess = jnp.where(question.rank == 7, question.reference, other)
    score = float(jnp.mean(guess == batch.targets))
    assert config.trivial_accuracy == 0.25
    assert abs(score - 0.25) < 4 * (0.25 * 0.75 / 100_000) ** 0.5


def test_ties_keep_the_reference_last():
    twins = jnp.zeros((3, 2), jnp.float32)
    question = nf.Question(twins, jnp.array([1, 0, 2], jnp.int32), jnp.int32(2), jnp.int32(0))
    answers = [int(nf.answer(question._replace(rank=jnp.int32(n)))) for n in range(3)]
    assert answers == [1, 2, 0]


@partial(jax.jit, static_argnums=1)
def sampled_and_decoded(key, config):
    """A batch, its inputs once decoded and encoded, answers, and the answers to all ranks."""
    batch = nf.sample(key, config, 3)
    question = nf.decode(batch.inputs, config)
    ranks = jnp.arange(config.num_objects, dtype=jnp.int32)
    answers = jax.vmap(lambda n: nf.answer(question._replace(rank=jnp.full((3,), n))))(ranks)
    return batch, nf.encode(question, config), nf.answer(question), answers


@settings(max_examples=30, deadline=None)
@given(size=st.sampled_from([(2, 1), (3, 5), (6, 2)]), seed=st.integers(0, 2**31 - 1))
def test_decode_inverts_encode(size, seed):
    objects = size[0]
    batch, again, targets, answers = sampled_and_decoded(jax.random.key(seed), nf.Config(*size))
    np.testing.assert_array_equal(again, batch.inputs)
    np.testing.assert_array_equal(targets, batch.targets)
    # A rank for every label: the answers to all ranks are a permutation.
    np.testing.assert_array_equal(
        np.sort(np.asarray(answers), 0), np.tile(np.arange(objects)[:, None], 3)
    )


def test_accuracy_by_hand():
    logits = jnp.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0], [1.0, 0.0]], jnp.float32)
    assert nf.accuracy(logits, jnp.array([1, 0, 0, 0], jnp.int32)) == 0.75
    with pytest.raises(ValueError, match=r"targets must have shape \[B\] = \(4,\), got \(4, 1\)"):
        nf.accuracy(logits, jnp.zeros((4, 1), jnp.int32))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_objects": 1}, ValueError, "num_objects must be at least 2, got 1"),
        ({"num_features": 0}, ValueError, "num_features must be at least 1, got 0"),
        ({"num_objects": 2.5}, TypeError, "num_objects must be an integer, got 2.5"),
    ],
)
def test_bad_config(arguments, error, message):
    with pytest.raises(error, match=message):
        nf.Config(**arguments)


def test_bad_arguments():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        nf.sample(jax.random.key(0), nf.Config(), 0)
    with pytest.raises(ValueError, match=r"d \+ 3N = 40 features, got shape \(2, 8, 39\)"):
        nf.decode(jnp.zeros((2, 8, 39)), nf.Config())
