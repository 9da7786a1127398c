"""Memory dynamics: hand-computed numbers, and the structure of figures."""

import numpy as np
import pytest

from rrnn_jax.visualize import (
    dynamics_figure,
    project_slots,
    projection_figure,
    similarity_figure,
    slot_movement,
    slot_similarity,
)
from tests.grids import mostly_slow
from tests.visualize.figures import assert_nothing_cut, assert_same_twice, colour_bars

RNG = np.random.default_rng(0)
MEMORIES = RNG.normal(size=(6, 4, 8))
INITIAL = np.eye(4, 8)
GATE = RNG.uniform(size=(6, 4, 8))


def test_movement_is_counted_from_the_initial_memory():
    memories = np.array([[[3.0, 4.0], [0.0, 0.0]], [[3.0, 3.0], [0.0, -2.0]]])
    moved = slot_movement(memories, np.zeros((2, 2)))
    np.testing.assert_allclose(moved, [[5.0, 0.0], [1.0, 2.0]])
    batched = slot_movement(np.stack([memories, 2 * memories]), np.zeros((2, 2, 2)))
    np.testing.assert_allclose(batched, [moved, 2 * moved])
    with pytest.raises(ValueError, match=r"memories must be \[\*B, T, S, F\] and initial"):
        slot_movement(memories, np.zeros((3, 2)))


def test_similarity_is_the_cosine():
    memory = np.array([[2.0, 0.0], [3.0, 3.0], [0.0, 0.0], [0.0, -1.0]])
    half = np.sqrt(0.5)
    expected = [[1, half, 0, 0], [half, 1, 0, -half], [0, 0, 0, 0], [0, -half, 0, 1]]
    np.testing.assert_allclose(slot_similarity(memory), expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"memory must be \[..., S, F\], got shape \(2,\)"):
        slot_similarity(memory[0])


def test_projection_finds_the_plane_and_fixes_the_sign():
    # In a plane of a space of four dimensions: 3 along one axis, 1 along another.
    first, second = np.array([0.6, 0.0, 0.8, 0.0]), np.array([0.0, 1.0, 0.0, 0.0])
    places = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    memories = (places @ np.stack([first, second]) + 5.0).reshape(2, 2, 4)
    points, explained = project_slots(memories)
    np.testing.assert_allclose(points.reshape(4, 2), places, atol=1e-12)
    np.testing.assert_allclose(explained, [0.9, 0.1])
    # The largest entry of a component is positive, whichever way the decomposition turns.
    mirrored, _ = project_slots(-memories)
    np.testing.assert_allclose(mirrored, -points, atol=1e-12)


def test_projection_of_memories_that_do_not_differ():
    with pytest.raises(ValueError, match=r"with slots, got shape \(0, 2, 1\)"):
        project_slots(np.ones((0, 2, 1)))
    with pytest.raises(ValueError, match="memories must be finite, got NaN"):
        project_slots(np.full((3, 2, 1), np.nan))
    points, explained = project_slots(np.ones((3, 2, 1)))
    assert points.shape == (3, 2, 2)
    assert not points.any()
    assert not explained.any()


def dynamics(**options):
    options = {"input_gate": GATE, "forget_gate": GATE[..., :1], **options}
    return dynamics_figure(MEMORIES, INITIAL, **options)


def test_dynamics_shows_movement_and_gates_with_units():
    labels = [f"object {i}" for i in range(6)]
    figure = dynamics(step_labels=labels, marked=2, title="t")
    moved, input_gate, forget_gate = figure.axes[:3]
    np.testing.assert_allclose(moved.images[0].get_array(), slot_movement(MEMORIES, INITIAL).T)
    np.testing.assert_allclose(input_gate.images[0].get_array(), GATE.mean(-1).T)
    np.testing.assert_allclose(forget_gate.images[0].get_array(), GATE[..., 0].T)
    assert colour_bars(figure) == ["distance", "openness (0 to 1)", "openness (0 to 1)"]
    assert (input_gate.images[0].norm.vmin, input_gate.images[0].norm.vmax) == (0.0, 1.0)
    ticks = forget_gate.get_xticklabels()
    assert [text.get_text() for text in ticks] == labels
    assert [text.get_fontweight() == "bold" for text in ticks] == [i == 2 for i in range(6)]
    for axes in (moved, input_gate, forget_gate):
        (box,) = axes.patches
        assert (box.get_x(), box.get_width()) == (2.5, 1.0)


