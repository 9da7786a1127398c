"""Readers: files on disk as a training, a validation and a test split of text."""

import codecs
import gzip
import hashlib
import html
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.common.refused import RefusedError

Format = Literal["auto", "text", "books", "wikitext", "gigaword"]
SPLITS = ("train", "valid", "test")
PIECE = 1 << 20
"""Bytes of a file that are read at a time."""
BUNDLED = Path(__file__).with_name("tinyshakespeare.txt.gz")
# PG-19's folders, and other common names.
_FOLDERS = {"train": ("train",), "valid": ("valid", "validation", "val"), "test": ("test",)}
_WIKITEXT = ("wiki.{}.tokens", "wiki.{}.raw", "{}.txt")
FRACTIONS = (0.9, 0.1, 0.0)


class Part(NamedTuple):
    """A file, or a share of one, as text.

    Attributes:
      path: the file; ``.gz`` is unpacked.
      start: the beginning of the share, between 0 and 1, in characters.
      stop: its end.
      clean: a function applied to the file's text.
    """

    path: Path
    start: float = 0.0
    stop: float = 1.0
    clean: Callable[[str], str] | None = None

    def pieces(self) -> Iterator[str]:
        """The text, with the line ends of the file, in pieces of whole lines.

        Only the last piece may end within a line, so the words of the pieces are those of the text.
        """

        def read() -> Iterator[str]:
            whole = read_pieces(self.path)
            return whole if self.clean is None else iter([self.clean("".join(whole))])

        if (self.start, self.stop) == (0.0, 1.0):
            yield from read()
            return
        length = sum(map(len, read()))
        first, last = int(length * self.start), int(length * self.stop)
        for piece in read():
            share = piece[max(first, 0) : max(last, 0)]
            if share:
                yield share
            first, last = first - len(piece), last - len(piece)


Corpus = dict[str, tuple[Part, ...]]
"""The parts of each split; "train" always exists."""


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
      RefusedError: see `read_pieces`.
    """
    return "".join(read_pieces(path))


def read_pieces(path: Path) -> Iterator[str]:
    """A file's text in pieces of whole lines, so that memory depends on the longest line only.

    Raises:
      RefusedError: the file does not exist, is empty, or is not UTF-8.
    """
    if not path.is_file():
        raise RefusedError(f"there is no file {path}")
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, offset = "", 0
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        block = b"not yet read"
        while block:
            try:
                block = file.read(PIECE)
                held += decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # The error's bytes begin with those kept from the block before.
                first = offset + len(block) - len(error.object) + error.start
                raise RefusedError(
                    f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {first}"
                ) from None
            except (OSError, EOFError, zlib.error) as error:
                raise RefusedError(f"{path} is not a gzip file: {error}") from None
            offset += len(block)
            end = held.rfind("\n") + 1 if block else len(held)
            if end:
                yield held[:end]
                held = held[end:]
    if not offset:
        raise RefusedError(f"{path} is empty")


def read_corpus(
    path: Path,
    form: Format = "auto",
    valid: Sequence[str] = (),
    test: Sequence[str] = (),
    fractions: Sequence[float] = FRACTIONS,
) -> Corpus:
    """Finds the files of a corpus and their splits, without reading them.

    Args:
      path: a text file, or a folder.
      form: "text": one file, of which the first characters train, the next validate, the last test,
        by `fractions`. "books": a folder of text files (``.txt``, ``.txt.gz``), one book each, also
        in folders below it: in the folders ``train``, ``validation`` and ``test`` as in PG-19, or
        split by `valid` and `test`. "wikitext": a folder of ``wiki.{train,valid,test}.tokens`` (or
        ``.raw``, or ``{train,valid,test}.txt``). "gigaword": as "books", with SGML files of any
        name, of which the text of stories is used. "auto" (default): detected from the files.
      valid: names of the validation files, relative to the folder or beside a file.
      test: names of the test files.
      fractions: shares of one file, if no other files are given (default: 0.9, 0.1, 0).

    Returns:
      The parts of each split, without empty splits.

    Raises:
      RefusedError: missing files, no training part, a file in two splits, fractions that do not sum
        to 1, or an option that does not apply to the format.
    """
    if not path.exists():
        raise RefusedError(f"there is no file or folder {path}")
    if form == "auto" and path.is_file():
        form = "text"
    elif form == "auto":
        form = "wikitext" if any(_wikitext_files(path)) else "books"
    if path.is_dir() == (form == "text"):
        wanted, found = ("a file", "a folder") if form == "text" else ("a folder", "a file")
        raise RefusedError(f"a corpus of the format {form!r} is {wanted}, but {path} is {found}")
    has_splits = form == "wikitext" or (form != "text" and any(_split_folders(path)))
    if has_splits and (valid or test):
        raise RefusedError(f"--valid and --test do not apply: {path} has splits of its own")
    if (form != "text" or valid or test) and tuple(fractions) != FRACTIONS:
        raise RefusedError("--fractions applies to one file without --valid and --test only")
    if form == "text":
        corpus = _one_file(path, valid, test, fractions)
    elif form == "wikitext":
        corpus = _wikitext(path)
    else:
        corpus = _folder(path, valid, test, stories if form == "gigaword" else None)
    seen = set()
    for part in (part for split in corpus.values() for part in split):
        place = part.path.resolve(), part.start
        if place in seen:
            raise RefusedError(f"{part.path} is given twice: see --valid and --test")
        seen.add(place)
    return corpus


def stories(sgml: str) -> str:
    r"""The text of a Gigaword file: a line for each paragraph, and one between documents.

    >>> stories('<DOC id="A" type="story"><TEXT><P>\nOne\ntwo.\n</P></TEXT></DOC>')
    'One two.\n\n'
    """
    documents = []
    for kind, body in re.findall(
        r'<DOC\b[^>]*\btype="([^"]*)"[^>]*>(.*?)</DOC>', sgml, re.DOTALL | re.IGNORECASE
    ):
        found = re.search(r"<TEXT>(.*?)</TEXT>", body, re.DOTALL | re.IGNORECASE)
        if kind.lower() != "story" or found is None:
            continue
        paragraphs = re.split(r"</?P>", found[1], flags=re.IGNORECASE)
        lines = (" ".join(html.unescape(paragraph).split()) for paragraph in paragraphs)
        documents.append("".join(f"{line}\n" for line in lines if line) + "\n")
    return "".join(documents)


def describe_source(path: Path) -> dict[str, str | int]:
    """Name, size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def sources(corpus: Corpus) -> list[Path]:
    """The files of a corpus, each once."""
    return list(dict.fromkeys(part.path for split in SPLITS for part in corpus.get(split, ())))


