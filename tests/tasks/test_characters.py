"""Characters, padding and the trivial score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.tasks import characters, learn_to_execute, memorization, nth_farthest
from tests.tasks import program_oracle as oracle


def test_vocabulary_is_the_references():
    meta = oracle.golden_meta()
    entries = meta["vocabulary"]
    assert len(characters.VOCABULARY) == len(set(characters.VOCABULARY)) == 45
    for entry, character in zip(entries, characters.VOCABULARY, strict=True):
        # Whole words have stand-ins from the private use area.
        assert character == entry or (len(entry) > 1 and 0xE000 <= ord(character) < 0xF900)
    assert (meta["pad_id"], meta["start_id"]) == (characters.PAD, characters.START)
    assert set(meta["characters_that_occur"]) <= set(characters.VOCABULARY)
    for token, word in enumerate(entries):
        if len(word) > 1:
            assert f"{token}" in characters.__doc__
            assert f"``{word}``" in characters.__doc__
    assert learn_to_execute.VOCABULARY is memorization.VOCABULARY is characters.VOCABULARY
    assert learn_to_execute.Batch is memorization.Batch is characters.Batch


def test_decode_inverts_encode():
    text = "x=(12if3<4else56)for[7]x+=89"
    tokens = characters.encode(text, 40)
    assert tokens.dtype == np.int32
    assert tokens.tolist()[len(text) :] == [characters.PAD] * 12
    for row in (tokens, jnp.asarray(tokens), tokens[: len(text)], tokens.tolist()):
        assert characters.decode(row) == text
    assert characters.decode(np.zeros((0,), np.int32)) == ""
    assert characters.decode(characters.encode(characters.VOCABULARY, 45)) == characters.VOCABULARY


def test_bad_arguments():
    with pytest.raises(ValueError, match="characters in VOCABULARY, got 'b'"):
        characters.encode("1+b", 5)
    with pytest.raises(ValueError, match=r"at most 2 characters, got 3: '1\+2'"):
        characters.encode("1+2", 2)
    with pytest.raises(TypeError, match="text must be a string, got 12 of type int"):
        characters.encode(12, 5)
    with pytest.raises(TypeError, match="number must be a string, got 57 of type int"):
        memorization.evaluate(57, "copy")
    with pytest.raises(ValueError, match=r"one row \[T\], got shape \(2, 3\)"):
        characters.decode(np.zeros((2, 3), np.int32))
    for token in (-1, 45):
        with pytest.raises(ValueError, match=r"tokens must lie in 0\.\.44"):
            characters.decode(np.array([3, token]))


@pytest.mark.parametrize("task", [memorization, nth_farthest])
def test_same_key_same_batch_other_key_other_batch(task):
    draw = jax.jit(lambda key: task.sample(key, task.Config(), 64).inputs)
    first, again, other = (draw(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_make_batch_pads_what_is_behind_the_end():
    tokens = jnp.array([[20, 21, 22], [14, 15, 16]], jnp.int32)
    lengths = jnp.array([1, 3], jnp.int32)
    batch = characters.make_batch(tokens, lengths, tokens[:, :2], jnp.array([2, 0], jnp.int32))
    assert batch.inputs.tolist() == [[20, 11, 11], [14, 15, 16]]
    assert batch.input_mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.targets.tolist() == [[20, 21], [11, 11]]
    assert batch.target_mask.tolist() == [[True, True], [False, False]]
    assert batch.target_lengths.tolist() == [2, 0]


def test_write_digits():
    digits = jnp.array([[0, 1], [0, 0], [7, 5]], jnp.uint32)
    tokens = characters.write_digits(digits, jnp.array([1, 3], jnp.int32), 4)
    assert tokens.dtype == jnp.int32
    assert characters.decode(tokens[0, :1]) == "7"
    assert characters.decode(tokens[1, :3]) == "105"


def test_constant_accuracy_by_hand():
    targets = jnp.array([[14, 15, 11], [14, 16, 11], [17, 15, 18]], jnp.int32)
    mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
    # 2 of 3, 2 of 3, and 1 of 1.
    assert float(characters.constant_accuracy(targets, mask)) == pytest.approx(5 / 7)
    assert float(characters.constant_accuracy(targets, jnp.zeros_like(mask))) == 0.0
