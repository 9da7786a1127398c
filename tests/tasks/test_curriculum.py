"""Curricula: what a level means for samples, and when it grows, against the authors' rule."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrnn_jax.tasks import curriculum, learn_to_execute, memorization
from tests.tasks import program_oracle as oracle

CONFIG = learn_to_execute.Config("program", 5, 2, "naive")
advance = jax.jit(curriculum.advance, static_argnums=2)


def level_of(state: curriculum.CurriculumState) -> tuple[int, int]:
    return int(state.length), int(state.nesting)


class Reference:
    """The rule as the authors' data set has it, with a queue of losses."""

    def __init__(self, config: learn_to_execute.Config) -> None:
        self.config, self.level, self.tries = config, (1, 1), 0
        self.losses: deque[float] = deque(maxlen=config.curriculum_window)

    def advance(self, loss: float) -> None:
        self.losses.append(loss)
        self.tries += 1
        if self.tries < self.config.curriculum_window:
            return
        if np.mean(np.diff(self.losses)) / np.mean(self.losses) < self.config.curriculum_threshold:
            length, nesting = self.level
            if length < self.config.length:
                self.level = length + 1, nesting
            elif nesting < self.config.nesting:
                self.level = length, nesting + 1
            self.losses.clear()
            self.tries = 0


def test_constant_losses_reach_the_top_in_fifty_updates():
    state = curriculum.initial_state(CONFIG)
    levels = []
    for _ in range(60):
        state = advance(state, jnp.float32(2.0), CONFIG)
        levels.append(level_of(state))
    assert levels[8::10] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (5, 2)]
    assert levels[9::10] == [(2, 1), (3, 1), (4, 1), (5, 1), (5, 2), (5, 2)]


@pytest.mark.parametrize(
    ("threshold", "losses", "grows"),
    [
        (0.1, [1.0, 1.12, 1.24, 1.36], False),  # 0.12 per update, of 1.18 on average.
        (0.1, [1.0, 1.11, 1.22, 1.33], True),  # 0.11 of 1.165.
        (0.1, [1.0, 9.0, 9.0, 1.1], True),  # What is between does not count.
        (0.0, [1.0, 1.0, 1.0, 1.0], False),  # A threshold of zero asks for a fall.
        (0.0, [1.0, 1.0, 1.0, 0.99], True),
    ],
)
def test_threshold(threshold, losses, grows):
    config = learn_to_execute.Config(
        "program", 5, 2, "combined", curriculum_window=4, curriculum_threshold=threshold
    )
    state = curriculum.initial_state(config)
    for loss in losses:
        assert level_of(state) == (1, 1)
        state = advance(state, jnp.float32(loss), config)
    assert level_of(state) == ((2, 1) if grows else (1, 1))


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.integers(1, 1000), min_size=1, max_size=60),
    growth=st.integers(7, 16),
)
def test_agrees_with_the_reference(losses, growth):
    config = learn_to_execute.Config("program", 3, 2, "naive", curriculum_window=5)
    state, reference = curriculum.initial_state(config), Reference(config)
    for i, loss in enumerate(losses):
        value = np.float32(loss / 100 * (growth / 10) ** (i % 12))
        state = advance(state, jnp.float32(value), config)
        margin = _distance_from_threshold(reference, float(value))
        reference.advance(float(value))
        if margin < 1e-5:  # Rounding may decide.
            return
        assert level_of(state) == reference.level


def _distance_from_threshold(reference: Reference, loss: float) -> float:
    losses = [*reference.losses, loss][-reference.config.curriculum_window :]
    if len(losses) < reference.config.curriculum_window:
        return float("inf")
    relative = np.mean(np.diff(losses)) / np.mean(losses)
    return abs(relative - reference.config.curriculum_threshold)


def test_a_loss_is_a_scalar():
    config = learn_to_execute.Config(curriculum="naive")
    with pytest.raises(ValueError, match=r"loss must have shape .* = \(\), got \(3,\)"):
        curriculum.advance(curriculum.initial_state(config), jnp.ones(3), config)


def test_nan_raises_no_level():
    state = curriculum.initial_state(CONFIG)
    for _ in range(30):
        state = advance(state, jnp.float32(float("nan")), CONFIG)
    assert level_of(state) == (1, 1)


@pytest.mark.parametrize("name", ["fixed", "mix"])
def test_curricula_without_levels(name):
    config = learn_to_execute.Config("addition", 4, 3, name)
    state = curriculum.initial_state(config)
    assert level_of(state) == (4, 3)
    after = advance(state, jnp.float32(1.0), config)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_state_is_of_one_type():
    """So that a loop can carry it."""
    config = memorization.Config("copy", 3, "naive", curriculum_window=2)
    state = curriculum.initial_state(config)

    def step(state, loss):
        return curriculum.advance(state, loss, config), state.length

    last, lengths = jax.lax.scan(step, state, jnp.ones((6,), jnp.float32))
    assert lengths.tolist() == [1, 1, 2, 2, 3, 3]
    assert level_of(last) == (3, 1)  # Numbers do not nest.
    types = [(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(last)]
    assert types == [(leaf.dtype, leaf.shape) for leaf in jax.tree.leaves(state)]
    assert {dtype for dtype, _ in types} == {jnp.dtype("int32"), jnp.dtype("float32")}


@pytest.mark.parametrize("level", [3, (3, 2), "naive"])
@pytest.mark.parametrize("name", ["fixed", "naive"])
@pytest.mark.parametrize("task", [learn_to_execute, memorization])
def test_a_level_of_another_kind_is_refused(task, name, level):
    config = task.Config(curriculum=name)
    with pytest.raises(TypeError, match=r"level must be a CurriculumState, got .* of type (i|t|s)"):
        task.sample(jax.random.key(0), config, 2, level)


@pytest.mark.parametrize("name", ["naive", "combined"])
def test_levels_in_samples(name):
    """One program serves all levels, as the level is an array."""
    config = learn_to_execute.Config("addition", 4, 3, name)
    traces = []

    @jax.jit
    def sample(level):
        traces.append(level)
        return learn_to_execute.sample(jax.random.key(0), config, 2000, level)

    for length, nesting in ((1, 1), (3, 2), (4, 3)):
        level = curriculum.initial_state(config)._replace(
            length=jnp.int32(length), nesting=jnp.int32(nesting)
        )
        batch = sample(level)
        found = set()
        cells = np.zeros((length, nesting))
        for program in oracle.decode_rows(np.asarray(batch.inputs)):
            (digits,) = oracle.literal_lengths(program)
            found.add((digits, oracle.count_operations(program)))
            cells[digits - 1, oracle.count_operations(program) - 1] += 1
        if name == "naive":
            assert found == {(length, nesting)}
        else:
            # 99.99 % at 11 degrees of freedom.
            assert oracle.chi_square(cells, np.full_like(cells, 2000 / cells.size)) < 37.4
    assert len(traces) == 1
