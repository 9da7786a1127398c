"""Bars of ablations: every seed is there, and so is the comparison."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from rrnn_jax.visualize import bars_figure
from tests.visualize.figures import assert_nothing_cut, assert_same_twice

GROUPS = {
    "": {"base": [90.0, 92.0, 94.0]},
    "memory slots": {"1": [51.0, 50.0], "16": [93.0, 95.0]},
    "initial memory": {"a long name of a variant": [70.0]},
}


def make():
    return bars_figure(GROUPS, title="t", reference=("", "base"), trivial=50.0, x_limits=(40, 100))


def test_a_bar_and_dots_for_each_variant():
    axes = make().axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["base", "1", "16", "a long name of a variant"]
    positions = list(axes.get_yticks())
    assert positions == [0, 2, 3, 5]  # Headings take the lines between.
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, [92.0, 50.5, 94.0, 70.0])
    dots = [line.get_xydata() for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dots[0], [[90, 0], [92, 0], [94, 0]])
    np.testing.assert_allclose(dots[2], [[93, 3], [95, 3]])
    # Dots that lie on each other are seen.
    assert all(0 < line.get_alpha() < 1 for line in axes.lines if line.get_marker() == "o")
    headings = {text.get_text(): text.xy[1] for text in axes.texts}
    assert headings == {"trivial 50": 1.0, "memory slots": 1, "initial memory": 4}
    assert axes.get_xlabel() == "accuracy (%)"
    assert axes.get_xlim() == (40, 100)


def test_the_group_without_a_heading_is_the_first():
    last = {name: GROUPS[name] for name in ("memory slots", "initial memory", "")}
    axes = bars_figure(last).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["base", "1", "16", "a long name of a variant"]
    assert {text.get_text(): text.xy[1] for text in axes.texts} == {
        "memory slots": 1,
        "initial memory": 4,
    }


def test_the_reference_runs_through_and_stands_out():
    axes = make().axes[0]
    across = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [set(line.get_xdata()) for line in across] == [{92.0}]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] != colours[1] == colours[2]


def test_an_interval_is_a_line_on_its_bar():
    axes = bars_figure(GROUPS, intervals={("memory slots", "16"): (92.5, 95.5)}).axes[0]
    lines = [line.get_xydata() for line in axes.lines if line.get_color() == "black"]
    np.testing.assert_allclose(lines, [[[92.5, 3], [95.5, 3]]])


def test_lines_pass_behind_headings():
    axes = make().axes[0]
    across = [line for line in axes.lines if line.get_linestyle() in ("--", ":")]
    assert len(across) == 2
    headings = [text for text in axes.texts if text.get_fontweight() == "bold"]
    assert len(headings) == 2
    for text in headings:
        assert text.get_bbox_patch().get_facecolor() == to_rgba("white")
        assert text.get_zorder() > max(line.get_zorder() for line in across)


def test_nothing_is_cut_and_same_twice():
    assert_nothing_cut(make())
    assert_same_twice(make)
    many = {f"factor {i}": {f"value {j}": [0.5] for j in range(4)} for i in range(8)}
    assert_nothing_cut(bars_figure(many, title="many"))


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ({}, {}, "at least one variant"),
        ({"a": {"b": []}}, {}, "each at least one value"),
        (
            GROUPS,
            {"intervals": {("", "bas"): (0, 1)}},
            r"intervals must be .*, got \[\('', 'bas'\)\]",
        ),
        (GROUPS, {"reference": ("", "bas")}, r"reference must name one of .*, got \('', 'bas'\)"),
    ],
)
def test_what_does_not_fit(groups, options, message):
    with pytest.raises(ValueError, match=message):
        bars_figure(groups, **options)
