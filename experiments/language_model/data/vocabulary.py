r"""Vocabularies of bytes, characters and words; byte pairs are in `bpe`.

All have ``kind``, ``size`` (V), ``start`` (the token before a text: ``<eos>`` for words, else the
end of a line), ``encode(text)``, ``decode(tokens) -> bytes`` and ``state()``, from which
`vocabulary_from` restores the vocabulary.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from experiments.common.refused import RefusedError

UNKNOWN, END = "<unk>", "<eos>"
# A word may contain straight or curved apostrophes; every other mark is a separate word.
_MARKS = re.compile(r"<\w+>|\w+(?:['\u2019]\w+)*|[^\w\s]")


class Vocabulary(Protocol):
    """The interface of vocabularies; see the module."""

    kind: str
    by_frequency: bool
    """Whether tokens are numbered by falling frequency, as an adaptive softmax requires."""

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def start(self) -> int: ...  # noqa: D102

    def encode(self, text: str) -> np.ndarray: ...  # noqa: D102

    def decode(self, tokens: Sequence[int]) -> bytes: ...  # noqa: D102

    def state(self) -> dict[str, Any]: ...  # noqa: D102


class Bytes:
    """The 256 values of a byte.

    >>> Bytes().encode("é").tolist(), Bytes().decode([195, 169]).decode()
    ([195, 169], 'é')
    """

    kind, by_frequency = "bytes", False
    size, start = 256, ord("\n")

    def encode(self, text: str) -> np.ndarray:
        """One number for each byte of UTF-8."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes."""
        return bytes(int(token) for token in tokens)

    def state(self) -> dict[str, Any]:
        """What `vocabulary_from` takes."""
        return {"kind": self.kind}


class Characters:
    """The characters of a text, sorted.

    >>> Characters("hello").encode("hole").tolist()
    [1, 3, 2, 0]

    Args:
      characters: any text that contains all of them.
    """

    kind, by_frequency = "characters", False

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self._codes = np.array([ord(c) for c in self.characters], np.int64)

    @property
    def size(self) -> int:
        """V."""
        return len(self.characters)

    @property
    def start(self) -> int:
        """The end of a line, or the first character if there is none."""
        return max(self.characters.find("\n"), 0)

    def encode(self, text: str) -> np.ndarray:
        """One number for each character.

        Raises:
          RefusedError: a character that the vocabulary does not have.
        """
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
        found = np.clip(np.searchsorted(self._codes, codes), 0, self.size - 1)
        unknown = codes[self._codes[found] != codes]
        if unknown.size:
            each = list(dict.fromkeys(unknown.tolist()))
            shown = " ".join(repr(chr(code)) for code in each[:10])
            others = f" and {len(each) - 10} others" if len(each) > 10 else ""
            raise RefusedError(
                f"the vocabulary of {self.size} characters does not have {shown}{others}"
            )
        return found.astype(np.int32)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The characters, in UTF-8."""
        return "".join(self.characters[int(token)] for token in tokens).encode()

    def state(self) -> dict[str, Any]:
        """What `vocabulary_from` takes."""
        return {"kind": self.kind, "characters": self.characters}


class Words:
    r"""Words by falling frequency (ties in order of the alphabet), ``<eos>`` at the end of a line.

    >>> words = Words.of(["a b a\n", "c\n"], min_count=2)
    >>> words.words, words.encode("b a\n").tolist()
    (['<eos>', '<unk>', 'a'], [1, 2, 0])

    Args:
      words: all of them, with ``<unk>`` and ``<eos>``.
      split_punctuation: whether punctuation marks are separate words. False: words are separated
        by spaces only, as in tokenized texts.
    """

    kind, by_frequency = "words", True

    def __init__(self, words: Sequence[str], split_punctuation: bool = False) -> None:
        self.words = list(words)
        self.split_punctuation = split_punctuation
        self._index = {word: i for i, word in enumerate(self.words)}

    @classmethod
    def of(
        cls,
        texts: Iterable[str],
        min_count: int = 1,
        max_size: int | None = None,
        split_punctuation: bool = False,
    ) -> "Words":
        """The frequent words of some texts; ``<unk>`` represents all others.

        Args:
          texts: the training split, in pieces of whole lines.
          min_count: the least count of a word.
          max_size: the most words, including ``<unk>`` and ``<eos>``; None for any number.
          split_punctuation: see the class.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_words(text, split_punctuation))
        counts[END] += 0
        kept = {w: n for w, n in counts.items() if n >= min_count or w in (UNKNOWN, END)}
        kept[UNKNOWN] = counts.get(UNKNOWN, 0) + sum(counts.values()) - sum(kept.values())
        order = sorted(kept, key=lambda word: (-kept[word], word))
        if max_size is not None and len(order) > max_size:
            order = _cut(order, kept, max_size)
        return cls(order, split_punctuation)

    @property
    def size(self) -> int:
        """V."""
        return len(self.words)

    @property
    def start(self) -> int:
        """``<eos>``."""
        return self._index[END]

    def encode(self, text: str) -> np.ndarray:
        """One number for each word, and one for each end of a line."""
        unknown = self._index[UNKNOWN]
        words = split_words(text, self.split_punctuation)
        return np.fromiter((self._index.get(word, unknown) for word in words), np.int32)

    def decode(self, tokens: Sequence[int]) -> bytes:
        """The words with a space after each; ``<eos>`` ends the line."""
        words = (self.words[int(token)] for token in tokens)
        return "".join("\n" if word == END else f"{word} " for word in words).encode()

    def state(self) -> dict[str, Any]:
        """What `vocabulary_from` takes."""
        return {
            "kind": self.kind,
            "words": self.words,
            "split_punctuation": self.split_punctuation,
        }


