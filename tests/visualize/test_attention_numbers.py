"""Shares of attention on arrays small enough to count by hand."""

import numpy as np
import pytest

from rrnn_jax.visualize import (
    attention_share,
    attention_share_figure,
    change_shares,
    input_share,
    input_share_figure,
    memory_attention,
    share_by_lag,
    write_shares,
)
from tests.visualize.figures import assert_nothing_cut, assert_same_twice, random_attention

# Two sequences of three steps, two slots, one input row; both slots attend alike.
ROWS = np.array(
    [
        [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.8, 0.1, 0.1]],
        [[0.4, 0.4, 0.2], [0.1, 0.1, 0.8], [0.3, 0.5, 0.2]],
    ]
)
WEIGHTS = np.stack([ROWS, ROWS], axis=2)  # [B, T, S, S+R]
SLOTS, STEPS = np.array([0, 1]), np.array([0, 1])


def test_share_before_and_after():
    share = attention_share(WEIGHTS, SLOTS, STEPS)
    # Sequence 0: slot 0, seen at step 0. Sequence 1: slot 1, seen at step 1.
    np.testing.assert_allclose(share.before, [0.2, (0.4 + 0.1) / 2])
    np.testing.assert_allclose(share.after, [(0.6 + 0.8) / 2, 0.5])
    np.testing.assert_allclose(share.others_before, [0.4, (0.3 + 0.2) / 2])
    np.testing.assert_allclose(share.others_after, [(0.1 + 0.3) / 2, 0.1])
    assert share.uniform == pytest.approx(1 / 3)


def test_attending_slots_are_averaged():
    weights = WEIGHTS.copy()
    weights[0, 1, 1] = [0.0, 1.0, 0.0]  # The second slot looks elsewhere.
    share = attention_share(weights, SLOTS, STEPS)
    np.testing.assert_allclose(share.after[0], ((0.6 + 0.0) / 2 + 0.8) / 2)


def test_nothing_after_the_last_step_and_no_others_in_a_batch_of_one():
    share = attention_share(WEIGHTS, SLOTS, np.array([2, 2]))
    assert np.isnan(share.after).all()
    assert np.isfinite(share.before).all()
    share = attention_share(WEIGHTS[:1], SLOTS[:1], STEPS[:1])
    assert np.isnan(share.others_after).all()
    np.testing.assert_allclose(share.after, [0.7])


def test_share_by_lag():
    lags = share_by_lag(WEIGHTS, SLOTS, STEPS)
    np.testing.assert_array_equal(lags.lags, [-2, -1, 0, 1, 2])
    expected = [np.nan, 0.4, (0.2 + 0.1) / 2, (0.6 + 0.5) / 2, 0.8]
    np.testing.assert_allclose(lags.share, expected)
    others = [np.nan, 0.3, (0.4 + 0.2) / 2, (0.1 + 0.1) / 2, 0.3]
    np.testing.assert_allclose(lags.others, others)


def test_write_shares_weigh_attention_by_the_gate():
    weights = np.array([[[[0.5, 0.3, 0.1, 0.1], [0.1, 0.3, 0.3, 0.3]]]])  # S = R = 2
    np.testing.assert_allclose(write_shares(weights), [[[0.25, 0.75]]])
    gate = np.array([[[[0.9, 0.9], [0.0, 0.2]]]])  # Means 0.9 and 0.1: 0.18 against 0.06.
    np.testing.assert_allclose(write_shares(weights, gate), [[[0.75, 0.25]]])
    np.testing.assert_allclose(write_shares(weights, gate[..., :1]), [[[1.0, 0.0]]])


def test_a_slot_that_is_popular_anyway_is_not_taken_for_memory():
    """Every sequence attends to slot 0 alone: high share, and the same among the others."""
    weights = np.zeros((4, 3, 2, 3))
    weights[..., 0] = 1.0
    share = attention_share(weights, np.zeros(4, int), np.zeros(4, int))
    np.testing.assert_array_equal(share.after, 1.0)
    np.testing.assert_array_equal(share.others_after, 1.0)


def test_random_attention_is_at_chance():
    weights = random_attention(400, 5, 4, 5)
    slots, steps = (np.random.default_rng(1).integers(0, n, 400) for n in (4, 4))
    share = attention_share(weights, slots, steps)
    for values in share[:4]:
        assert np.mean(values) == pytest.approx(share.uniform, abs=0.02)


