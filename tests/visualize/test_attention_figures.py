"""Attention figures: panels, labels, marks, colour bars, nothing cut, the same bytes twice."""

import importlib
import io
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from rrnn_jax import visualize
from rrnn_jax.tasks.nth_farthest import Question
from rrnn_jax.visualize import (
    attention_animation,
    attention_figure,
    nth_farthest_figure,
    reference_cases,
    reference_steps,
    save_gif,
)
from rrnn_jax.visualize.style import ACCENT
from tests.grids import mostly_slow
from tests.visualize.figures import (
    assert_nothing_cut,
    assert_same_twice,
    colour_bars,
    random_attention,
)

BAR = "attention weight (rows sum to 1)"


def panels(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>" and axes.axison]


def framed(axes) -> bool:
    return all(spine.get_visible() for spine in axes.spines.values())


def test_a_panel_for_each_step_shows_slots_and_inputs_apart():
    weights = random_attention(2, 3, 4, 6)
    labels, marked = np.array(["a", "b"]), np.array([None, 2])
    figure = attention_figure(weights, title="t", row_labels=labels, marked=marked)
    shown = panels(figure)
    assert len(shown) == 6
    for axes, matrix in zip(shown, weights.reshape(6, 4, 6), strict=True):
        to_slots, to_inputs = axes.images
        np.testing.assert_array_equal(to_slots.get_array(), matrix[:, :4])
        np.testing.assert_array_equal(to_inputs.get_array(), matrix[:, 4:])
        # Not touching: the inputs are set off.
        assert to_inputs.get_extent()[0] > to_slots.get_extent()[1]
        assert (to_slots.norm.vmin, to_slots.norm.vmax) == (0.0, weights.max())
    assert [framed(axes) for axes in shown] == [False] * 5 + [True]
    assert [a.get_title() for a in shown] == ["step 1", "step 2", "step 3"] * 2
    assert [a.get_ylabel() for a in shown] == ["a", "", "", "b", "", ""]
    ticks = [text.get_text() for text in shown[3].get_xticklabels()]
    assert ticks == ["1", "2", "3", "4", "in"]
    assert colour_bars(figure) == [BAR]
    assert figure.get_suptitle() == "t"


def test_long_sequences_go_on_in_the_next_line():
    figure = attention_figure(random_attention(1, 5, 2, 3), columns=2)
    grid = [axes.get_subplotspec() for axes in panels(figure)]
    places = [(spec.rowspan.start, spec.colspan.start) for spec in grid]
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert [axes.get_title()[-1] for axes in panels(figure)] == list("12345")


def question(count: int = 8, batch: int = 64) -> Question:
    rng = np.random.default_rng(0)
    labels = rng.permuted(np.tile(np.arange(count), (batch, 1)), axis=1)
    asked = rng.integers(0, count, (2, batch))
    return Question(rng.uniform(-1, 1, (batch, count, 2)), labels, *asked)


def test_nth_farthest_shows_the_three_cases():
    asked = question()
    steps = reference_steps(asked)
    labels, references = np.asarray(asked.labels), np.asarray(asked.reference)
    np.testing.assert_array_equal(labels[np.arange(64), steps], references)
    last, first, middle = reference_cases(asked)
    assert (steps[last], steps[first], steps[middle]) == (7, 0, 4)

    weights = random_attention(64, 8, 8, 9)
    figure = nth_farthest_figure(weights, asked)
    shown = np.array(panels(figure)).reshape(3, 8)
    assert [a.get_ylabel() for a in shown[:, 0]] == ["seen last", "seen first", "seen middle"]
    for row, b in zip(shown, (last, first, middle), strict=True):
        assert [i for i, axes in enumerate(row) if framed(axes)] == [steps[b]]
        for step, axes in enumerate(row):
            np.testing.assert_array_equal(axes.images[0].get_array(), weights[b, step, :, :8])
            name = "m =" if step == steps[b] else "object"
            assert axes.get_title() == f"{name} {labels[b, step] + 1}"


def test_sequences_of_choice():
    weights = random_attention(64, 4, 3, 4).tolist()  # Whatever NumPy makes an array of.
    figure = nth_farthest_figure(weights, question(4), sequences=[5])
    step = reference_steps(question(4))[5]
    assert panels(figure)[0].get_ylabel() == f"seen at step {step + 1}"
    assert len(panels(figure)) == 4


FIGURES = {
    "paper": lambda: nth_farthest_figure(random_attention(64, 8, 8, 9), question()),
    "few slots": lambda: nth_farthest_figure(random_attention(64, 4, 4, 5), question(4)),
    "one slot": lambda: attention_figure(random_attention(1, 4, 1, 2), title="one slot"),
    "many": lambda: attention_figure(
        random_attention(2, 12, 16, 20), title="heads", row_labels=["head 1", "head 2"]
    ),
}


@pytest.mark.parametrize("name", mostly_slow(FIGURES, keep=["few slots"]))
def test_nothing_is_cut(name):
    assert_nothing_cut(FIGURES[name]())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["few slots"])
