"""Token files: made once, whole, and every token where it belongs."""

import numpy as np
import pytest

from experiments.common.refused import RefusedError
from experiments.common.streaming import Windows
from experiments.language_model.data.token_files import (
    MANIFEST_FILE,
    DataConfig,
    open_tokens,
    prepare,
)


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
    with pytest.raises(RefusedError, match="the valid split is empty"):
        make(tmp_path, text="ab")


def test_options_are_checked():
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        DataConfig(min_count=0)
