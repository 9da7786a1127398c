"""Readers and vocabularies: what is read, how it is split and counted, and what is refused."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.refused import RefusedError
from experiments.language_model.data.bpe import BytePairs
from experiments.language_model.data.corpus import BUNDLED, read_corpus, sources, stories
from experiments.language_model.data.vocabulary import (
    Bytes,
    Characters,
    Words,
    count_words,
    split_words,
    vocabulary_from,
)

BOOKS = {"emma.txt": "Emma sat.\n", "anne.txt": "Anne rose.\n", "mary.txt": "Mary slept.\n"}


def texts(corpus):
    return {name: "".join(part.text() for part in parts) for name, parts in corpus.items()}


@pytest.fixture
def books(tmp_path) -> Path:
    for name, text in BOOKS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.json").write_text("{}")
    return tmp_path


def test_one_file_is_split_by_characters(tmp_path):
    path = tmp_path / "text.txt"
    text = "äöü\r\n" * 20
    path.write_bytes(text.encode())
    found = texts(read_corpus(path, fractions=(0.8, 0.1, 0.1)))
    assert found == {"train": text[:80], "valid": text[80:90], "test": text[90:]}
    assert set(texts(read_corpus(path))) == {"train", "valid"}  # By default nothing tests.


def test_split_of_the_bundled_plays_is_that_of_others():
    """nanoGPT's: 1,003,854 characters train, 111,540 validate; 65 are distinct."""
    found = texts(read_corpus(BUNDLED))
    assert {name: len(text) for name, text in found.items()} == {
        "train": 1_003_854,
        "valid": 111_540,
    }
    assert Characters("".join(found.values())).size == 65


def test_books_are_held_out_whole(books):
    found = texts(read_corpus(books, valid=("anne.txt",), test=("mary.txt",)))
    assert found == {
        "train": BOOKS["emma.txt"],
        "valid": BOOKS["anne.txt"],
        "test": BOOKS["mary.txt"],
    }


def test_folders_of_books(tmp_path, books):
    for folder, name in (("train", "emma.txt"), ("validation", "anne.txt"), ("test", "mary.txt")):
        (tmp_path / "pg" / folder).mkdir(parents=True)
        (books / name).rename(tmp_path / "pg" / folder / name)
    found = read_corpus(tmp_path / "pg")
    assert texts(found)["valid"] == BOOKS["anne.txt"]
    assert [path.name for path in sources(found)] == ["emma.txt", "anne.txt", "mary.txt"]


@pytest.mark.parametrize("pattern", ["wiki.{}.tokens", "wiki.{}.raw", "{}.txt"])
def test_wikitext_is_recognised(tmp_path, pattern):
    for split in ("train", "valid", "test"):
        (tmp_path / pattern.format(split)).write_text(f" \n = {split} = \n \n")
    found = texts(read_corpus(tmp_path))
    assert found["test"] == " \n = test = \n \n"
    assert split_words(found["test"]) == ["<eos>", "=", "test", "=", "<eos>", "<eos>"]


def test_gigaword_keeps_the_text_of_stories(tmp_path):
    sgml = """<DOC id="X_1" type="story" >
<HEADLINE>
Not this
</HEADLINE>
<TEXT>
<P>
Fish &amp; chips
sold.
</P>
<P>
Out.
</P>
</TEXT>
</DOC>
<DOC id="X_2" type="other" >
<TEXT>
Nor this.
</TEXT>
</DOC>
<DOC id="X_3" type="story" >
<TEXT>
No paragraphs.
</TEXT>
</DOC>
"""
    (tmp_path / "a.gz").write_bytes(gzip.compress(sgml.encode()))
    (tmp_path / "b.gz").write_bytes(gzip.compress(sgml.replace("Out", "In").encode()))
    wanted = "Fish & chips sold.\nOut.\n\nNo paragraphs.\n\n"
    assert stories(sgml) == wanted
    found = texts(read_corpus(tmp_path, "gigaword", valid=("b.gz",)))
    assert found == {"train": wanted, "valid": wanted.replace("Out", "In")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.txt", "there is no file or folder .*none.txt"),
        (lambda p: _write(p / "empty.txt", b""), "empty.txt is empty"),
        (lambda p: _write(p / "bad.txt", b"abc\xff"), "is not UTF-8: byte 0xff at offset 3"),
        (lambda p: _write(p / "bad.gz", b"abc"), "is not a gzip file"),
        (lambda p: p, "there is no text file to train on"),
    ],
)
def test_bad_files_are_refused(tmp_path, make, message):
    with pytest.raises(RefusedError, match=message):
        texts(read_corpus(make(tmp_path)))


