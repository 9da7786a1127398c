"""The questions to train on: correlated vectors, first ranks, fewer objects, answers by step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.tasks import nth_farthest as nf
from tests.grids import mostly_slow
from tests.tasks.test_nth_farthest import chi_square

CONFIG = nf.Config()
SAMPLES = 4096


STATIC = ("config", "batch_size", "num_shown")
sample = jax.jit(nf.sample, static_argnames=STATIC)
sample_questions = jax.jit(nf.sample_questions, static_argnames=STATIC)
answers_by_step = jax.jit(nf.answers_by_step)


def draw(key, num_ranks, low, high):
    return sample_questions(key, CONFIG, SAMPLES, num_ranks=num_ranks, correlation=(low, high))


def brute_force(question: nf.Question, row: int, steps: int) -> tuple[int | None, float]:
    """The answer after `steps` objects in float64 by sorting, and its distance from a tie."""
    vectors = np.asarray(question.vectors[row], np.float64)
    labels = [int(label) for label in question.labels[row]]
    rank, reference = int(question.rank[row]), int(question.reference[row])
    if reference not in labels[:steps] or rank >= steps:
        return None, np.inf
    centre = vectors[labels.index(reference)]
    pairs = [
        (float(((vector - centre) ** 2).sum()) if label != reference else -1.0, label)
        for vector, label in zip(vectors[:steps], labels[:steps], strict=True)
    ]
    pairs.sort(reverse=True)
    distance, label = pairs[rank]
    return label, min([abs(d - distance) for d, other in pairs if other != label], default=np.inf)


@pytest.mark.parametrize("num_shown", mostly_slow([8, 5, 2], keep=[5]))
def test_answers_by_step_agree_with_brute_force(num_shown):
    question = sample_questions(
        jax.random.key(1), CONFIG, 200, num_shown=num_shown, correlation=0.7
    )
    answers, valid = answers_by_step(question)
    assert answers.shape == valid.shape == (200, num_shown)
    assert (answers.dtype, valid.dtype) == (jnp.int32, jnp.bool_)
    np.testing.assert_array_equal(answers[:, -1], jax.jit(nf.answer)(question))
    assert valid[:, -1].all()
    question, answers, valid = jax.device_get((question, answers, valid))
    compared = 0
    for row in range(200):
        for step in range(num_shown):
            expected, margin = brute_force(question, row, step + 1)
            assert bool(valid[row, step]) == (expected is not None)
            if expected is not None and margin > 1e-5:
                assert int(answers[row, step]) == expected
                compared += 1
    assert compared > 200


@pytest.mark.slow
def test_answers_by_step_with_any_batch_axes():
    question = sample_questions(jax.random.key(2), CONFIG, 200, num_shown=8, correlation=0.7)
    answers, valid = answers_by_step(question)
    folded = nf.Question(*(x.reshape(2, 100, *x.shape[1:]) for x in question))
    single = nf.Question(*(x[4] for x in question))
    np.testing.assert_array_equal(answers_by_step(folded)[0].reshape(200, 8), answers)
    np.testing.assert_array_equal(answers_by_step(single)[1], valid[4])


def test_no_key_is_made_twice(monkeypatch):
    made = []

    def recorded(make):
        def record(*args):
            keys = make(*args)
            made.extend(map(tuple, np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()))
            return keys

        return record

    for name in ("split", "fold_in"):
        monkeypatch.setattr(jax.random, name, recorded(getattr(jax.random, name)))
    nf.sample_questions(jax.random.key(0), CONFIG, 2, correlation=0.5, reference_first=0.5)
    assert len(made) == len(set(made)) == 11


def test_fewer_objects_in_the_layout_of_all():
    batch = sample(jax.random.key(3), CONFIG, SAMPLES, num_shown=4)
    assert batch.inputs.shape == (SAMPLES, 4, CONFIG.input_size)
    question = jax.jit(nf.decode, static_argnums=1)(batch.inputs, CONFIG)
    labels = np.asarray(question.labels)
    assert all(len(set(row)) == 4 for row in labels)
    assert chi_square(labels[:, 2], 8) < 29.9  # 99.99 % at 7 degrees of freedom; at 3: 21.1.
    position = (labels == np.asarray(question.reference)[:, None]).argmax(-1)
    assert (labels == np.asarray(question.reference)[:, None]).any(-1).all()
    assert chi_square(position, 4) < 21.1
    assert chi_square(np.asarray(question.rank), 4) < 21.1
    np.testing.assert_array_equal(jax.jit(nf.answer)(question), batch.targets)


def test_questions_of_the_first_ranks():
    for num_ranks in (1, 3, 8):
        rank = np.asarray(draw(jax.random.key(4), jnp.int32(num_ranks), 0.0, 0.0).rank)
        assert sorted(set(rank)) == list(range(num_ranks))
        assert chi_square(rank, num_ranks) < 29.9
    # Arrays are clipped to what there is.
    assert draw(jax.random.key(4), jnp.int32(0), 0.0, 0.0).rank.max() == 0
    assert draw(jax.random.key(4), jnp.int32(99), 0.0, 0.0).rank.max() == 7


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_reference_is_first_in_a_share_of_sequences(share):
    question = sample_questions(jax.random.key(12), CONFIG, SAMPLES, reference_first=share)
    first = np.asarray(question.labels[:, 0] == question.reference)
    expected = share + (1 - share) / 8
    assert abs(first.mean() - expected) <= 4 * (expected * (1 - expected) / SAMPLES) ** 0.5
    assert chi_square(np.asarray(question.reference), 8) < 29.9


def copies(question: nf.Question) -> tuple[np.ndarray, np.ndarray]:
    """For each other object ``[B, 7]``: coordinates that are the reference's, and minus it."""
    vectors, labels = np.asarray(question.vectors), np.asarray(question.labels)
    is_reference = labels == np.asarray(question.reference)[:, None]
    reference = vectors[is_reference][:, None]
    return tuple(
        (vectors == other).sum(-1)[~is_reference].reshape(SAMPLES, 7)
        for other in (reference, -reference)
    )


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3), (0.0, 1.0)])
def test_copies_of_the_reference_as_the_equation_says(low, high):
    same, opposite = copies(draw(jax.random.key(5), jnp.int32(8), low, high))
    count = same + opposite  # Binomial of 15 coordinates, given a.
    assert count.max() <= 15
    mean, square = (low + high) / 2, (low**2 + low * high + high**2) / 3
    assert abs(count.mean() - 15 * mean) < 0.15
    assert abs(count.var() - (15 * (mean - square) + 225 * (square - mean**2))) < 0.6
    # Given the copies, p is uniform, so every number of plus signs is as likely.
    full = count == 15
    if low == 1:
        assert full.all()
        assert chi_square(same[:, 2], 16) < 44.3  # 99.99 % at 15 degrees of freedom.
    # Each object draws its own p: two objects of a sequence share nothing but a.
    difference = same - opposite
    if high > 0:
        pairs = np.corrcoef(difference[:, 0], difference[:, 1])[0, 1]
        assert abs(pairs) < 4 / SAMPLES**0.5


