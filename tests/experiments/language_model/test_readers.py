"""Readers and vocabularies: what is read, how it is split and counted, and what is refused."""

import gzip
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.refused import RefusedError
from experiments.language_model.data import corpus
from experiments.language_model.data.bpe import BytePairs
from experiments.language_model.data.corpus import (
    BUNDLED,
    Part,
    read_corpus,
    read_text,
    sources,
    stories,
)
from experiments.language_model.data.token_files import DataConfig, prepare
from experiments.language_model.data.vocabulary import (
    Bytes,
    Characters,
    Words,
    count_words,
    split_words,
    vocabulary_from,
)

BOOKS = {"emma.txt": "Emma sat.\n", "anne.txt": "Anne rose.\n", "mary.txt": "Mary slept.\n"}


def texts(found):
    return {
        name: "".join(piece for part in parts for piece in part.pieces())
        for name, parts in found.items()
    }


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
    assert [*split_words(found["test"])] == ["<eos>", "=", "test", "=", "<eos>", "<eos>"]


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
    (tmp_path / "afp_eng").mkdir()  # As the corpus is delivered.
    (tmp_path / "afp_eng" / "a.gz").write_bytes(gzip.compress(sgml.encode()))
    (tmp_path / "afp_eng" / "b.gz").write_bytes(gzip.compress(sgml.replace("Out", "In").encode()))
    wanted = "Fish & chips sold.\nOut.\n\nNo paragraphs.\n\n"
    assert stories(sgml) == wanted
    found = texts(read_corpus(tmp_path, "gigaword", valid=("afp_eng/b.gz",)))
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
    for shares in ((0.5, 0.1, 0.1), (0.0, 0.5, 0.5), (float("nan"), 0.5, 0.5), (1.5, -0.5, 0.0)):
        with pytest.raises(RefusedError, match=r"--fractions must be three shares .* got"):
            read_corpus(books / "emma.txt", fractions=shares)
    with pytest.raises(RefusedError, match=r"there is no wiki\.train\.tokens"):
        read_corpus(books, "wikitext")
    with pytest.raises(RefusedError, match="is a folder, but"):
        read_corpus(books / "emma.txt", "books")
    with pytest.raises(RefusedError, match=r"the format 'text' is a file, but .* is a folder"):
        read_corpus(books, "text")
    for options in ({"valid": ("emma.txt",), "test": ("emma.txt",)}, {"valid": ("emma.txt",) * 2}):
        with pytest.raises(RefusedError, match=r"emma\.txt is given twice"):
            read_corpus(books, **options)
    with pytest.raises(RefusedError, match=r"emma\.txt is given twice"):
        read_corpus(books / "emma.txt", valid=("emma.txt",))


def test_options_that_do_not_apply_are_refused(books):
    halves = (0.5, 0.5, 0.0)
    for path, options in ((books, {}), (books / "emma.txt", {"valid": ("anne.txt",)})):
        with pytest.raises(RefusedError, match="--fractions applies to one file without"):
            read_corpus(path, fractions=halves, **options)
    for split in ("train", "validation"):
        (books / split).mkdir()
        (books / split / f"{split}.TXT").write_text(split)
    (books / "val").mkdir()
    with pytest.raises(RefusedError, match=r"must have one valid split, got .*validation, .*val"):
        read_corpus(books)
    (books / "val").rmdir()
    assert texts(read_corpus(books)) == {"train": "train", "valid": "validation"}
    with pytest.raises(RefusedError, match=r"--valid and --test do not apply: .* of its own"):
        read_corpus(books, valid=("emma.txt",))


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
    words = ["Mr", ".", "O'Neil's", "3", ".", "5", "<eos>"]
    assert [*split_words("Mr. O'Neil's 3.5", True)] == words


def plain_words(text, split_punctuation):
    """All lines at once, then all words at once."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    marks = re.compile(r"<\w+>|\w+(?:['\u2019]\w+)*|[^\w\s]")
    words = (marks.findall(line) if split_punctuation else line.split() for line in lines)
    return [word for line in words for word in [*line, "<eos>"]]


TEXTS = st.text(st.sampled_from("ab'\u2019<>_.\n\n\r \t\x0b\x85\u2028é𝄞"), max_size=60)


@given(TEXTS, st.booleans())
def test_words_one_by_one_are_the_words_of_all_lines(text, split_punctuation):
    wanted = plain_words(text, split_punctuation)
    assert [*split_words(text, split_punctuation)] == wanted
    vocabulary = Words.of(["a b a\n"], split_punctuation=split_punctuation)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32
    assert [vocabulary.words[token] for token in tokens] == [
        word if word in ("a", "b", "<eos>") else "<unk>" for word in wanted
    ]


@given(TEXTS.filter(bool), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_pieces_are_the_text_in_whole_lines(tmp_path_factory, text, size, a, b, packed):
    path = tmp_path_factory.getbasetemp() / f"pieces.{'gz' if packed else 'txt'}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    start, stop = sorted((a / 9, b / 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE", size)
        whole, share = (list(Part(path, *x).pieces()) for x in ((), (start, stop)))
    assert "".join(whole) == text
    assert "".join(share) == text[int(len(text) * start) : int(len(text) * stop)]
    for pieces in (whole, share):
        assert all(piece.endswith("\n") for piece in pieces[:-1])
        words = [word for piece in pieces for word in split_words(piece)]
        assert words == plain_words("".join(pieces), False)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(("content", "place"), [(b"a\xc3\xa9\xe2\x82x", 3), (b"ab\n\xe2\x82", 3)])
def test_bytes_that_are_not_text_are_found_across_pieces(
    tmp_path, monkeypatch, size, content, place
):
    monkeypatch.setattr(corpus, "PIECE", size)
    path = _write(tmp_path / "bad.txt", content)
    with pytest.raises(RefusedError, match=f"is not UTF-8: byte 0xe2 at offset {place}"):
        read_text(path)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path):
    """20 MB, of which all words at once would take ten times as much."""
    words = np.random.default_rng(0).integers(0, 5000, (200_000, 18)).tolist()
    text = "".join(" ".join(f"w{word}" for word in line) + ".\n" for line in words)
    path = _write(tmp_path / "long.txt", text.encode())
    del words, text
    config = DataConfig(str(path), vocabulary="words", fractions=(0.9, 0.05, 0.05))
    tracemalloc.start()
    tokens = prepare(config, tmp_path / "tokens")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 1.5
    # A word, a mark and an end for each line; a cut through a line adds at most two.
    found = sum(len(split.targets) for split in tokens.splits.values())
    assert 0 <= found - 200_000 * (18 + 1 + 1) <= 4


def test_sizes_are_checked():
    with pytest.raises(RefusedError, match="--max-words must be above 256 for byte pairs, got 256"):
        BytePairs.of([SAMPLE], 256)
    with pytest.raises(RefusedError, match="--max-words must be at least 3, got 2"):
        Words.of([SAMPLE], max_size=2)
    with pytest.raises(RefusedError, match="not a vocabulary: kind 'runes'"):
        vocabulary_from({"kind": "runes"})


def test_byte_pairs_do_not_cross_the_ends_of_lines():
    """As texts are encoded line by line, such pairs would never be used."""
    vocabulary = BytePairs.of(["a b\n\n\nc d\n\n" * 50], 300)
    learnt = [vocabulary.decode([token]) for token in range(vocabulary.size)]
    assert any(len(each) > 1 for each in learnt)
    assert not any(b"\n" in each[:-1] for each in learnt)