def test_memory_attention_leaves_the_input_out():
    """The slot of sequence 0 gets 3/4 of what goes to memory, however much the input takes."""
    weights = np.stack([[[0.6, 0.2, 0.2]] * 2, [[0.15, 0.05, 0.8]] * 2])[None]
    memory = memory_attention(weights)
    np.testing.assert_allclose(memory, np.broadcast_to([0.75, 0.25], (1, 2, 2, 2)))
    share = attention_share(memory, np.array([0]), np.array([0]))
    np.testing.assert_allclose([share.before[0], share.after[0]], 0.75)
    assert share.uniform == 0.5
    assert share_by_lag(memory, np.array([1]), np.array([0])).share[1:].tolist() == [0.25, 0.25]
    # Of all attention it would seem to fall by a factor of four.
    whole = attention_share(weights, np.array([0]), np.array([0]))
    np.testing.assert_allclose([whole.before[0], whole.after[0]], [0.6, 0.15])
    with pytest.raises(ValueError, match=r"with R > 0, got shape \(1, 2, 2, 2\)"):
        write_shares(memory)


def test_change_shares_are_distances_that_sum_to_one():
    memories = np.random.default_rng(0).normal(size=(2, 3, 2, 4))
    changed = memories.copy()
    changed[0, 1, 0, :2] += [3.0, 4.0]  # 5 away.
    changed[0, 1, 1, 3] -= 15.0
    shares = change_shares(memories, changed)
    np.testing.assert_allclose(shares[0, 1], [0.25, 0.75])
    assert not shares[1].any()  # Nothing differs: no share, and no division by zero.
    with pytest.raises(
        ValueError, match=r"must be \[B, T, S, F\] both, got shapes .*\(1, 3, 2, 4\)"
    ):
        change_shares(memories, changed[:1])


def test_input_share_by_step_and_by_what_was_seen():
    share = input_share(WEIGHTS, np.array([0, 1]))
    # Attention to the input: 0.5, 0.2, 0.1 and 0.2, 0.8, 0.2.
    np.testing.assert_allclose(share.before, [0.2, np.nan, np.nan])
    np.testing.assert_allclose(share.shown, [0.5, 0.8, np.nan])
    np.testing.assert_allclose(share.after, [np.nan, 0.2, 0.15])
    assert share.uniform == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"steps must be integers of shape \[B\] = \(2,\), got"):
        input_share(WEIGHTS, STEPS[:1])
    with pytest.raises(ValueError, match=r"weights must be \[B, T, S, S\+R\] with R > 0, got"):
        input_share(WEIGHTS[..., :2], STEPS)


def test_figure_shows_the_numbers_in_percent():
    share = share_by_lag(WEIGHTS, SLOTS, STEPS)
    figure = attention_share_figure({"a": share, "b": share, "c": share})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    axes = figure.axes[2]
    own, others, uniform = axes.lines
    np.testing.assert_allclose(own.get_xydata(), np.stack([share.lags, 100 * share.share], 1)[1:])
    np.testing.assert_allclose(others.get_ydata(), 100 * share.others[1:])
    np.testing.assert_allclose(uniform.get_ydata(), 100 / 3)
    assert axes.get_xlabel() == "steps since the reference was shown"
    assert axes.get_ylim()[1] > 80
    assert_nothing_cut(figure)
    assert_same_twice(lambda: attention_share_figure({"head 1": share}))
    with pytest.raises(ValueError, match="at least one panel"):
        attention_share_figure({})
    unknown = share._replace(share=np.full_like(share.share, np.nan))
    with pytest.raises(ValueError, match="shares must have finite values"):
        attention_share_figure({"head 1": unknown})


def test_figure_of_attention_to_the_input():
    share = input_share(WEIGHTS, STEPS)
    figure = input_share_figure({"head 1": share, "head 2": share})
    shown, after, before, uniform = figure.axes[1].lines
    np.testing.assert_allclose(shown.get_xydata(), [[1, 50], [2, 80]])
    np.testing.assert_allclose(after.get_xydata(), [[2, 20], [3, 15]])
    np.testing.assert_allclose(before.get_xydata(), [[1, 20]])
    np.testing.assert_allclose(uniform.get_ydata(), 100 / 3)
    assert_nothing_cut(figure)
    assert_same_twice(lambda: input_share_figure({"head 1": share}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((WEIGHTS[0], SLOTS, STEPS), r"weights must be \[B, T, S, S\+R\], got shape \(3, 2, 3\)"),
        ((WEIGHTS, SLOTS[:1], STEPS), r"slots must be integers of shape \[B\] = \(2,\), got int64"),
        ((WEIGHTS, SLOTS + 0.5, STEPS), r"slots must be integers of shape .* got float64"),
        ((WEIGHTS, np.array([0, 2]), STEPS), r"slots must lie in 0..1, got \[0, 2\]"),
        ((WEIGHTS, SLOTS, np.array([-1, 0])), r"steps must lie in 0..2, got \[-1, 0\]"),
    ],
)
def test_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention_share(*arguments)


def test_a_gate_of_other_steps_is_refused():
    with pytest.raises(ValueError, match=r"input_gate must be .* = \(2, 3, 2\), got shape \(2, 2,"):
        write_shares(WEIGHTS, np.ones((2, 2, 2, 4)))