def split_words(text: str, split_punctuation: bool = False) -> Iterator[str]:
    r"""Words, with ``<eos>`` at the end of each line (blank ones too).

    >>> list(split_words("No, <unk>!\n\nYes", split_punctuation=True))
    ['No', ',', '<unk>', '!', '<eos>', '<eos>', 'Yes', '<eos>']
    """
    start = 0
    while start < len(text):  # Line by line: all words at once take many times the text's memory.
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else None]
        yield from _MARKS.findall(line) if split_punctuation else line.split()
        yield END
        start += len(line) + 1


def count_words(text: str) -> int:
    """The number of words and line ends, for perplexity per word."""
    return sum(1 for _ in split_words(text))


def encode_prompt(vocabulary: Vocabulary, prompt: str) -> np.ndarray:
    r"""The tokens of a prompt, without an implicit end of its last line.

    >>> words = Words.of(["a b\n"])
    >>> [encode_prompt(words, text).tolist() for text in ("", "a", "a\n")]
    [[], [1], [1, 0]]

    Raises:
      RefusedError: it is not text (a command line's bytes that are not UTF-8), or has a character
        that the vocabulary does not have.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(f"the prompt must be UTF-8, got {prompt!r}") from error
    tokens = vocabulary.encode(prompt) if prompt else np.zeros(0, np.int32)
    is_open = vocabulary.kind == "words" and not prompt.endswith("\n")
    return tokens[:-1] if is_open else tokens


def vocabulary_from(state: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary with this ``state()``.

    Raises:
      RefusedError: it is not the state of a vocabulary.
    """
    kind = state.get("kind")
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        return Characters(state["characters"])
    if kind == "words":
        return Words(state["words"], state["split_punctuation"])
    if kind == "bpe":
        from experiments.language_model.data.bpe import BytePairs

        return BytePairs(state["tokenizer"])
    raise RefusedError(f"this is not a vocabulary: kind {kind!r}")


def _cut(order: list[str], counts: Mapping[str, int], max_size: int) -> list[str]:
    """The first words including ``<unk>`` and ``<eos>``, with ``<unk>`` at its new rank."""
    if max_size < 3:
        raise RefusedError(f"--max-words must be at least 3, got {max_size}")
    plain = [word for word in order if word not in (UNKNOWN, END)]
    kept, dropped = plain[: max_size - 2], plain[max_size - 2 :]
    new = {word: counts[word] for word in [*kept, END]}
    new[UNKNOWN] = counts[UNKNOWN] + sum(counts[word] for word in dropped)
    return sorted(new, key=lambda word: (-new[word], word))
