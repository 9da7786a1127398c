"""Byte pairs with the `tokenizers` library (an extra), for any text and vocabulary size."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.common.refused import RefusedError


class BytePairs:
    """A byte-level vocabulary of byte pairs (Sennrich et al. 2016), trained on a text.

    Args:
      tokenizer: the library's JSON.

    Raises:
      RefusedError: `tokenizers` is not installed.
    """

    kind, by_frequency = "bpe", False

    def __init__(self, tokenizer: str) -> None:
        self._json = tokenizer
        self._tokenizer = _library().Tokenizer.from_str(tokenizer)
        values = {character: value for value, character in _byte_characters().items()}
        self._bytes = [
            bytes(values[character] for character in self._tokenizer.id_to_token(i))
            for i in range(self._tokenizer.get_vocab_size())
        ]

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> "BytePairs":
        """Learns `size` tokens, including the 256 bytes, from the training split.

        Raises:
          RefusedError: a size of 256 or less, or `tokenizers` is not installed.
        """
        if size <= 256:
            raise RefusedError(f"--max-words must be above 256 for byte pairs, got {size}")
        tokenizers = _library()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=sorted(_byte_characters().values()),
            show_progress=False,
        )
        lines = (line for text in texts for line in text.splitlines(keepends=True))
        tokenizer.train_from_iterator(lines, trainer)  # As they are encoded.
        return cls(tokenizer.to_str())

    @property
    def size(self) -> int:
        """V."""
        return len(self._bytes)

    @property
    def start(self) -> int:
        """The end of a line."""
        return self._bytes.index(b"\n")

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, line by line."""
        lines = self._tokenizer.encode_batch(text.splitlines(keepends=True))
        return np.array([token for line in lines for token in line.ids], np.int32)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the tokens; a character may span several tokens."""
        return b"".join(self._bytes[int(token)] for token in tokens)

    def state(self) -> dict[str, Any]:
        """The argument of `vocabulary_from`."""
        return {"kind": self.kind, "tokenizer": self._json}


def _byte_characters() -> dict[int, str]:
    """The character for each byte in the library's byte-level encoding.

    Bytes printable in Latin-1 represent themselves; the others are numbered from 256 on.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in shown]
    return {
        **{value: chr(value) for value in shown},
        **{value: chr(256 + i) for i, value in enumerate(hidden)},
    }


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise RefusedError(
            "byte pairs need the library tokenizers: pip install -e '.[text]'"
        ) from None
    return tokenizers
