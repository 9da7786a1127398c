"""The adaptive softmax: clusters of rare words with narrower vectors."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.checks import check_fields, check_number, check_positive, check_tuple
from rrnn_jax.initializers import fan_in_truncated_normal, normal_rows
from rrnn_jax.language.clusters import TOKENS_PER_CHUNK, cluster_log_likelihood
from rrnn_jax.language.tied_embedding import as_words, make_projection, project
from rrnn_jax.typing import Array, Dtype, Initializer, accumulation_dtype, widest


class AdaptiveSoftmax(nn.Module):
    r"""A softmax over words sorted by falling frequency, 0 the most frequent (Grave et al. 2017).

    With cut-offs :math:`c_0 < c_1 < \dots`, cluster j contains the words from :math:`c_j` up to
    :math:`c_{j+1}` (or V); the words before :math:`c_0` and one entry for each cluster are the
    head. With x the output of the network (projected, see `TiedEmbedding`), of width d,

    .. math::

        a &= \log\mathrm{softmax}([E_0 x; C x]) \\
        \log p(w) &= a_w & w < c_0 \\
        \log p(w) &= a_{c_0 + j}
            + \log\mathrm{softmax}(E_{j+1} P_j x)_{w - c_j} & w \text{ in cluster } j

    where :math:`P_j` projects to :math:`\max(1, \lfloor d / k^{j+1} \rfloor)` features for the
    divisor k. `__call__` computes a cluster only for the tokens that belong to it. Batch axes may
    be sharded over automatic axes of a mesh, or within `jax.shard_map`.

    `embed` shares the tables (Baevski & Auli 2019): the embedding of word w is its row times the
    transposed projection, :math:`x = E_{j+1,w-c_j} P_j` (rows), of width d. Without `embed` this is
    an output layer only.

    >>> import jax, jax.numpy as jnp
    >>> words = jnp.array([[3, 90, 11]])  # [B, T]
    >>> output = AdaptiveSoftmax(vocab_size=100, features=16, cutoffs=(10, 40))
    >>> hidden, apply = jnp.ones((1, 3, 16)), jax.jit(output.apply, static_argnames="method")
    >>> variables = jax.jit(output.init)(jax.random.key(0), hidden, words)
    >>> apply(variables, hidden, words).shape  # log p(word) of each step
    (1, 3)
    >>> apply(variables, words, method="embed").shape
    (1, 3, 16)
    >>> p = jnp.exp(apply(variables, hidden[:, :1], method="log_probs"))
    >>> bool(jnp.allclose(p.sum(), 1.0, atol=1e-5))
    True

    Attributes:
      vocab_size: V.
      features: d, width of the head's vectors and of the embedding.
      cutoffs: the first word of each cluster.
      divisor: k, the ratio of the widths of successive clusters (default: 4).
      hidden_features: width of the network's output; ``None`` (default) means `features`. Another
        width adds a projection, as in `TiedEmbedding`.
      use_bias: a bias for each entry of the head (default: False).
      tokens_per_chunk: see `cluster_log_likelihood`.
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters.
      param_dtype: dtype of the parameters (default: float32).
      embedding_init: initialiser of the tables (default: normal, 1/sqrt(width)).
      kernel_init: initialiser of the projections (default: truncated normal, 1/sqrt(fan-in)).

    Raises:
      ValueError: a size or divisor below 1, or cut-offs that do not increase from at least 1 to
        below V.
      TypeError: an attribute of the wrong type.
    """

    vocab_size: int
    features: int
    cutoffs: tuple[int, ...]
    divisor: float = 4.0
    hidden_features: int | None = None
    use_bias: bool = False
    tokens_per_chunk: int = TOKENS_PER_CHUNK
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    embedding_init: Initializer = normal_rows
    kernel_init: Initializer = fan_in_truncated_normal

    def __post_init__(self) -> None:
        check_fields(self, AdaptiveSoftmax)
        check_positive(
            vocab_size=self.vocab_size,
            features=self.features,
            tokens_per_chunk=self.tokens_per_chunk,
        )
        if self.hidden_features is not None:
            check_positive(hidden_features=self.hidden_features)
        check_tuple("(20, 40)", cutoffs=self.cutoffs)
        check_positive(0, **{f"cutoffs[{j}]": cutoff for j, cutoff in enumerate(self.cutoffs)})
        bounds = (0, *self.cutoffs, self.vocab_size)
        if len(bounds) < 3 or any(a >= b for a, b in itertools.pairwise(bounds)):
            raise ValueError(
                f"cutoffs must rise from at least 1 to below vocab_size={self.vocab_size}, "
                f"got {self.cutoffs}"
            )
        check_number(divisor=self.divisor)
        if not 1 <= self.divisor < math.inf:
            raise ValueError(f"divisor must be finite and at least 1, got {self.divisor}")
        super().__post_init__()

    @property
    def clusters(self) -> tuple[tuple[int, int], ...]:
        """The first word of each cluster, and the word after its last."""
        return tuple(itertools.pairwise((*self.cutoffs, self.vocab_size)))

    def setup(self) -> None:
        """Creates the parameters."""
        dtype, shortlist = self.param_dtype, self.cutoffs[0]
        self.head = self.param("head", self.embedding_init, (shortlist, self.features), dtype)
        entries = (len(self.cutoffs), self.features)
        self.entries = self.param("entries", self.embedding_init, entries, dtype)
        self.bias = (
            self.param("bias", nn.initializers.zeros, (shortlist + entries[0],), dtype)
            if self.use_bias
            else None
        )
        tails = []
        for j, (start, stop) in enumerate(self.clusters):
            width = max(1, int(self.features // self.divisor ** (j + 1)))
            name = f"tail_{j}"
            table = self.param(name, self.embedding_init, (stop - start, width), dtype)
            shape = (self.features, width)
            tails.append((table, self.param(f"{name}_projection", self.kernel_init, shape, dtype)))
        self.tails = tails
        self.projection = make_projection(
            self.features, self.hidden_features, self.dtype, self.param_dtype, self.kernel_init
        )

    def embed(self, words: Array) -> Array:
        """The embeddings ``[*B, T, features]`` of words ``[*B, T]``.

        Words are integers from 0 to V - 1; the embedding of all others is NaN.
        """
        words = as_words("words", words, self.vocab_size)
        head, shortlist = self._cast(self.head), self.cutoffs[0]
        rows = jnp.take(head, jnp.minimum(words, shortlist - 1), axis=0)
        embedded = jnp.where((words < shortlist)[..., None], rows, 0)
        for (start, stop), (table, projection) in zip(self.clusters, self.tails, strict=True):
            rows = jnp.take(self._cast(table), jnp.clip(words - start, 0, stop - start - 1), axis=0)
            inside = (words >= start) & (words < stop)
            embedded = jnp.where(inside[..., None], rows @ self._cast(projection).T, embedded)
        return jnp.where((words < self.vocab_size)[..., None], embedded, jnp.nan)

    def log_probs(self, hidden: Array) -> Array:
        """Log-probabilities of all words, ``[*B, T, V]`` in float32."""
        hidden = self._project(hidden)
        table, bias = self._head(hidden)
        head = jnp.matmul(hidden, table.T, preferred_element_type=accumulation_dtype())
        if bias is not None:
            head = head + bias.astype(head.dtype).reshape((1,) * (head.ndim - 1) + bias.shape)
        head = jax.nn.log_softmax(head)
        shortlist = self.cutoffs[0]
        parts = [head[..., :shortlist]]
        for j, (table, projection) in enumerate(self.tails):
            narrow = hidden @ self._cast(projection, hidden)
            logits = jnp.matmul(
                narrow,
                self._cast(table, hidden).T,
                preferred_element_type=accumulation_dtype(),
            )
            parts.append(head[..., shortlist + j, None] + jax.nn.log_softmax(logits))
        return jnp.concatenate(parts, axis=-1)

    def __call__(self, hidden: Array, targets: Array) -> Array:
        """Log-likelihood of targets.

        Args:
          hidden: ``[*B, T, hidden_features]``.
          targets: ``[*B, T]`` integers from 0 to V - 1; the result is NaN for all others.

        Returns:
          ``[*B, T]`` in float32. It has no forward-mode derivative.
        """
        targets = as_words("targets", targets, self.vocab_size)
        hidden = self._project(hidden)
        table, bias = self._head(hidden)
        shortlist = self.cutoffs[0]
        entry, total = targets, jnp.float32(0)
        for j, ((start, stop), (tail, projection)) in enumerate(
            zip(self.clusters, self.tails, strict=True)
        ):
            inside = (targets >= start) & (targets < stop)
            entry = jnp.where(inside, shortlist + j, entry)
            total = total + cluster_log_likelihood(
                hidden @ self._cast(projection, hidden),
                self._cast(tail, hidden),
                targets - start,
                inside,
                tokens_per_chunk=self.tokens_per_chunk,
            )
        everywhere = jnp.ones(targets.shape, bool)
        total = total + cluster_log_likelihood(
            hidden, table, entry, everywhere, bias, self.tokens_per_chunk
        )
        return jnp.where(targets < self.vocab_size, total, jnp.full_like(total, jnp.nan))

    def _head(self, hidden: Array) -> tuple[Array, Array | None]:
        return self._cast(jnp.concatenate([self.head, self.entries]), hidden), self.bias

    def _cast(self, array: Array, like: Array | None = None) -> Array:
        dtype = self.dtype if like is None else like.dtype
        return array if dtype is None else array.astype(dtype)

    def _project(self, hidden: Array) -> Array:
        hidden = project(self, hidden)
        dtype = widest(hidden.dtype, self.param_dtype) if self.dtype is None else self.dtype
        return hidden.astype(dtype)