def test_a_sequence_has_one_correlation():
    question = draw(jax.random.key(6), jnp.int32(8), 0.0, 1.0)
    same, opposite = copies(question)
    count = same + opposite
    # Var(15 a) of Var(15 a) + E[15 a (1 - a)].
    expected = (225 / 12) / (225 / 12 + 15 / 6)
    assert abs(np.corrcoef(count[:, 0], count[:, 1])[0, 1] - expected) < 0.03


def test_correlated_coordinates_are_uniform():
    vectors = np.asarray(draw(jax.random.key(7), jnp.int32(8), 1.0, 1.0).vectors)
    bins = np.clip(((vectors[..., :2] + 1) * 10).astype(int), 0, 19)
    # One object of a sequence: those of one sequence share numbers.
    assert chi_square(bins[:, 3, 0], 20) < 52.0  # 99.99 % at 19 degrees of freedom.
    assert chi_square(bins[:, 6, 1], 20) < 52.0
    assert vectors.min() >= -1
    assert vectors.max() <= 1


def test_correlated_vectors_hardly_tie():
    question = draw(jax.random.key(8), jnp.int32(8), 1.0, 1.0)
    vectors = np.asarray(question.vectors, np.float64)
    is_reference = np.asarray(question.labels == question.reference[:, None])
    distance = np.sort(((vectors - vectors[is_reference][:, None]) ** 2).sum(-1), axis=-1)
    assert (np.diff(distance, axis=-1) > 1e-6).all(-1).mean() > 0.999


