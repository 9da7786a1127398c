"""Dropout for recurrent language models: one mask per sequence, and dropout of whole words."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.checks import as_int32, check_positive, check_rate, check_shape
from rrnn_jax.typing import Array


class VariationalDropout(nn.Module):
    r"""Dropout with one mask for all steps of a sequence (Gal & Ghahramani 2016).

    .. math:: y_{b,t,i} = m_{b,i} \, x_{b,t,i} / (1 - p), \qquad P(m_{b,i} = 1) = 1 - p

    The mask is drawn from the ``dropout`` key at every call, so each window of a sequence has a new
    one.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.ones((2, 5, 8))  # [B, T, I]
    >>> key = {"dropout": jax.random.key(0)}
    >>> y = VariationalDropout(0.5).apply({}, x, deterministic=False, rngs=key)
    >>> bool((y == y[:, :1]).all()), sorted(set(y.ravel().tolist()))
    (True, [0.0, 2.0])

    Attributes:
      rate: p, the share of features that are dropped.

    Raises:
      ValueError: a rate outside [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        check_rate(rate=self.rate)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Array, deterministic: bool) -> Array:
        """Drops features.

        Args:
          inputs: ``[*B, T, I]``.
          deterministic: True returns the inputs.

        Returns:
          ``[*B, T, I]``, scaled so that its mean is that of the inputs.
        """
        # Broadcasts over the time axis, which is -2 for any number of batch axes.
        return nn.Dropout(self.rate, broadcast_dims=(-2,))(inputs, deterministic)


class EmbeddingDropout(nn.Module):
    r"""Dropout of words at all their positions (Gal & Ghahramani 2016; AWD-LSTM).

    .. math:: y_{b,t} = m_{w_{b,t}} \, e_{b,t} / (1 - p), \qquad P(m_v = 1) = 1 - p

    for the word :math:`w_{b,t}` and its embedding :math:`e_{b,t}`. This equals dropout of the
    table's rows, without a copy of the table.

    >>> import jax, jax.numpy as jnp
    >>> words, embedded = jnp.array([[3, 1, 3, 0]]), jnp.ones((1, 4, 2))
    >>> y = EmbeddingDropout(0.5, vocab_size=4).apply(
    ...     {}, words, embedded, deterministic=False, rngs={"dropout": jax.random.key(1)})
    >>> bool((y[:, 0] == y[:, 2]).all())
    True

    Attributes:
      rate: p, the share of words that are dropped.
      vocab_size: V.

    Raises:
      ValueError: a rate outside [0, 1), a vocabulary below 1, or words and embeddings of other
        shapes.
      TypeError: words that are not integers.
    """

    rate: float
    vocab_size: int

    def __post_init__(self) -> None:
        check_rate(rate=self.rate)
        check_positive(vocab_size=self.vocab_size)
        super().__post_init__()

    @nn.compact
    def __call__(self, words: Array, embedded: Array, deterministic: bool) -> Array:
        """Drops words.

        Args:
          words: ``[*B, T]`` integers from 0 to V - 1.
          embedded: ``[*B, T, I]``, their embeddings.
          deterministic: True returns the embeddings.

        Returns:
          ``[*B, T, I]``.
        """
        words = as_int32("words", words, "[*B, T]")
        check_shape("words", words, embedded.shape[:-1], "[*B, T]")
        if deterministic or self.rate == 0.0:
            return embedded
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (self.vocab_size,))
        mask = jnp.take(kept, words, axis=0)[..., None].astype(embedded.dtype)
        return embedded * (mask / jnp.asarray(1 - self.rate, embedded.dtype))
