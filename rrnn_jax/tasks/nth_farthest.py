r"""Nth Farthest: the paper's first task, which requires distances between objects.

"What is the n-th farthest vector (in Euclidean distance) from vector m?" (paper appendix A.1). A
sequence shows N objects, one per step, in random order. Each object is a vector
:math:`x \sim U(-1, 1)^d` with a label, drawn without replacement.
The question, n and m, is repeated at every step as one-hots:

.. math:: \mathrm{input}_t = (x_t; \; \mathrm{onehot}(l_t); \; \mathrm{onehot}(n);
    \; \mathrm{onehot}(m)) \in \mathbb{R}^{d + 3N}

The answer is the label of the object that is n-th farthest from the object labelled m, counted from
0. The reference is ranked too: ``n = 0`` asks for the farthest object, ``n = N - 1`` for the
reference itself.

**The trivial score is 2/N** (25 % for 8 objects, the score of the paper's LSTM and DNC). Without
distances, the answer to ``n = N - 1`` (one question in N) is still m, and for all other questions
one of the N - 1 other objects is a guess: :math:`1/N + (N-1)/N \cdot 1/(N-1) = 2/N`.

Distances are float32 sums of squares of exact differences (coordinates are multiples of 2^-22),
with an error of a few units in the last place: objects closer to a tie (1 in 100,000 samples of
8 x 16) may swap ranks. In an exact tie the object shown first is first; the reference is last.

**Easier questions, for training.** Uniform vectors are hard at the beginning. The model must learn
the product in :math:`|x - r|^2 = |x|^2 + |r|^2 - 2 \sum_i x_i r_i`, and in 16 dimensions the
cosine of x and the reference r has a deviation of only 1/4. With a correlation a in [0, 1],
coordinates of the other objects are the reference's, up to a sign:

.. math:: x_i = \begin{cases} s_i r_i & \text{with probability } a \\
    u_i \sim U(-1, 1) & \text{otherwise} \end{cases}, \quad
    P(s_i = +1) = p, \quad p \sim U(0, 1) \text{ for each object}

Every coordinate is still U(-1, 1) and all objects have the same mean length, but they range from
almost equal to almost opposite to the reference. One random coordinate of each object is never the
reference's, so there are no exact copies, which would tie. a = 0 is the paper's task. Questions can
also be restricted to the first ranks (for example only the farthest), and `answers_by_step` answers
the question at every step, for the objects shown so far.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from rrnn_jax.checks import check_between, check_positive, check_shape, is_number
from rrnn_jax.typing import Array

Correlation: TypeAlias = float | Array | tuple[float | Array, float | Array]
"""A number, or bounds between which each sequence draws its own; see `sample_questions`."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the task; the defaults are the paper's.

    >>> Config().input_size, Config().trivial_accuracy
    (40, 0.25)

    Attributes:
      num_objects: N, the objects and steps of a sequence (default: 8).
      num_features: size of an object's vector (default: 16).

    Raises:
      ValueError: fewer than 2 objects or 1 feature.
      TypeError: a size that is not an integer.
    """

    num_objects: int = 8
    num_features: int = 16

    def __post_init__(self) -> None:
        check_positive(least=2, num_objects=self.num_objects)
        check_positive(num_features=self.num_features)

    @property
    def input_size(self) -> int:
        """I, the width of one step's input: the vector and three one-hots."""
        return self.num_features + 3 * self.num_objects

    @property
    def trivial_accuracy(self) -> float:
        """The score without comparing distances, 2/N; see the module's description."""
        return 2 / self.num_objects


class Batch(NamedTuple):
    """Sequences and their answers.

    Attributes:
      inputs: ``[B, T, I]`` float32, with features (x; label; n; m); T = N unless fewer are shown.
      targets: ``[B]`` int32, the label of the answer, counted from 0.
    """

    inputs: Array
    targets: Array


class Question(NamedTuple):
    """The parts of an input.

    Attributes:
      vectors: ``[*B, T, d]`` float32, in the order shown.
      labels: ``[*B, T]`` int32, their labels.
      rank: ``[*B]`` int32, n.
      reference: ``[*B]`` int32, m, a label.
    """

    vectors: Array
    labels: Array
    rank: Array
    reference: Array