def test_the_reference_and_all_else_stay():
    plain = sample_questions(jax.random.key(9), CONFIG, 64)
    easy = sample_questions(jax.random.key(9), CONFIG, 64, correlation=1.0)
    is_reference = np.asarray(plain.labels == plain.reference[:, None])
    for name in ("labels", "rank", "reference"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(easy, name))
    same = np.asarray(plain.vectors == easy.vectors)
    assert same[is_reference].all()
    # Of all others one coordinate is its own, and which one is drawn.
    assert (same[~is_reference].sum(-1) == 1).all()
    assert same[~is_reference].any(0).all()
    # No correlation is the uniform task, number for number.
    none = sample_questions(jax.random.key(9), CONFIG, 64, correlation=0.0)
    np.testing.assert_array_equal(none.vectors, plain.vectors)


def test_a_traced_correlation_is_the_number():
    traced = sample_questions(jax.random.key(10), CONFIG, 64, correlation=0.4)
    draw_fixed = partial(nf.sample_questions, config=CONFIG, batch_size=64, correlation=0.4)
    fixed = jax.jit(draw_fixed)(jax.random.key(10))
    np.testing.assert_array_equal(traced.vectors, fixed.vectors)


@pytest.mark.slow
def test_float32_even_where_doubles_are_enabled():
    def run(key):
        batch = nf.sample(key, CONFIG, 4, num_ranks=4, correlation=(0.0, 1.0))
        question = nf.decode(batch.inputs, CONFIG)
        answers, valid = nf.answers_by_step(question)
        accuracy = nf.accuracy(batch.inputs[:, 0, :8], batch.targets)
        return batch, question, answers, valid, accuracy, nf.sample(key, CONFIG, 4)

    key = jax.random.key(11)
    with jax.enable_x64(True):
        double = jax.jit(run)(key)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(double)}
    assert dtypes == {jnp.dtype(t) for t in (jnp.float32, jnp.int32, jnp.bool_)}
    jax.tree.map(np.testing.assert_array_equal, double, jax.jit(run)(key))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_shown": 1}, ValueError, "num_shown must be between 2 and 8, got 1"),
        ({"num_shown": 9}, ValueError, "num_shown must be between 2 and 8, got 9"),
        ({"num_shown": 2.5}, TypeError, "num_shown must be an integer, got 2.5"),
        ({"num_ranks": 0}, ValueError, "num_ranks must be at least 1, got 0"),
        ({"num_shown": 4, "num_ranks": 5}, ValueError, "num_ranks must be between 1 and 4, got 5"),
        ({"correlation": 1.5}, ValueError, r"correlation must be .* in \[0, 1\], got 1.5"),
        ({"correlation": [0.5, 1.0]}, ValueError, r"correlation must be .*, got \[0.5, 1.0\]"),
        ({"correlation": (0.5,)}, ValueError, r"correlation must be .*, got \(0.5,\)"),
        ({"correlation": "a"}, ValueError, "correlation must be .*, got 'a'"),
        ({"reference_first": "a"}, ValueError, r"reference_first must lie in .*, got 'a'"),
        ({"reference_first": -0.1}, ValueError, r"reference_first must lie in \[0, 1\], got -0.1"),
        ({"correlation": jnp.array([0.5, 1.0])}, ValueError, r"a number or a pair .*, got Array"),
        ({"reference_first": jnp.zeros(4)}, ValueError, r"reference_first must lie in .*, got Ar"),
        (
            {"num_ranks": jnp.ones(4, jnp.int32)},
            ValueError,
            r"num_ranks must have shape",
        ),
        ({"correlation": (0.5, 0.2)}, ValueError, r"a pair \(low, high\).*got \(0.5, 0.2\)"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        nf.sample_questions(jax.random.key(0), CONFIG, 4, **options)
