"""Token files and windows: made once, whole, and every token where it belongs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.refused import RefusedError
from experiments.language_model.data.rows import evaluation_feed, training_feed
from experiments.language_model.data.token_files import (
    MANIFEST_FILE,
    DataConfig,
    Split,
    open_tokens,
    prepare,
)


def split_of(count: int) -> Split:
    return Split("train", np.arange(count, dtype=np.uint16), count, count)


def make(tmp_path, text="the cat sat on the mat.\n" * 40, **options):
    path = tmp_path / "text.txt"
    path.write_text(text)
    config = DataConfig(path=path, fractions=(0.5, 0.25, 0.25), **options)
    return config, prepare(config, tmp_path / "tokens")


def test_files_are_mapped_and_described(tmp_path):
    _, tokens = make(tmp_path)
    text = (tmp_path / "text.txt").read_text()
    assert isinstance(tokens.splits["valid"].tokens, np.memmap)
    assert tokens.splits["valid"].tokens.dtype == np.uint16
    found = b"".join(tokens.vocabulary.decode(s.tokens) for s in tokens.splits.values())
    assert found.decode() == text
    assert tokens.manifest["sources"] == [
        {"name": "text.txt", "bytes": 960, "sha256": tokens.manifest["sources"][0]["sha256"]}
    ]
    assert tokens.manifest["splits"]["train"]["tokens"] == 480
    # 20 lines of 6 words and an end.
    assert tokens.manifest["splits"]["train"]["words"] == 20 * 7
    np.testing.assert_array_equal(
        tokens.counts, np.bincount(tokens.splits["train"].tokens, minlength=tokens.vocabulary.size)
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


def test_damaged_files_are_refused(tmp_path):
    make(tmp_path)
    folder = next((tmp_path / "tokens").iterdir())
    with (folder / "valid.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RefusedError, match=r"valid\.bin must hold 240 tokens of uint16"):
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


def test_rows_are_contiguous_and_reset_where_they_begin_again():
    feed = training_feed(split_of(23), start=99, rows=2, window=4)  # L = 11
    window = feed(0, 4)
    assert window.inputs.shape == (4, 2, 4)
    rows = np.concatenate(list(window.targets), axis=-1)
    assert rows[0].tolist() == [*range(11), *range(5)]
    assert rows[1].tolist() == [*range(11, 22), *range(11, 16)]
    before = np.concatenate(list(window.inputs), axis=-1)
    assert before[0].tolist() == [99, *range(10), 99, *range(4)]
    assert before[1].tolist() == [*range(10, 21), *range(10, 15)]
    resets = np.concatenate(list(window.resets), axis=-1)
    assert np.flatnonzero(resets[0]).tolist() == [0, 11]
    np.testing.assert_array_equal(resets[0], resets[1])
    assert window.mask.all()


@given(st.integers(0, 50), st.integers(1, 7), st.integers(1, 4))
def test_feed_is_a_function_of_the_step(step, num_steps, cut):
    feed = training_feed(split_of(101), start=0, rows=3, window=5)
    whole = feed(step, num_steps)
    cut = min(cut, num_steps)
    for a, b, c in zip(whole, feed(step, cut), feed(step + cut, num_steps - cut), strict=True):
        np.testing.assert_array_equal(a, np.concatenate([b, c]))


@given(st.integers(5, 60), st.integers(1, 5), st.integers(1, 9), st.booleans())
def test_evaluation_reads_every_token_once(count, rows, window, carried):
    feed, num_steps = evaluation_feed(split_of(count), 99, rows, window, carried)
    found = feed(0, num_steps)
    assert sorted(found.targets[found.mask].tolist()) == list(range(count))
    expected = np.where(found.targets == 0, 99, found.targets - 1)
    np.testing.assert_array_equal(found.inputs[found.mask], expected[found.mask])
    if carried:
        assert found.resets.sum() == rows
        assert found.resets[0, :, 0].all()
    else:
        assert found.resets[:, :, 0].all()
        assert not found.resets[:, :, 1:].any()
        # No window is cut short but the last of the text.
        lengths = found.mask.sum(-1)
        assert set(lengths.ravel().tolist()) <= {window, 0, count % window}


def test_short_splits_are_refused():
    with pytest.raises(RefusedError, match="the train split has 23 tokens, less than a window"):
        training_feed(split_of(23), 0, rows=6, window=4)
    with pytest.raises(RefusedError, match="the train split has 3 tokens, fewer than 4 rows"):
        evaluation_feed(split_of(3), 0, rows=4, window=2)


def test_empty_splits_are_refused(tmp_path):
    with pytest.raises(RefusedError, match="the valid split is empty"):
        make(tmp_path, text="ab")


def test_options_are_checked():
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        DataConfig(min_count=0)