def test_dynamics_without_gates():
    figure = dynamics_figure(MEMORIES, INITIAL)
    assert colour_bars(figure) == ["distance"]
    assert figure.axes[0].get_xlabel() == "step"


def test_similarity_panels():
    figure = similarity_figure(MEMORIES[:3], panel_titles=["a", "b", "c"])
    for axes, memory in zip(figure.axes, MEMORIES[:3], strict=False):
        np.testing.assert_allclose(axes.images[0].get_array(), slot_similarity(memory))
        assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (-1.0, 1.0)
    assert colour_bars(figure) == ["cosine (-1 to 1)"]


def test_paths_are_told_apart():
    memories = RNG.normal(size=(5, 9, 4))
    figure = projection_figure(memories, marked=3, marked_label="reference")
    axes = figure.axes[0]
    points, explained = project_slots(memories)
    for slot, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_xydata(), points[:, slot])
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 9
    assert [text.get_text() for text in axes.texts] == [str(i + 1) for i in range(9)]
    assert axes.get_xlabel() == f"first component ({explained[0]:.0%} of variance)"
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == [*(f"slot {i + 1}" for i in range(9)), "reference"]
    np.testing.assert_allclose(axes.collections[-1].get_offsets(), points[3])


FIGURES = {
    "dynamics": lambda: dynamics(step_labels=np.array([f"object {i}" for i in range(6)]), marked=0),
    "dynamics, one slot": lambda: dynamics_figure(np.ones((64, 1, 2)), np.zeros((1, 2))),
    "similarity": lambda: similarity_figure(MEMORIES[:5]),
    "similarity, one": lambda: similarity_figure(RNG.normal(size=(1, 16, 4))),
    "projection": lambda: projection_figure(MEMORIES, marked=2),
    "projection, one step": lambda: projection_figure(MEMORIES[:1]),
}
KEPT = ["dynamics", "similarity", "projection"]


@pytest.mark.parametrize("name", mostly_slow(FIGURES, keep=KEPT))
def test_nothing_is_cut(name):
    assert_nothing_cut(FIGURES[name]())


@pytest.mark.parametrize("name", mostly_slow(KEPT, keep=["projection"]))
def test_same_twice(name):
    assert_same_twice(FIGURES[name])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dynamics_figure(MEMORIES[None], INITIAL[None]), r"memories must be \[T, S, F\]"),
        (lambda: dynamics(input_gate=GATE[:5]), r"input_gate must be .* = \(6, 4\), got shape \(5"),
        (lambda: dynamics(step_labels=["a"]), "step_labels must have 6 entries, got 1"),
        (lambda: dynamics(marked=6), r"marked must lie in 0..5 or be None, got 6"),
        (lambda: dynamics(marked=-1), r"marked must lie in 0..5 or be None, got -1"),
        (lambda: similarity_figure(MEMORIES), r"memories must be \[P, S, F\] with P in 1..5"),
        (
            lambda: similarity_figure(MEMORIES[:2], panel_titles=["a"]),
            "panel_titles must have 2 entries, got 1",
        ),
        (lambda: projection_figure(MEMORIES[0]), r"memories must be \[T, S, F\], got shape \(4, 8"),
        (
            lambda: projection_figure(MEMORIES, marked=6),
            r"marked must lie in 0..5 or be None, got 6",
        ),
        (
            lambda: project_slots(MEMORIES[0, 0]),
            r"memories must be \[..., F\] with slots, got shape \(8,\)",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