def sample(
    key: Array,
    config: Config,
    batch_size: int,
    *,
    num_shown: int | None = None,
    num_ranks: int | Array | None = None,
    correlation: Correlation | None = None,
) -> Batch:
    """Draws sequences and their answers; by default those of the paper.

    >>> import jax
    >>> batch = jax.jit(sample, static_argnums=(1, 2))(jax.random.key(0), Config(), 32)
    >>> batch.inputs.shape, batch.targets.shape
    ((32, 8, 40), (32,))

    Args:
      key: a PRNG key.
      config: sizes (static under jit).
      batch_size: B (static under jit).
      num_shown: T, see `sample_questions` for this and the other options.
      num_ranks: number of ranks to draw n from.
      correlation: correlation of the vectors with the reference.

    Returns:
      A `Batch`.

    Raises:
      ValueError, TypeError: see `sample_questions`.
    """
    question = sample_questions(
        key, config, batch_size, num_shown=num_shown, num_ranks=num_ranks, correlation=correlation
    )
    return Batch(encode(question, config), answer(question))


def sample_questions(
    key: Array,
    config: Config,
    batch_size: int,
    *,
    num_shown: int | None = None,
    num_ranks: int | Array | None = None,
    correlation: Correlation | None = None,
    reference_first: float | Array | None = None,
) -> Question:
    """Draws questions as `sample` does, without encoding them.

    >>> import jax
    >>> options = {"num_shown": 4, "num_ranks": 1, "correlation": (0.5, 1.0)}
    >>> draw = jax.jit(lambda key: sample_questions(key, Config(), 32, **options))
    >>> easy = draw(jax.random.key(0))
    >>> easy.vectors.shape, easy.labels.shape, int(easy.rank.max())
    ((32, 4, 16), (32, 4), 0)

    Args:
      key: a PRNG key.
      config: sizes (static under jit).
      batch_size: B (static under jit).
      num_shown: T, objects shown, between 2 and N (static under jit; default: N). Labels are
        still drawn from N, and inputs have the features for N objects.
      num_ranks: number of ranks, from the farthest, to draw n from (default: all T). A JAX array,
        traced or not, is clipped to 1..T.
      correlation: a, see the module's description: a number, or a pair (low, high) between which
        each sequence draws uniformly (default: uniform vectors). Values of arrays are not checked.
      reference_first: share of sequences whose reference is the first object; in the others it is
        random (default: 0). The value of an array, traced or not, is not checked.

    Returns:
      A `Question` with one batch axis.

    Raises:
      ValueError: `batch_size` below 1, an option out of range.
      TypeError: a size that is not an integer.
    """
    check_positive(batch_size=batch_size)
    steps = config.num_objects if num_shown is None else num_shown
    check_between("num_shown", steps, 2, config.num_objects)
    num_ranks = steps if num_ranks is None else num_ranks
    if isinstance(num_ranks, jax.Array):
        check_shape("num_ranks", num_ranks, (), "[]")
    else:
        check_between("num_ranks", num_ranks, 1, steps)
    for_vectors, for_labels, for_rank, for_reference = jax.random.split(key, 4)
    # Below 4 these would be keys of the split.
    for_correlation, for_first = jax.random.fold_in(key, 4), jax.random.fold_in(key, 5)
    bits = jax.random.bits(for_labels, (batch_size, config.num_objects), jnp.uint32)
    labels = _ranks(bits)[:, :steps]
    num_ranks = jnp.clip(jnp.asarray(num_ranks, jnp.int32), 1, steps)
    index = jax.random.randint(for_reference, (batch_size,), 0, steps, jnp.int32)
    is_reference = _ranks(labels) == index[:, None]
    if reference_first is not None:
        is_reference = _move_first(for_first, is_reference, reference_first)
    shape = (batch_size, steps, config.num_features)
    vectors = jax.random.uniform(for_vectors, shape, jnp.float32, -1.0, 1.0)
    if correlation is not None:
        vectors = _correlate(for_correlation, vectors, is_reference, correlation)
    return Question(
        vectors=vectors,
        labels=labels,
        rank=jax.random.randint(for_rank, (batch_size,), 0, num_ranks, jnp.int32),
        reference=jnp.sum(jnp.where(is_reference, labels, 0), axis=-1, dtype=jnp.int32),
    )