def test_same_twice(name):
    assert_same_twice(FIGURES[name])


def test_animation_has_a_frame_for_each_step(tmp_path):
    weights = random_attention(3, 4, 5)
    animation = attention_animation(weights, step_titles=["a", "b", "c"], marked=1)
    path = tmp_path / "any name"
    save_gif(animation, path, frame_seconds=0.5, dpi=60)
    buffer = io.BytesIO()
    save_gif(animation, buffer, frame_seconds=0.5, dpi=60)
    assert buffer.getvalue() == path.read_bytes()
    with Image.open(path) as image:
        assert image.n_frames == 3
        assert image.info["duration"] == 500
        assert image.info["loop"] == 0
    # Its last frame is what is left in the figure.
    axes = animation._fig.axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights[2, :, :4])
    assert axes.get_title() == "3/3: c"
    animation._func(1)
    assert framed(axes)
    assert axes.spines["left"].get_edgecolor() == to_rgba(ACCENT)
    assert_nothing_cut(animation._fig)
    with pytest.raises(ValueError, match="frame_seconds must be positive, got 0"):
        save_gif(animation, path, frame_seconds=0)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib .*'\.\[experiments\]'"):
        importlib.reload(visualize)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: attention_figure(w[0]), r"weights must be \[rows, T, S, S\+R\], got shape"),
        (lambda w: attention_figure(w[..., :2]), r"weights must be \[rows, T, S, S\+R\]"),
        (
            lambda w: attention_figure(w, row_labels=["a"]),
            "row_labels must have an entry for each of 2 rows, got 1",
        ),
        (
            lambda w: attention_figure(w, panel_titles=[["a"], ["b"]]),
            r"panel_titles must have 3 titles \(steps\) in each row, got 1",
        ),
        (
            lambda w: attention_figure(w, marked=[0, 3]),
            r"marked must hold steps in 0..2 or None, got 3",
        ),
        (
            lambda w: nth_farthest_figure(w, question(4)),
            r"weights must be of the question's \[B, T\] = \(64, 4\), got shape \(2, 3",
        ),
        (lambda w: attention_figure(w, columns=0), "columns must be at least 1, got 0"),
        (
            lambda w: attention_animation(w[0], marked=3),
            r"marked must lie in 0..2 or be None, got 3",
        ),
        (lambda w: attention_animation(w), r"weights must be \[T, S, S\+R\], got shape"),
        (
            lambda w: attention_animation(w[0], step_titles=["a"]),
            "step_titles must have 3 entries, got 1",
        ),
        (
            lambda w: reference_cases(question(8, 1)),
            r"that shows the reference last \(step 8 of 8\), got 1 sequences without one",
        ),
        (
            lambda w: nth_farthest_figure(w, question(3, 2), sequences=[0, 5]),
            r"sequences must be of the batch of 2, got \[5\]",
        ),
        (
            lambda w: nth_farthest_figure(w, Question(None, [[0, 1, 2]] * 2, None, [2, 3])),
            r"once, got reference 3 and labels \[0, 1, 2\] in sequence 1",
        ),
        (
            lambda w: reference_steps(Question(None, [[0, 1, 1]], None, [1])),
            r"question.labels must hold the reference of each sequence once, got reference 1",
        ),
        (
            lambda w: reference_steps(Question(None, [0, 1, 2], None, [1])),
            r"question.labels must have shape \[B, T\], got \(3,\)",
        ),
        (
            lambda w: reference_steps(Question(None, [[0, 1, 2]], None, 1)),
            r"question.reference must have shape \[B\] = \(1,\), got \(\)",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_attention(2, 3, 2, 3))
