r"""Characters, batches and the trivial score of the character-level tasks.

The vocabulary is that of the authors' data set (google-deepmind/sonnet, branch v1,
``sonnet/examples/learn_to_execute.py``): 45 entries, 28 of which occur in programs and answers.
A token is an entry's index. Seven entries are whole words, which never occur when reading by
character. In `VOCABULARY` each of them is a character from Unicode's private area:

=====  ==========  =====  ==========  =====  ==========  =====  ==========
token  entry       token  entry       token  entry       token  entry
=====  ==========  =====  ==========  =====  ==========  =====  ==========
0      ``_unk_``   2      ``_eos_``   33     ``for``     41     ``range``
1      ``_null_``  31     ``else``    36     ``if``
=====  ==========  =====  ==========  =====  ==========  =====  ==========
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.typing import Array

VOCABULARY = "\ue000\ue001\ue002| !()*+-./0123456789:<=>[]ae\ue01ff\ue021gi\ue024lnor\ue029sx~"
"""45 characters; the token of a character is its index."""

PAD = VOCABULARY.index(".")
"""The token after the end of a sequence."""

START = VOCABULARY.index("~")
"""The start token of a decoder; it occurs in no sequence."""

ZERO = VOCABULARY.index("0")
"""The token of the digit 0; the other digits follow."""


class Batch(NamedTuple):
    """Sequences of characters and their answers, padded at the end with `PAD`.

    Attributes:
      inputs: ``[B, T_in]`` int32 tokens.
      input_mask: ``[B, T_in]`` bool, True at characters and False at padding.
      input_lengths: ``[B]`` int32, the number of characters.
      targets: ``[B, T_out]`` int32 tokens.
      target_mask: ``[B, T_out]`` bool.
      target_lengths: ``[B]`` int32.
    """

    inputs: Array
    input_mask: Array
    input_lengths: Array
    targets: Array
    target_mask: Array
    target_lengths: Array


def check_text(name: str, value: Any) -> None:
    """Raises unless `value` is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r} of type {type(value).__name__}")


def make_batch(inputs: Array, input_lengths: Array, targets: Array, target_lengths: Array) -> Batch:
    """A `Batch` from tokens and lengths; tokens after a sequence's end become padding."""
    input_mask = _before(input_lengths, inputs.shape[1])
    target_mask = _before(target_lengths, targets.shape[1])
    return Batch(
        inputs=jnp.where(input_mask, inputs.astype(jnp.int32), PAD),
        input_mask=input_mask,
        input_lengths=input_lengths.astype(jnp.int32),
        targets=jnp.where(target_mask, targets.astype(jnp.int32), PAD),
        target_mask=target_mask,
        target_lengths=target_lengths.astype(jnp.int32),
    )


def write_digits(digits: Array, lengths: Array, steps: int) -> Array:
    """Tokens ``[B, T]`` int32 of numbers, undefined after their ends.

    Args:
      digits: ``[D, B]`` uint32, the most significant first; a number uses the last ones.
      lengths: ``[B]`` int32, the number of digits of each number.
      steps: T.
    """
    step = jax.lax.broadcasted_iota(jnp.int32, (digits.shape[1], steps), 1)
    last = digits.shape[0] - 1
    place = jnp.minimum(last + 1 - lengths[:, None] + step, last)
    tokens = (ZERO + digits.astype(jnp.int32)).T
    return jnp.take_along_axis(tokens, place, axis=1, mode="promise_in_bounds")


def encode(text: str, steps: int, name: str = "text") -> np.ndarray:
    """The tokens of a text, padded at the end.

    >>> encode("5+7", 5)
    array([18,  9, 20, 11, 11], dtype=int32)

    Args:
      text: the text.
      steps: T, the number of tokens.
      name: name of the text in errors.

    Returns:
      ``[T]`` int32.

    Raises:
      ValueError: a character outside of the vocabulary, or more than `steps` characters.
      TypeError: `text` is not a string.
    """
    check_text(name, text)
    unknown = sorted(set(text) - set(VOCABULARY))
    if unknown:
        raise ValueError(f"{name} must consist of characters in VOCABULARY, got {unknown[0]!r}")
    if len(text) > steps:
        raise ValueError(f"{name} must have at most {steps} characters, got {len(text)}: {text!r}")
    tokens = np.full((steps,), PAD, np.int32)
    tokens[: len(text)] = [VOCABULARY.index(character) for character in text]
    return tokens


def decode(tokens: Any) -> str:
    """The text of one row of tokens, without the padding at its end.

    >>> decode(encode("(3+4)*5", 12))
    '(3+4)*5'

    Args:
      tokens: ``[T]`` integers (NumPy or JAX).

    Returns:
      The text.

    Raises:
      ValueError: `tokens` is not one row, or a token is not in the vocabulary.
    """
    row = np.asarray(tokens)
    if row.ndim != 1:
        raise ValueError(f"tokens must be one row [T], got shape {row.shape}")
    if row.size and not 0 <= row.min() <= row.max() < len(VOCABULARY):
        raise ValueError(f"tokens must lie in 0..{len(VOCABULARY) - 1}, got {row}")
    return "".join(VOCABULARY[token] for token in row).rstrip(VOCABULARY[PAD])


def constant_accuracy(targets: Array, mask: Array) -> Array:
    r"""The best score of a constant answer, one character for each position.

    .. math:: \frac{\sum_t \max_c |\{b : y_{bt} = c\}|}{\sum_t |\{b : y_{bt} \ne \mathrm{pad}\}|}

    Args:
      targets: ``[B, T]`` int32.
      mask: ``[B, T]`` bool, True at positions that count.

    Returns:
      A float32 scalar; 0 if no position counts.
    """
    token = jax.lax.broadcasted_iota(jnp.int32, (1, 1, len(VOCABULARY)), 2)
    is_token = targets[..., None] == token
    counts = jnp.sum(is_token & mask[..., None], axis=0, dtype=jnp.int32)
    total = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    return jnp.sum(jnp.max(counts, -1)).astype(jnp.float32) / total


def _before(lengths: Array, steps: int) -> Array:
    """``[B, T]``, whether a step is before the end of its sequence."""
    return jax.lax.broadcasted_iota(jnp.int32, (1, steps), 1) < lengths[:, None]
