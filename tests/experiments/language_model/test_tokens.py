"""Token files: made once, whole, and every token where it belongs."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments.common.refused import RefusedError
from experiments.common.streaming import Windows
from experiments.language_model.data import token_files
from experiments.language_model.data.token_files import (
    MANIFEST_FILE,
    DataConfig,
    open_tokens,
    prepare,
)
from experiments.language_model.problem import per_unit, unigram_losses
from experiments.language_model.report import by_frequency

COUNTING = json.loads((Path(__file__).parents[2] / "golden" / "wikitext_counting.json").read_text())
near = partial(pytest.approx, rel=1e-8)
FILES = os.environ.get("WIKITEXT_2")


def make(tmp_path, text="the cat sat on the mat.\n" * 40, **options):
    path = tmp_path / "text.txt"
    path.write_text(text)
    config = DataConfig(path=str(path), fractions=(0.5, 0.25, 0.25), **options)
    return config, prepare(config, tmp_path / "tokens")


def test_files_are_mapped_and_described(tmp_path):
    _, tokens = make(tmp_path)
    text = (tmp_path / "text.txt").read_text()
    assert isinstance(tokens.splits["valid"].tokens, np.memmap)
    assert tokens.splits["valid"].tokens.dtype == np.uint16
    found = b"".join(tokens.vocabulary.decode(s.targets) for s in tokens.splits.values())
    assert found.decode() == text
    assert tokens.manifest["sources"] == [
        {"name": "text.txt", "bytes": 960, "sha256": tokens.manifest["sources"][0]["sha256"]}
    ]
    assert tokens.manifest["splits"]["train"]["tokens"] == 480
    # 20 lines of 6 words and an end.
    assert tokens.manifest["splits"]["train"]["words"] == 20 * 7
    np.testing.assert_array_equal(
        tokens.counts, np.bincount(tokens.splits["train"].targets, minlength=tokens.vocabulary.size)
    )


def test_files_are_made_once(tmp_path):
    config, first = make(tmp_path)
    folder = next((tmp_path / "tokens").iterdir())
    before = (folder / "train.bin").stat().st_mtime_ns
    again = prepare(config, tmp_path / "tokens")
    assert (folder / "train.bin").stat().st_mtime_ns == before
    assert again.manifest == first.manifest
    (tmp_path / "text.txt").write_text("another text altogether\n" * 40)
    other = prepare(config, tmp_path / "tokens")
    assert other.manifest["sources"] != first.manifest["sources"]
    assert len(list((tmp_path / "tokens").iterdir())) == 2


@pytest.mark.parametrize("other", ["complete", "of a crash"])
def test_files_appear_when_they_are_complete(tmp_path, monkeypatch, other):
    """Of two runs at once the first one's stay; what a crash left is replaced."""
    made = token_files._make

    def make_late(config, corpus, manifest, temporary):
        made(config, corpus, manifest, temporary)
        folder = temporary.with_name(temporary.name[1:].split(".")[0])
        assert not folder.exists()
        shutil.copytree(temporary, folder)
        (folder / "theirs").touch()
        if other == "of a crash":
            (folder / MANIFEST_FILE).unlink()

    monkeypatch.setattr(token_files, "_make", make_late)
    make(tmp_path)
    (folder,) = (tmp_path / "tokens").iterdir()
    assert (folder / "theirs").exists() == (other == "complete")
    assert (folder / MANIFEST_FILE).exists()


def test_damaged_files_are_refused(tmp_path):
    make(tmp_path)
    folder = next((tmp_path / "tokens").iterdir())
    with (folder / "valid.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RefusedError, match=r"valid\.bin must hold 1 \+ 240 tokens of uint16"):
        open_tokens(folder)
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(RefusedError, match=r"there is no manifest\.json"):
        open_tokens(folder)


def test_words_held_out_become_unknown(tmp_path):
    text = "a b c d\n" * 20 + "a z\n" * 20
    _, tokens = make(tmp_path, text, vocabulary="words")
    unknown = tokens.vocabulary.encode("z")[0]
    assert tokens.counts[unknown] == 0
    assert np.any(tokens.splits["test"].tokens == unknown)


def test_large_vocabularies_take_four_bytes(tmp_path):
    words = " ".join(f"w{i}" for i in range(70_000))
    _, tokens = make(tmp_path, (words + "\n") * 2, vocabulary="words")
    assert tokens.splits["train"].tokens.dtype == np.uint32
    assert tokens.splits["train"].tokens.max() > 1 << 16


def test_every_token_is_predicted_once(tmp_path):
    """Through the windows of the engine: from the start token on, none twice, none left out."""
    _, tokens = make(tmp_path)
    split = tokens.splits["train"]
    assert split.tokens[0] == tokens.vocabulary.start
    windows = Windows(split.tokens, batch_size=3, length=50)
    epoch = windows(0, windows.num_steps)
    rows = [epoch.targets[:, b][epoch.mask[:, b]] for b in range(3)]
    np.testing.assert_array_equal(np.concatenate(rows), split.targets)


def test_empty_splits_are_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"the valid split is empty: .*\.txt"):
        make(tmp_path, text="ab")
    (tmp_path / "giga").mkdir()
    for name in ("a", "b"):
        (tmp_path / "giga" / name).write_text('<DOC type="advis"><TEXT>No.</TEXT></DOC>')
    config = DataConfig(str(tmp_path / "giga"), "gigaword", valid=("b",), vocabulary="bytes")
    with pytest.raises(RefusedError, match=r"train split is empty \(no document of the type story"):
        prepare(config, tmp_path / "tokens")


