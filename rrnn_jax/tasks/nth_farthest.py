r"""Nth Farthest: the first of the paper's tasks, which asks for distances between objects.

"What is the n-th farthest vector (in Euclidean distance) from vector m?" (paper appendix A.1). A
sequence shows N objects, one per step, in an order that says nothing. Each object is a vector
:math:`x \sim U(-1, 1)^d` with a label, drawn without replacement.
The question, n and m, is repeated at every step as one-hots:

.. math:: \mathrm{input}_t = (x_t; \; \mathrm{onehot}(l_t); \; \mathrm{onehot}(n);
    \; \mathrm{onehot}(m)) \in \mathbb{R}^{d + 3N}

The answer is the label of the object that is n-th farthest from the object labelled m, counted from
0. The reference is ranked too: ``n = 0`` asks for the farthest object, ``n = N - 1`` for the
reference itself.

**The trivial score is 2/N** (25 % for 8 objects, where the paper's LSTM and DNC stay). Who compares
no distances still knows that ``n = N - 1`` (one question in N) asks for m, and guesses one of the
N - 1 other objects at all other times: :math:`1/N + (N-1)/N \cdot 1/(N-1) = 2/N`.

Distances are compared as float32 sums of squares. Coordinates lie on a grid of 2^-22, so that the
differences are exact and the sums are off by a few units in the last place. Two objects nearer to a
tie than that (about 1 in 100,000 samples of 8 x 16) may trade ranks; the reference is
last in any case, and exact ties go to the object shown first.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.checks import check_positive
from rrnn_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the task; the defaults are the paper's.

    >>> Config().input_size, Config().trivial_accuracy
    (40, 0.25)

    Attributes:
      num_objects: N, objects in a sequence, which is as many steps long (default: 8).
      num_features: size of an object's vector (default: 16).

    Raises:
      ValueError: fewer than 2 objects or 1 feature.
      TypeError: a size that is not an integer.
    """

    num_objects: int = 8
    num_features: int = 16

    def __post_init__(self) -> None:
        check_positive(num_objects=self.num_objects, num_features=self.num_features)
        if self.num_objects < 2:
            raise ValueError(f"num_objects must be at least 2, got {self.num_objects}")

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
      inputs: ``[B, T, I]`` float32 with T = N, laid out (x; label; n; m).
      targets: ``[B]`` int32, the label of the answer, counted from 0.
    """

    inputs: Array
    targets: Array


class Question(NamedTuple):
    """What an input says, taken apart.

    Attributes:
      vectors: ``[*B, T, d]`` float32 in the order shown.
      labels: ``[*B, T]`` int32, the label of each.
      rank: ``[*B]`` int32, n.
      reference: ``[*B]`` int32, m, a label.
    """

    vectors: Array
    labels: Array
    rank: Array
    reference: Array


def sample(key: Array, config: Config, batch_size: int) -> Batch:
    """Draws sequences and their answers.

    >>> import jax
    >>> batch = jax.jit(sample, static_argnums=(1, 2))(jax.random.key(0), Config(), 32)
    >>> batch.inputs.shape, batch.targets.shape
    ((32, 8, 40), (32,))

    Args:
      key: a PRNG key.
      config: sizes (static under jit).
      batch_size: B (static under jit).

    Returns:
      A `Batch`.

    Raises:
      ValueError: `batch_size` below 1.
    """
    check_positive(batch_size=batch_size)
    count = config.num_objects
    for_vectors, for_labels, for_rank, for_reference = jax.random.split(key, 4)
    shape = (batch_size, count, config.num_features)
    question = Question(
        vectors=jax.random.uniform(for_vectors, shape, jnp.float32, -1.0, 1.0),
        labels=_ranks(jax.random.bits(for_labels, (batch_size, count), jnp.uint32)),
        rank=jax.random.randint(for_rank, (batch_size,), 0, count, jnp.int32),
        reference=jax.random.randint(for_reference, (batch_size,), 0, count, jnp.int32),
    )
    return Batch(encode(question, config), answer(question))


def answer(question: Question) -> Array:
    """The label of the n-th farthest object from the reference.

    >>> import jax.numpy as jnp
    >>> vectors = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.0, -0.9]])
    >>> labels = jnp.array([2, 0, 1])
    >>> [int(answer(Question(vectors, labels, jnp.array(n), jnp.array(2)))) for n in range(3)]
    [1, 0, 2]

    Args:
      question: with any batch axes.

    Returns:
      ``[*B]`` int32.
    """
    vectors, labels, rank, reference = question
    is_reference = labels == reference[..., None]
    # A sum of one vector and zeros picks the reference without a gather.
    chosen = jnp.where(is_reference[..., None], vectors, 0.0)
    difference = vectors - jnp.sum(chosen, axis=-2, keepdims=True)
    distance = jnp.sum(jnp.square(difference), axis=-1)
    distance = jnp.where(is_reference, -1.0, distance)  # Last, even behind a twin.
    is_answer = _ranks(-distance) == rank[..., None]
    return jnp.sum(jnp.where(is_answer, labels, 0), axis=-1, dtype=jnp.int32)


def encode(question: Question, config: Config) -> Array:
    """Writes questions as inputs ``[*B, T, I]``, laid out (x; label; n; m)."""
    count = config.num_objects
    vectors, labels, rank, reference = question
    asked = [
        jnp.broadcast_to(jax.nn.one_hot(x, count)[..., None, :], (*labels.shape, count))
        for x in (rank, reference)
    ]
    return jnp.concatenate([vectors, jax.nn.one_hot(labels, count), *asked], axis=-1)


def decode(inputs: Array, config: Config) -> Question:
    """Reads inputs back, the inverse of `encode`.

    >>> import jax
    >>> config = Config(num_objects=4, num_features=2)
    >>> batch = sample(jax.random.key(0), config, 16)
    >>> bool((answer(decode(batch.inputs, config)) == batch.targets).all())
    True

    Args:
      inputs: ``[*B, T, I]``.
      config: the sizes they were made with.

    Returns:
      A `Question`.

    Raises:
      ValueError: the last axis does not fit `config`.
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
    """The share of sequences whose largest logit is at the answer.

    Args:
      logits: ``[B, N]``.
      targets: ``[B]`` int32.

    Returns:
      A float32 scalar.
    """
    return jnp.mean(jnp.argmax(logits, -1) == targets, dtype=jnp.float32)


def _ranks(values: Array) -> Array:
    """The position that each entry of the last axis would be sorted to; ties keep their order.

    Counting is quadratic but vectorises, which a sort of a few entries does not.
    """
    count = values.shape[-1]
    mine, other = values[..., :, None], values[..., None, :]
    earlier = jnp.arange(count)[:, None] > jnp.arange(count)[None, :]
    ahead = (other < mine) | ((other == mine) & jnp.broadcast_to(earlier, (*values.shape, count)))
    return jnp.sum(ahead, axis=-1, dtype=jnp.int32)