def test_bad_splits_are_refused(books):
    with pytest.raises(RefusedError, match=r"there is no file jane\.txt in"):
        read_corpus(books, valid=("jane.txt",))
    with pytest.raises(RefusedError, match=r"three shares .* got"):
        read_corpus(books / "emma.txt", fractions=(0.5, 0.1, 0.1))
    with pytest.raises(RefusedError, match=r"there is no wiki\.train\.tokens"):
        read_corpus(books, "wikitext")
    with pytest.raises(RefusedError, match="is a folder, but"):
        read_corpus(books / "emma.txt", "books")


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


SAMPLE = "To be, or not to be:\nthat is the question.\n\nÄ “quoted” line…\n"


VOCABULARIES = [
    Bytes(),
    Characters(SAMPLE),
    Words.of([SAMPLE]),
    Words.of([SAMPLE], split_punctuation=True),
    BytePairs.of([SAMPLE * 20], size=270),
]


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda v: v.kind)
def test_decodes_what_it_encodes(vocabulary):
    tokens = vocabulary.encode(SAMPLE)
    assert tokens.min() >= 0
    assert tokens.max() < vocabulary.size
    again = vocabulary_from(json.loads(json.dumps(vocabulary.state())))
    np.testing.assert_array_equal(again.encode(SAMPLE), tokens)
    assert again.size == vocabulary.size
    text = again.decode(tokens).decode()
    if vocabulary.kind != "words":
        assert text == SAMPLE
    elif not vocabulary.split_punctuation:
        assert [line.rstrip() for line in text.split("\n")] == SAMPLE.split("\n")
    assert 0 <= vocabulary.start < vocabulary.size
    assert vocabulary.decode([vocabulary.start]) == b"\n"


@given(st.text(max_size=40))
def test_bytes_and_byte_pairs_decode_any_text(text):
    pairs = next(v for v in VOCABULARIES if v.kind == "bpe")
    for vocabulary in (Bytes(), pairs):
        tokens = vocabulary.encode(text)
        assert vocabulary.decode(tokens).decode() == text
        # A token at a time: bytes of a character may lie apart.
        assert b"".join(vocabulary.decode([token]) for token in tokens).decode() == text


def test_unknown_characters_are_named():
    with pytest.raises(RefusedError, match=r"vocabulary of 3 characters does not have '!' 'é'"):
        Characters("abc").encode("ab!cé!")


def test_words_are_numbered_by_falling_frequency():
    words = Words.of(["b a b c\n", "a b d\n"], min_count=2)
    # b 3, then <eos>, <unk> (c and d) and a with 2 each: ties in order.
    assert words.words == ["b", "<eos>", "<unk>", "a"]
    assert words.encode("c b a\n").tolist() == [2, 0, 3, 1]
    # With three words: <unk> stands for a, c and d now.
    assert Words.of(["b a b c\n", "a b d\n"], max_size=3).words == ["<unk>", "b", "<eos>"]


def test_unknown_words_of_the_text_count_as_themselves():
    words = Words.of(["<unk> a <unk>\n"])
    assert words.words == ["<unk>", "<eos>", "a"]


def test_words_are_counted_with_an_end_for_each_line():
    assert count_words("a b\n\n c \n") == 3 + 3
    assert count_words("a b") == 3  # A last line without an end is a line.
    assert split_words("Mr. O'Neil's 3.5", True) == ["Mr", ".", "O'Neil's", "3", ".", "5", "<eos>"]


def test_sizes_are_checked():
    with pytest.raises(RefusedError, match="max_words must be above 256 for byte pairs, got 256"):
        BytePairs.of([SAMPLE], 256)
    with pytest.raises(RefusedError, match="max_words must be at least 3, got 2"):
        Words.of([SAMPLE], max_size=2)
    with pytest.raises(RefusedError, match="not a vocabulary: kind 'runes'"):
        vocabulary_from({"kind": "runes"})