def _one_file(
    path: Path, valid: Sequence[str], test: Sequence[str], fractions: Sequence[float]
) -> Corpus:
    if valid or test:
        parts = {"valid": valid, "test": test}
        return {
            "train": (Part(path),),
            **{k: tuple(Part(_named(path.parent, n)) for n in v) for k, v in parts.items() if v},
        }
    are_shares = len(fractions) == 3 and min(fractions) >= 0 and abs(sum(fractions) - 1) < 1e-9
    if not are_shares or fractions[0] == 0:
        raise RefusedError(
            "--fractions must be three shares (training, validation, test) that add up to 1, the "
            f"first above 0, got {tuple(fractions)}"
        )
    bounds = [0.0, fractions[0], 1.0 - fractions[2], 1.0]
    return {
        name: (Part(path, bounds[i], bounds[i + 1]),)
        for i, name in enumerate(SPLITS)
        if fractions[i] > 0
    }


def _wikitext_files(path: Path) -> Iterator[tuple[str, Path]]:
    for pattern in _WIKITEXT:
        files = [(name, path / pattern.format(name)) for name in SPLITS]
        if any(file.is_file() for _, file in files):
            yield from ((name, file) for name, file in files if file.is_file())
            return


def _wikitext(path: Path) -> Corpus:
    files = dict(_wikitext_files(path))
    if "train" not in files:
        names = " or ".join(pattern.format("train") for pattern in _WIKITEXT)
        raise RefusedError(f"there is no {names} in {path}")
    return {name: (Part(file),) for name, file in files.items()}


def _split_folders(path: Path) -> Iterator[tuple[str, Path]]:
    for name, folders in _FOLDERS.items():
        found = [path / each for each in folders if (path / each).is_dir()]
        if len(found) > 1:
            raise RefusedError(
                f"{path} must have one {name} split, got {', '.join(map(str, found))}"
            )
        yield from ((name, folder) for folder in found)


def _folder(
    path: Path,
    valid: Sequence[str],
    test: Sequence[str],
    clean: Callable[[str], str] | None,
) -> Corpus:
    def parts(folder: Path) -> tuple[Part, ...]:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        texts = (f for f in files if clean or f.name.lower().endswith((".txt", ".txt.gz")))
        return tuple(Part(file, clean=clean) for file in texts)

    corpus = {name: parts(folder) for name, folder in _split_folders(path)}
    if not corpus:
        held = {
            name: tuple(Part(_named(path, file), clean=clean) for file in files)
            for name, files in (("valid", valid), ("test", test))
            if files
        }
        apart = {part.path.resolve() for split in held.values() for part in split}
        corpus = {"train": tuple(p for p in parts(path) if p.path.resolve() not in apart), **held}
    if not corpus.get("train"):
        raise RefusedError(f"there is no text file to train on in {path}")
    return {name: split for name, split in corpus.items() if split}


def _named(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise RefusedError(f"there is no file {name} in {folder}")
    return path