def test_counts_and_order_of_wikitexts_words(tmp_path):
    """A text with the counts of WikiText-2's most common words: lines, most of them blank."""
    wanted = dict(COUNTING["most_common"])
    lines = [""] * wanted["<eos>"]
    for word, count in wanted.items():
        for i in range(count if word != "<eos>" else 0):
            lines[i % 997] += f" {word}"
    (tmp_path / "wiki.train.tokens").write_text("".join(f"{line} \n" for line in lines))
    config = DataConfig(path=str(tmp_path), vocabulary="words", split_punctuation=False)
    tokens = prepare(config, tmp_path / "tokens")
    found = zip(tokens.vocabulary.words, tokens.counts.tolist(), strict=True)
    assert [list(pair) for pair in found] == COUNTING["most_common"]
    assert tokens.splits["train"].words == sum(wanted.values())


@pytest.mark.skipif(
    not FILES, reason="WIKITEXT_2 does not name a folder with WikiText-2's valid.txt and test.txt"
)
def test_wikitext_is_counted_as_recorded(tmp_path):
    """The validation file trains, and three models without parameters read the test file."""
    for split, name in (("train", "valid"), ("test", "test")):
        (tmp_path / f"{split}.txt").symlink_to(Path(str(FILES)) / f"{name}.txt")
    config = DataConfig(path=str(tmp_path), vocabulary="words", split_punctuation=False)
    tokens = prepare(config, tmp_path / "tokens")
    train, test = (np.asarray(tokens.splits[x].targets).astype(int) for x in ("train", "test"))
    words, counts = tokens.vocabulary.words, tokens.counts
    unknown, end = words.index("<unk>"), words.index("<eos>")
    assert (len(train), len(test)) == (COUNTING["train_tokens"], COUNTING["test_tokens"])
    assert len(words) == COUNTING["vocabulary"]
    out_of_vocabulary, in_file = COUNTING["test_out_of_vocabulary"], COUNTING["test_unk_in_file"]
    assert np.sum(test == unknown) == out_of_vocabulary + in_file
    assert np.sum(test == end) == COUNTING["eos_test"]
    assert [[w, n] for w, n in zip(words[:12], counts[:12], strict=True)] == COUNTING["most_common"]

    nats = -np.log(counts / counts.sum())
    assert np.exp(nats[train].mean()) == near(COUNTING["unigram_train_perplexity"])
    found = by_frequency(nats[test], test, counts)
    assert found.pop("all")["perplexity"] == near(COUNTING["unigram_test_perplexity"])
    assert found == {name: near(row) for name, row in COUNTING["buckets"].items()}

    # Half unigram, half bigram: the order of words, from an end of line on.
    size = len(words)
    pairs, times = np.unique(train[:-1] * size + train[1:], return_counts=True)
    before = np.concatenate([[end], test[:-1]])
    seen = dict(zip(pairs.tolist(), times.tolist(), strict=True))
    both = np.array([seen.get(pair, 0) for pair in (before * size + test).tolist()])
    contexts = np.bincount(train[:-1], minlength=size)
    mixed = 0.5 * np.exp(-nats[test]) + 0.5 * both / np.maximum(contexts[before], 1)
    assert np.exp(-np.log(mixed).mean()) == near(
        COUNTING["bigram_half_half_test_perplexity_start_eos"]
    )

    wanted = COUNTING["byte_unigram_add_one"]
    by_byte = prepare(DataConfig(path=str(tmp_path), vocabulary="bytes"), tmp_path / "tokens")
    split = by_byte.splits["test"]
    units = per_unit(split, unigram_losses(by_byte.counts)[split.targets].mean())
    assert split.bytes == wanted["bytes"]
    assert units["bits_per_byte"] == near(wanted["bits_per_byte"])
    assert units["word_perplexity"] == near(wanted["word_level_perplexity_by_pg19_rule"])


def test_options_are_checked(tmp_path):
    with pytest.raises(RefusedError, match="the format 'books' needs --path, a folder"):
        prepare(DataConfig(format="books"), tmp_path)
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        DataConfig(min_count=0)
    with pytest.raises(ValueError, match="max_words must be None with vocabulary='bytes', got 9"):
        DataConfig(vocabulary="bytes", max_words=9)


def test_a_file_in_another_split_is_another_corpus(tmp_path):
    """Also if the files and their order stay the same."""
    books = tmp_path / "books"
    for place, text in (("train/a", "aaa\n"), ("train/b", "bb\n"), ("validation/c", "c\n")):
        path = books / f"{place}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text * 30)
    config = DataConfig(path=str(books), vocabulary="bytes")
    sizes = [s.bytes for s in prepare(config, tmp_path / "tokens").splits.values()]
    assert sizes == [30 * 7, 30 * 2]
    (books / "train/b.txt").rename(books / "validation/b.txt")
    moved = prepare(config, tmp_path / "tokens")
    assert [s.bytes for s in moved.splits.values()] == [30 * 4, 30 * 5]


@pytest.mark.parametrize("by", ["absolute", "relative"])
def test_a_file_to_validate_on_is_not_trained_on(tmp_path, by):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 30)
    valid = str(tmp_path / "c.txt") if by == "absolute" else f"../{tmp_path.name}/c.txt"
    found = prepare(
        DataConfig(path=str(tmp_path), format="books", vocabulary="bytes", valid=(valid,)),
        tmp_path / "tokens",
    )
    assert [s.bytes for s in found.splits.values()] == [120, 60]
    with pytest.raises(RefusedError, match=r"c\.txt is given twice"):
        prepare(DataConfig(path=str(tmp_path / "c.txt"), valid=(valid,)), tmp_path / "tokens")
