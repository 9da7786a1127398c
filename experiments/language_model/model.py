"""The model: an embedding, a recurrent core over tokens, a softmax tied to the embedding."""

from typing import NamedTuple

import jax
from flax import linen as nn

from experiments.common import cells
from experiments.language_model.config import Config
from rrnn_jax import RNN
from rrnn_jax.language import (
    AdaptiveSoftmax,
    EmbeddingDropout,
    TiedEmbedding,
    VariationalDropout,
)
from rrnn_jax.typing import Array, Carry, Dtype, Implementation


class Read(NamedTuple):
    """The result of reading a window.

    Attributes:
      carry: the state after it.
      likelihood: ``[B, T]`` float32, log p of each target.
      outputs: ``[B, T, F]`` of the core.
      dropped: ``[B, T, F]``, the same after dropout.
    """

    carry: Carry
    likelihood: Array
    outputs: Array
    dropped: Array


class LanguageModel(nn.Module):
    """Predicts each next token of a text.

    Attributes:
      cell: the recurrent core.
      vocab_size: V.
      embedding_size: width of the embedding; a core of another width adds a projection.
      tied: whether the output's table embeds the input.
      cutoffs: cut-offs of an adaptive softmax; empty for a full one.
      word_dropout: rate of `EmbeddingDropout`.
      input_dropout: rate of `VariationalDropout` on the embeddings.
      output_dropout: rate of `VariationalDropout` on the outputs.
      implementation: how the core runs, see `rrnn_jax.RNN`.
      dtype: dtype of the products.
    """

    cell: nn.RNNCellBase
    vocab_size: int
    embedding_size: int
    tied: bool = True
    cutoffs: tuple[int, ...] = ()
    word_dropout: float = 0.0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    implementation: Implementation = "auto"
    dtype: Dtype | None = None

    def setup(self) -> None:
        """Makes the parts."""
        sizes = (self.vocab_size, self.embedding_size)
        width = cells.output_size(self.cell)
        if self.cutoffs:
            self.output = AdaptiveSoftmax(
                *sizes, self.cutoffs, hidden_features=width, dtype=self.dtype
            )
        else:
            self.output = TiedEmbedding(*sizes, hidden_features=width, dtype=self.dtype)
        if not self.tied:
            self.embedding = nn.Embed(*sizes, dtype=self.dtype)
        self.core = RNN(self.cell, implementation=self.implementation)
        self.drop_words = EmbeddingDropout(self.word_dropout, self.vocab_size)
        self.drop_inputs = VariationalDropout(self.input_dropout)
        self.drop_outputs = VariationalDropout(self.output_dropout)

    def __call__(
        self, inputs: Array, targets: Array, carry: Carry, deterministic: bool = True
    ) -> Read:
        """Reads a window.

        Args:
          inputs: ``[B, T]`` integers.
          targets: ``[B, T]`` integers, the next tokens.
          carry: the state before it.
          deterministic: False applies dropout, which needs a key ``dropout``.

        Returns:
          A `Read`.
        """
        embedded = self.drop_words(inputs, self._embed(inputs), deterministic)
        embedded = self.drop_inputs(embedded, deterministic)
        carry, outputs = self.core(embedded, initial_carry=carry, return_carry=True)
        dropped = self.drop_outputs(outputs, deterministic)
        return Read(carry, self.output(dropped, targets), outputs, dropped)

    def step(self, tokens: Array, carry: Carry) -> tuple[Carry, Array]:
        """Reads one token of each row.

        Args:
          tokens: ``[B]``.
          carry: the state before.

        Returns:
          The state after it, and the output ``[B, F]`` for `log_probs`.
        """
        return self.cell(carry, self._embed(tokens))

    def log_probs(self, outputs: Array) -> Array:
        """Log-probabilities of the next token, ``[..., V]`` in float32."""
        return self.output.log_probs(outputs)

    @nn.nowrap
    def initial_carry(self, rows: int) -> Carry:
        """The state before a text."""
        return self.cell.initialize_carry(jax.random.key(0), (rows, self.embedding_size))

    def _embed(self, tokens: Array) -> Array:
        return self.output.embed(tokens) if self.tied else self.embedding(tokens)


def make_model(config: Config, vocab_size: int) -> LanguageModel:
    """The model of a config.

    Raises:
      ValueError: `config.model` does not name one model.
    """
    text = config.text
    return LanguageModel(
        cells.make_cell(config, config.model, config.dtype),
        vocab_size,
        text.embedding_size,
        text.tied,
        text.cutoffs,
        text.word_dropout,
        text.input_dropout,
        text.output_dropout,
        config.implementation if config.model == "rmc" else "auto",
        cells.products(config.dtype),
    )
