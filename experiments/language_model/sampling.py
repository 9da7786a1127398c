"""Text generation: tokens are sampled in chunks, with one call of the device each."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.problem import Params
from experiments.language_model.model import LanguageModel

READ_CHUNK = 256
CHUNK = 32
"""Tokens per call of the device: enough to be fast, few enough to print incrementally."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the next token is sampled.

    Attributes:
      temperature: divisor of the log-probabilities; 0 (or less than 1e-6) selects the most likely
        token.
      top_k: sample from the k most likely tokens, and those as likely as the last of them; None for
        all.
      top_p: sample from the fewest most likely tokens whose probabilities sum to p, and those as
        likely as the last of them; 1 for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


def draw(key: jax.Array, log_probs: jax.Array, choice: Choice) -> jax.Array:
    """Samples a token for each row.

    The temperature is applied first, then `top_k`, then `top_p` to the remaining tokens.

    >>> log_probs = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    >>> draw(jax.random.key(0), log_probs, Choice(temperature=0.0))
    Array([0], dtype=int32)

    Args:
      key: a PRNG key.
      log_probs: ``[B, V]``.
      choice: how tokens are sampled.

    Returns:
      ``[B]`` int32.
    """
    if choice.temperature < 1e-6:  # Divided by less, the log-probabilities may become infinite.
        return jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
    log_probs = log_probs / choice.temperature
    vocab_size = log_probs.shape[-1]
    if choice.top_k is not None and choice.top_k < vocab_size:
        least = jax.lax.top_k(log_probs, choice.top_k)[0][..., -1:]
        log_probs = jnp.where(log_probs < least, -jnp.inf, log_probs)
    if choice.top_p < 1:
        falling = jnp.sort(log_probs, axis=-1, descending=True)
        shares = jax.nn.softmax(falling)
        before = jnp.cumsum(shares, axis=-1) - shares
        least = jnp.min(jnp.where(before < choice.top_p, falling, jnp.inf), -1, keepdims=True)
        log_probs = jnp.where(log_probs < least, -jnp.inf, log_probs)
    return jax.random.categorical(key, log_probs).astype(jnp.int32)


class Session(NamedTuple):
    """The state of generation for rows of text.

    Attributes:
      carry: the core's state after all but the last token.
      last: ``[B]`` int32, the last token, which is not read yet.
      written: number of sampled tokens, on which random numbers depend.
    """

    carry: Any
    last: np.ndarray
    written: int


class Writer:
    """A model that reads and writes.

    The text of a seed does not depend on chunks, calls and sessions: token n is sampled with
    ``fold_in(key(seed), n)``, one key for all rows.

    Args:
      model: the model.
      params: its parameters.
      choice: how tokens are sampled.
      chunk: the most tokens in one call of the device.
    """

    def __init__(
        self, model: LanguageModel, params: Params, choice: Choice, chunk: int = CHUNK
    ) -> None:
        self.model, self.params, self.choice, self.chunk = model, params, choice, chunk
        self._read = jax.jit(self._make_read())
        self._write = jax.jit(self._make_write())

    def start(self, token: int) -> Session:
        """One row before a text; `token` is the vocabulary's `start`."""
        return Session(self.model.initial_carry(1), np.array([token], np.int32), 0)

    def read(self, session: Session, tokens: np.ndarray) -> Session:
        """Reads tokens ``[n]`` into every row, in several calls with constant memory."""
        carry, last = session.carry, session.last
        rows = len(last)
        for first in range(0, len(tokens), READ_CHUNK):
            chunk = np.asarray(tokens[first : first + READ_CHUNK], np.int32)
            # Padded, so that there is one program; the padding is not read.
            filled = np.zeros(READ_CHUNK, np.int32)
            filled[1 : len(chunk)] = chunk[:-1]
            inputs = np.broadcast_to(filled, (rows, READ_CHUNK)).copy()
            inputs[:, 0] = last
            carry = self._read(self.params, carry, inputs, np.int32(len(chunk)))
            last = np.full(rows, chunk[-1], np.int32)
        return Session(carry, last, session.written)

    def branch(self, session: Session, rows: int) -> Session:
        """Many rows that continue a session of one row.

        Raises:
          ValueError: the session has several rows.
        """
        if len(session.last) != 1:
            raise ValueError(f"session must have one row, got {len(session.last)}")
        carry = jax.tree.map(lambda x: np.repeat(np.asarray(x), rows, axis=0), session.carry)
        return Session(carry, np.repeat(session.last, rows), session.written)

    def write(self, session: Session, count: int, seed: int) -> tuple[Session, np.ndarray]:
        """Writes tokens.

        Args:
          session: the session to continue.
          count: number of tokens.
          seed: seed of the sampling.

        Returns:
          The session after them, and the tokens ``[B, count]``.
        """
        found = list(self.stream(session, count, seed))
        return found[-1][0], np.concatenate([tokens for _, tokens in found], axis=1)

    def stream(
        self, session: Session, count: int, seed: int
    ) -> Iterator[tuple[Session, np.ndarray]]:
        """As `write`, a chunk at a time."""
        key = jax.random.key(seed)
        for first in range(0, count, self.chunk):
            size = min(self.chunk, count - first)
            carry, last, tokens = self._write(
                self.params,
                (session.carry, session.last),
                key,
                np.int32(session.written),
                np.int32(size),
            )
            session = Session(carry, np.asarray(last), session.written + size)
            yield session, np.asarray(tokens)[:size].T

    def _make_read(self) -> Any:
        def read(params: Params, carry: Any, inputs: jax.Array, count: jax.Array) -> Any:
            def body(i: jax.Array, carry: Any) -> Any:
                return self.model.apply(params, inputs[:, i], carry, method="step")[0]

            return jax.lax.fori_loop(0, count, body, carry)

        return read

    def _make_write(self) -> Any:
        def write(params: Params, state: tuple, key: jax.Array, start: jax.Array, count: jax.Array):
            def body(i: jax.Array, now: tuple) -> tuple:
                carry, token, tokens = now
                carry, output = self.model.apply(params, token, carry, method="step")
                log_probs = jnp.asarray(self.model.apply(params, output, method="log_probs"))
                token = draw(jax.random.fold_in(key, start + i), log_probs, self.choice)
                return carry, token, tokens.at[i].set(token)

            carry, token = state
            tokens = jnp.zeros((self.chunk, token.shape[0]), jnp.int32)
            return jax.lax.fori_loop(0, count, body, (carry, token, tokens))

        return write