def _move_first(key: Array, is_reference: Array, share: float | Array) -> Array:
    """Makes the first object the reference, in a share of the sequences."""
    if not is_number(share) or not (isinstance(share, jax.Array) or 0 <= share <= 1):
        raise ValueError(f"reference_first must lie in [0, 1], got {share!r}")
    batch_size, steps = is_reference.shape
    moves = jax.random.uniform(key, (batch_size, 1), jnp.float32) < jnp.asarray(share, jnp.float32)
    is_first = jnp.arange(steps, dtype=jnp.int32)[None, :] == 0
    return jnp.where(moves, is_first, is_reference)


def _correlate(key: Array, vectors: Array, is_reference: Array, correlation: Correlation) -> Array:
    """Copies coordinates from the reference, up to a sign; see the module's description."""
    low, high = (jnp.asarray(bound, jnp.float32) for bound in _bounds(correlation))
    batch_size, steps, features = vectors.shape
    for_share, for_p, for_signs, for_own, for_copies = jax.random.split(key, 5)
    draw = functools.partial(jax.random.uniform, dtype=jnp.float32)
    share = low + (high - low) * draw(for_share, (batch_size, 1, 1))
    same_sign = draw(for_signs, vectors.shape) < draw(for_p, (batch_size, steps, 1))
    own = jax.random.randint(for_own, (batch_size, steps, 1), 0, features, jnp.int32)
    is_own = own == jnp.arange(features, dtype=jnp.int32)[None, None, :]
    is_copy = (draw(for_copies, vectors.shape) < share) & ~(is_own | is_reference[..., None])
    reference = _reference(vectors, is_reference)
    return jnp.where(is_copy, jnp.where(same_sign, reference, -reference), vectors)


def _bounds(correlation: Correlation) -> tuple[float | Array, float | Array]:
    pair: Any = correlation if isinstance(correlation, tuple) else (correlation, correlation)
    low, high = pair if len(pair) == 2 else (pair, pair)
    is_known = not any(isinstance(bound, jax.Array) for bound in (low, high))
    if not (is_number(low) and is_number(high)) or (is_known and not 0 <= low <= high <= 1):
        raise ValueError(
            f"correlation must be a number or a pair (low, high) in [0, 1], got {correlation!r}"
        )
    return low, high


def answer(question: Question) -> Array:
    """The label of the n-th farthest object from the reference.

    >>> import jax, jax.numpy as jnp
    >>> vectors = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, -0.9]])
    >>> labels = jnp.array([2, 0, 1])
    >>> question = Question(vectors, labels, jnp.array(0), jnp.array(2))
    >>> to_answer = jax.jit(answer)
    >>> [int(to_answer(question._replace(rank=jnp.array(n)))) for n in range(3)]
    [1, 0, 2]

    Args:
      question: a question with any batch axes.

    Returns:
      ``[*B]`` int32.
    """
    is_answer = _ranks(-_distances(question)) == question.rank[..., None]
    return jnp.sum(jnp.where(is_answer, question.labels, 0), axis=-1, dtype=jnp.int32)


def answers_by_step(question: Question) -> tuple[Array, Array]:
    """The answers to the question at every step, for the objects shown so far.

    Step t has an answer once the reference and more than n objects have been shown; the last one
    equals `answer`.

    >>> import jax, jax.numpy as jnp
    >>> vectors = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, -0.9]])
    >>> question = Question(vectors, jnp.array([2, 0, 1]), jnp.array(0), jnp.array(0))
    >>> answers, valid = jax.jit(answers_by_step)(question)
    >>> answers.tolist(), valid.tolist()
    ([2, 2, 1], [False, True, True])

    Args:
      question: a question with any batch axes.

    Returns:
      Labels ``[*B, T]`` int32, and ``[*B, T]`` bool: whether there is an answer; otherwise the
      label is meaningless.
    """
    labels, rank = question.labels, question.rank[..., None]
    order = jnp.arange(labels.shape[-1], dtype=jnp.int32)
    seen = order[None, :] <= order[:, None]  # [T, T]: at step t, object j.
    is_ahead = _is_ahead(-_distances(question))[..., None, :, :]  # [*B, 1, T, T]
    seen_here = jnp.broadcast_to(seen[:, None, :], (*labels.shape, *seen.shape))
    ranks = jnp.sum(is_ahead & seen_here, axis=-1, dtype=jnp.int32)  # [*B, T, T]
    is_answer = (ranks == rank[..., None]) & jnp.broadcast_to(seen, ranks.shape)
    answers = jnp.sum(jnp.where(is_answer, labels[..., None, :], 0), axis=-1, dtype=jnp.int32)
    is_reference = labels == question.reference[..., None]
    reference_seen = jnp.cumsum(is_reference, axis=-1, dtype=jnp.int32) > 0
    return answers, reference_seen & (jnp.broadcast_to(order, labels.shape) >= rank)


