"""Token files: a corpus as memory-mapped tokens, made once, with a manifest."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments.common import parallel
from experiments.common.records import read_json, write_json
from experiments.common.refused import RefusedError
from experiments.language_model.data.bpe import BytePairs
from experiments.language_model.data.corpus import (
    BUNDLED,
    FRACTIONS,
    SPLITS,
    Corpus,
    Format,
    describe_source,
    read_corpus,
    read_text,
    sources,
)
from experiments.language_model.data.vocabulary import (
    Bytes,
    Characters,
    Vocabulary,
    Words,
    count_words,
    vocabulary_from,
)

MANIFEST_FILE, VOCABULARY_FILE, COUNTS_FILE = "manifest.json", "vocabulary.json", "counts.npy"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text."""

    path: str | None = None
    """A text file or a folder. None: the included plays (1.1 MB)."""
    format: Format = "auto"
    """"text": a file; "books": a folder of text files; "wikitext": a folder with WikiText's files;
    "gigaword": a folder of SGML files; "auto": "text" for a file, else "wikitext" or "books"."""
    valid: tuple[str, ...] = ()
    """Names of the validation files, in the folder or beside the file."""
    test: tuple[str, ...] = ()
    """Names of the test files."""
    fractions: tuple[float, float, float] = FRACTIONS
    """Shares of one file: training, validation, test."""
    vocabulary: Literal["characters", "bytes", "words", "bpe"] = "characters"
    """The kind of tokens. "bpe" needs the extra `text`."""
    min_count: int = 1
    """With "words": those that occur less often in training become <unk>."""
    max_words: int | None = None
    """Size of the vocabulary at most (words: None for any; bpe: None for 4,096)."""
    split_punctuation: bool = True
    """With "words": whether punctuation marks are separate words. Disable it for tokenized texts
    (WikiText)."""

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {self.min_count}")
        if self.max_words is not None and self.max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {self.max_words}")
        if self.max_words is not None and self.vocabulary in ("characters", "bytes"):
            raise ValueError(
                f"max_words must be None with vocabulary={self.vocabulary!r}, got {self.max_words}"
            )


@dataclasses.dataclass(frozen=True)
class Split:
    """One split's tokens.

    Attributes:
      name: name of the split.
      tokens: ``[1 + n]``, mapped from the file; the first is the vocabulary's `start`, so that each
        token of the text is predicted once.
      bytes: number of bytes of its text in UTF-8.
      words: number of words between spaces and ends of lines (of its own words for a vocabulary of
        words).
    """

    name: str
    tokens: np.ndarray
    bytes: int
    words: int

    @property
    def targets(self) -> np.ndarray:
        """``[n]``, the tokens of the text."""
        return self.tokens[1:]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A tokenized corpus.

    Attributes:
      vocabulary: the vocabulary.
      splits: "train", and "valid" and "test" if they exist.
      counts: ``[V]``, the count of each token in training.
      manifest: sources, splits and options, as in ``manifest.json``.
    """

    vocabulary: Vocabulary
    splits: dict[str, Split]
    counts: np.ndarray
    manifest: dict[str, Any]


def prepare(config: DataConfig, directory: Path) -> Tokens:
    """Makes the token files of a corpus in a directory, or opens existing ones.

    Args:
      config: the text.
      directory: the parent of one folder for each text and vocabulary.

    Returns:
      The memory-mapped tokens: uint16 for vocabularies of up to 65,536, else uint32.

    Raises:
      RefusedError: a format of folders without a path; see `corpus` and `vocabulary`, too.
    """
    corpus, wanted, folder = parallel.every(lambda: _find(config, directory))

    def make() -> None:
        if not (folder / MANIFEST_FILE).exists():
            _make_whole(config, corpus, wanted, folder)

    parallel.first(make)
    return parallel.every(lambda: open_tokens(folder))


def _find(config: DataConfig, directory: Path) -> tuple[Corpus, dict[str, Any], Path]:
    """The corpus, what its manifest says of its making, and the folder of its token files."""
    if config.path is None and config.format not in ("auto", "text"):
        raise RefusedError(f"the format {config.format!r} needs --path, a folder")
    corpus = read_corpus(
        BUNDLED if config.path is None else Path(config.path),
        config.format,
        config.valid,
        config.test,
        config.fractions,
    )
    wanted = {
        "options": json.loads(json.dumps(dataclasses.asdict(config))),
        "sources": [describe_source(path) for path in sources(corpus)],
    }
    wanted["options"].pop("path")  # The path does not matter if the text is the same.
    order = sources(corpus)
    split_of = {n: [(order.index(p.path), p.start, p.stop) for p in s] for n, s in corpus.items()}
    digest = hashlib.sha256(json.dumps([wanted, split_of]).encode()).hexdigest()
    return corpus, wanted, directory / f"{config.vocabulary}-{digest[:12]}"


def open_tokens(folder: Path) -> Tokens:
    """Opens token files.

    Raises:
      RefusedError: they do not exist, or their lengths differ from the manifest.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise RefusedError(
            f"there is no {MANIFEST_FILE} in {folder}; all processes must share --tokens-dir"
        )
    manifest = read_json(path)
    splits = {}
    for name, entry in manifest["splits"].items():
        file = folder / f"{name}.bin"
        dtype = np.dtype(entry["dtype"])
        size = file.stat().st_size if file.exists() else 0
        if size != (1 + entry["tokens"]) * dtype.itemsize:
            raise RefusedError(
                f"{file} must hold 1 + {entry['tokens']} tokens of {dtype}, but has {size} bytes; "
                f"remove {folder} to have it created again"
            )
        tokens = np.memmap(file, dtype, mode="r")
        splits[name] = Split(name, tokens, entry["bytes"], entry["words"])
    vocabulary = vocabulary_from(read_json(folder / VOCABULARY_FILE))
    return Tokens(vocabulary, splits, np.load(folder / COUNTS_FILE), manifest)


