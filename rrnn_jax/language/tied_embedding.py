"""An embedding that shares its table with the output layer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.attention import promote
from rrnn_jax.checks import as_int32, check_fields, check_positive, check_shape
from rrnn_jax.initializers import fan_in_truncated_normal, normal_rows
from rrnn_jax.typing import Array, Dtype, Initializer, accumulation_dtype


class TiedEmbedding(nn.Module):
    r"""One table for the input embedding and the output logits (Press & Wolf 2017).

    .. math::

        x_t &= E_{w_t} \\
        \log p(\cdot \mid h_t) &= \log\mathrm{softmax}(E (P h_t) + b)

    The projection P, without bias, exists if the widths of the network's output and the embedding
    differ: 2,500 and 512 in section 4.4 of Santoro et al. 2018.

    >>> import jax, jax.numpy as jnp
    >>> words = jnp.array([[3, 1, 2]])  # [B, T]
    >>> output = TiedEmbedding(vocab_size=5, features=4, hidden_features=6)
    >>> variables = jax.jit(output.init)(jax.random.key(0), jnp.ones((1, 3, 6)), words)
    >>> output.apply(variables, words, method="embed").shape
    (1, 3, 4)
    >>> jax.jit(output.apply)(variables, jnp.ones((1, 3, 6)), words).shape  # log p(word)
    (1, 3)

    Without `embed` it is an ordinary output layer.

    Attributes:
      vocab_size: V.
      features: width of the embedding.
      hidden_features: width of the network's output; ``None`` (default) means `features`. Another
        width adds the projection.
      use_bias: a bias for each word (default: True).
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters.
      param_dtype: dtype of the parameters (default: float32).
      embedding_init: initialiser of the table (default: normal, 1/sqrt(features)).
      kernel_init: initialiser of the projection (default: truncated normal, 1/sqrt(fan-in)).

    Raises:
      ValueError: a size below 1.
      TypeError: an attribute of the wrong type.
    """

    vocab_size: int
    features: int
    hidden_features: int | None = None
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    embedding_init: Initializer = normal_rows
    kernel_init: Initializer = fan_in_truncated_normal

    def __post_init__(self) -> None:
        check_positive(vocab_size=self.vocab_size, features=self.features)
        if self.hidden_features is not None:
            check_positive(hidden_features=self.hidden_features)
        check_fields(self, TiedEmbedding)
        super().__post_init__()

    def setup(self) -> None:
        """Creates the parameters."""
        shape = (self.vocab_size, self.features)
        self.embedding = self.param("embedding", self.embedding_init, shape, self.param_dtype)
        self.bias = (
            self.param("bias", nn.initializers.zeros, (self.vocab_size,), self.param_dtype)
            if self.use_bias
            else None
        )
        self.projection = make_projection(
            self.features, self.hidden_features, self.dtype, self.param_dtype, self.kernel_init
        )

    def embed(self, words: Array) -> Array:
        """The embeddings ``[*B, T, features]`` of words ``[*B, T]``.

        Words are integers from 0 to V - 1; the embedding of all others is NaN.
        """
        embedded = jnp.take(self.embedding, as_words("words", words, self.vocab_size), axis=0)
        return embedded if self.dtype is None else embedded.astype(self.dtype)

    def logits(self, hidden: Array) -> Array:
        """Logits ``[*B, T, V]`` in float32 of outputs ``[*B, T, hidden_features]``."""
        hidden, table = promote(project(self, hidden), self.embedding, dtype=self.dtype)
        logits = jnp.matmul(hidden, table.T, preferred_element_type=accumulation_dtype())
        if self.bias is None:
            return logits
        bias = self.bias.astype(logits.dtype)
        return logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape)

    def log_probs(self, hidden: Array) -> Array:
        """Log-probabilities of all words, ``[*B, T, V]`` in float32."""
        return jax.nn.log_softmax(self.logits(hidden))

    def __call__(self, hidden: Array, targets: Array) -> Array:
        """Log-likelihood of targets.

        Args:
          hidden: ``[*B, T, hidden_features]``.
          targets: ``[*B, T]`` integers from 0 to V - 1; the result is NaN for all others.

        Returns:
          ``[*B, T]`` in float32.
        """
        logits = self.logits(hidden)
        targets = as_words("targets", targets, self.vocab_size)
        check_shape("targets", targets, hidden.shape[:-1], "[*B, T]")
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)


def as_words(name: str, words: Array, vocab_size: int) -> Array:
    """Words ``[*B, T]`` as int32, with V for all outside the vocabulary.

    JAX reads a negative index from the end, and gives NaN beyond it.
    """
    words = as_int32(name, words, "[*B, T]")
    return jnp.where((words >= 0) & (words < vocab_size), words, vocab_size)


def project(module: Any, hidden: Array) -> Array:
    """The network's output in the width of the embedding; raises unless it has the right width."""
    width = module.features if module.hidden_features is None else module.hidden_features
    if hidden.shape[-1:] != (width,):
        raise ValueError(
            f"hidden must have {width} features, got shape {tuple(hidden.shape)}; hidden_features "
            "must be its width"
        )
    return hidden if module.projection is None else module.projection(hidden)


def make_projection(
    features: int,
    hidden_features: int | None,
    dtype: Dtype | None,
    param_dtype: Dtype,
    kernel_init: Initializer,
) -> nn.Dense | None:
    """The projection from outputs to the embedding's width; None if the widths agree."""
    if hidden_features is None or hidden_features == features:
        return None
    return nn.Dense(
        features,
        use_bias=False,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=kernel_init,
        promote_dtype=promote,
    )