def encode(question: Question, config: Config) -> Array:
    """Encodes questions as inputs ``[*B, T, I]``, with features (x; label; n; m)."""
    count = config.num_objects
    vectors, labels, rank, reference = question
    asked = [
        jnp.broadcast_to(
            jax.nn.one_hot(x, count, dtype=jnp.float32)[..., None, :], (*labels.shape, count)
        )
        for x in (rank, reference)
    ]
    shown = jax.nn.one_hot(labels, count, dtype=jnp.float32)
    return jnp.concatenate([vectors, shown, *asked], axis=-1)


def decode(inputs: Array, config: Config) -> Question:
    """Decodes inputs, the inverse of `encode`.

    >>> import jax
    >>> config = Config(num_objects=4, num_features=2)
    >>> batch = jax.jit(sample, static_argnums=(1, 2))(jax.random.key(0), config, 16)
    >>> found = jax.jit(lambda inputs: answer(decode(inputs, config)))(batch.inputs)
    >>> bool((found == batch.targets).all())
    True

    Args:
      inputs: ``[*B, T, I]``.
      config: the sizes of the inputs.

    Returns:
      A `Question`.

    Raises:
      ValueError: the last axis does not match `config`.
    """
    if inputs.shape[-1] != config.input_size:
        raise ValueError(
            f"inputs must have d + 3N = {config.input_size} features, got shape {inputs.shape}"
        )
    start, count = config.num_features, config.num_objects
    label, rank, reference = (
        jnp.argmax(inputs[..., start + i * count : start + (i + 1) * count], -1).astype(jnp.int32)
        for i in range(3)
    )
    return Question(inputs[..., :start], label, rank[..., 0], reference[..., 0])


def accuracy(logits: Array, targets: Array) -> Array:
    """The share of sequences whose largest logit is that of the answer.

    Args:
      logits: ``[B, N]``.
      targets: ``[B]`` int32.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: `targets` have another shape.
    """
    check_shape("targets", targets, logits.shape[:-1], "[B]")
    chosen = jnp.argmax(logits, -1).astype(targets.dtype)
    return jnp.mean(chosen == targets, dtype=jnp.float32)


def _distances(question: Question) -> Array:
    """Squared distances from the reference ``[*B, T]``; its own is -1, so it is always last."""
    is_reference = question.labels == question.reference[..., None]
    difference = question.vectors - _reference(question.vectors, is_reference)
    return jnp.where(is_reference, -1.0, jnp.sum(jnp.square(difference), axis=-1))


def _reference(vectors: Array, is_reference: Array) -> Array:
    """The reference's vector ``[*B, 1, d]``, selected by a sum with zeros instead of a gather."""
    return jnp.sum(jnp.where(is_reference[..., None], vectors, 0.0), axis=-2, keepdims=True)


def _ranks(values: Array) -> Array:
    """The sorted position of each entry of the last axis; ties keep their order.

    Counting is quadratic, but it vectorises, unlike a sort of a few entries.
    """
    return jnp.sum(_is_ahead(values), axis=-1, dtype=jnp.int32)


def _is_ahead(values: Array) -> Array:
    """``[..., i, j]``: whether entry j is sorted before entry i."""
    count = values.shape[-1]
    mine, other = values[..., :, None], values[..., None, :]
    order = jnp.arange(count, dtype=jnp.int32)
    earlier = jnp.broadcast_to(order[None, :] < order[:, None], (*values.shape, count))
    return (other < mine) | ((other == mine) & earlier)