def read_split(path: Path, vocabulary: Vocabulary) -> Split:
    """A file as a split of its own, in the tokens of an existing vocabulary.

    Raises:
      RefusedError: it cannot be read, or has a character that the vocabulary does not have.
    """
    text = read_text(path)
    try:
        tokens = vocabulary.encode(text)
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}") from None
    words = len(tokens) if vocabulary.kind == "words" else count_words(text)
    whole = np.concatenate([[vocabulary.start], tokens]).astype(np.int32)
    return Split(path.name, whole, len(text.encode()), words)


def make_vocabulary(config: DataConfig, corpus: Corpus) -> Vocabulary:
    """The vocabulary: words or byte pairs of the training split, or characters of all splits."""

    def texts(*splits: str) -> Iterator[str]:
        parts = (part for split in splits for part in corpus.get(split, ()))
        return (piece for part in parts for piece in part.pieces())

    if config.vocabulary == "bytes":
        return Bytes()
    if config.vocabulary == "characters":
        # From all splits, as usual, so that no text has an unknown character.
        return Characters("".join(character for text in texts(*SPLITS) for character in set(text)))
    if config.vocabulary == "words":
        return Words.of(
            texts("train"), config.min_count, config.max_words, config.split_punctuation
        )
    return BytePairs.of(texts("train"), config.max_words or 4096)


def _make_whole(config: DataConfig, corpus: Corpus, manifest: Any, folder: Path) -> None:
    """As `_make`, but the folder appears when it is complete; of two runs at once the first's."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        _make(config, corpus, manifest, temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / MANIFEST_FILE).exists():  # Of a crash of an earlier version.
                shutil.rmtree(folder)
                temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make(config: DataConfig, corpus: Corpus, manifest: dict[str, Any], folder: Path) -> None:
    vocabulary = make_vocabulary(config, corpus)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
    counts = np.zeros(vocabulary.size, np.int64)
    entries = {}
    for name, parts in corpus.items():
        digest, total = hashlib.sha256(), {"tokens": 0, "bytes": 0, "characters": 0, "words": 0}
        with (folder / f"{name}.bin").open("wb") as file:
            file.write(np.array([vocabulary.start], dtype).tobytes())
            for text in (piece for part in parts for piece in part.pieces()):
                tokens = vocabulary.encode(text)
                if name == "train":
                    counts += np.bincount(tokens, minlength=vocabulary.size)
                content = tokens.astype(dtype).tobytes()
                file.write(content)
                digest.update(content)
                words = len(tokens) if vocabulary.kind == "words" else count_words(text)
                sizes = (len(tokens), len(text.encode()), len(text), words)
                total = {key: total[key] + n for key, n in zip(total, sizes, strict=True)}
        if total["tokens"] == 0:
            why = " (no document of the type story)" if config.format == "gigaword" else ""
            raise RefusedError(f"the {name} split is empty{why}: {parts[0].path}")
        entries[name] = {**total, "dtype": dtype.name, "sha256": digest.hexdigest()}
    np.save(folder / COUNTS_FILE, counts)
    write_json(folder / VOCABULARY_FILE, vocabulary.state())
    whole = {**manifest, "vocabulary_size": vocabulary.size, "splits": entries}
    write_json(folder / MANIFEST_FILE, whole)
