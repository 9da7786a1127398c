"""Learning curves: what is drawn is what was given."""

import numpy as np
import pytest

from rrnn_jax.visualize import learning_curves_figure
from rrnn_jax.visualize.style import COLOURS, line_look
from tests.visualize.figures import assert_nothing_cut, assert_same_twice

ONE = [([0, 10, 20], [0.2, 0.5, 0.9])]
THREE = [([0, 10], [0.1, 0.4]), ([0, 10], [0.2, 0.6]), ([0, 10, 20], [0.3, 0.8, 0.9])]


def test_one_seed_is_one_line():
    figure = learning_curves_figure({"RMC": ONE}, title="t", trivial=0.25)
    (axes,) = figure.axes
    curve, trivial = axes.lines
    np.testing.assert_array_equal(curve.get_xydata(), np.array(ONE[0]).T)
    assert set(trivial.get_ydata()) == {0.25}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "RMC",
        "trivial score 0.25",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("updates", "accuracy", "t")


def test_lines_have_their_names_and_scores():
    axes = learning_curves_figure({"RMC": ONE}, trivial={"random": 0.25, "rule": 2 / 3}).axes[0]
    drawn = {line.get_label(): line for line in axes.lines[1:]}
    assert {name: set(line.get_ydata()) for name, line in drawn.items()} == {
        "random 0.25": {0.25},
        "rule 0.667": {2 / 3},
    }
    assert len({line.get_linestyle() for line in drawn.values()}) == 2


def test_several_seeds_have_mean_and_range_where_all_have_values():
    figure = learning_curves_figure({"RMC": THREE, "LSTM": ONE})
    axes = figure.axes[0]
    mean = axes.lines[3]
    np.testing.assert_allclose(mean.get_xydata(), [[0, 0.2], [10, 0.6]])
    assert len(axes.collections) == 1
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["RMC (3 seeds)", "LSTM"]
    assert axes.lines[0].get_color() != axes.lines[4].get_color()


def test_a_second_panel_has_the_same_curves_over_minutes():
    pace = {"RMC": 0.5, "LSTM": 0.1}
    updates, minutes = learning_curves_figure(
        {"RMC": THREE, "LSTM": ONE}, trivial=0.25, y_limits=(0, 1), minutes_per_step=pace
    ).axes
    for index, name in ((3, "RMC"), (4, "LSTM")):
        steps, values = updates.lines[index].get_xydata().T
        expected = np.stack([steps * pace[name], values], axis=1)
        np.testing.assert_allclose(minutes.lines[index].get_xydata(), expected)
    assert minutes.get_xlabel() == "minutes"
    assert updates.get_ylim() == minutes.get_ylim() == (0, 1)
    with pytest.raises(ValueError, match=r"minutes_per_step must have every model.*LSTM"):
        learning_curves_figure({"RMC": ONE, "LSTM": ONE}, minutes_per_step={"RMC": 1.0})


def test_many_models_are_told_apart():
    axes = learning_curves_figure({f"model {i}": ONE for i in range(9)}).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 9


def test_looks_can_be_given():
    looks = {"LSTM": line_look(1), "RMC": line_look(0)}
    axes = learning_curves_figure({"LSTM": ONE, "RMC": THREE}, looks=looks).axes[0]
    assert [line.get_color() for line in axes.lines] == [COLOURS[1], *[COLOURS[0]] * 4]
    with pytest.raises(ValueError, match=r"looks must have every model, got none of {'RMC'}"):
        learning_curves_figure({"RMC": ONE}, looks={})


def test_nothing_is_cut_and_same_twice():
    def make():
        return learning_curves_figure({"RMC": THREE}, title="t", trivial=0.25, y_limits=(0, 1))

    assert_nothing_cut(make())
    assert_same_twice(make)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "at least one curve"),
        ({"RMC": []}, "at least one curve"),
        ({"RMC": [([0, 1], [0.5])]}, r"curves\['RMC'\] must have as many values as steps, got 1"),
    ],
)
def test_bad_curves(curves, message):
    with pytest.raises(ValueError, match=message):
        learning_curves_figure(curves)
