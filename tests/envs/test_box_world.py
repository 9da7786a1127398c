"""BoxWorld's rules, its levels as properties, its window, and a reference solver."""

from collections import deque
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrnn_jax.envs import BoxWorld
from rrnn_jax.envs.box_world_levels import BACKGROUND, DISTRACTOR, GEM, KEY, LOCK, Level

UP, DOWN, LEFT, RIGHT = range(4)
MOVES = {UP: (-1, 0), DOWN: (1, 0), LEFT: (0, -1), RIGHT: (0, 1)}
SETTINGS = {
    5: BoxWorld(grid_size=5, solution_length=(1,), num_distractors=(0,)),
    8: BoxWorld(grid_size=8, solution_length=(1, 2), num_distractors=(0, 1), max_steps=60),
    12: BoxWorld(),
}
STEP = {size: jax.jit(env.step_env) for size, env in SETTINGS.items()}


@cache
def levels(size: int) -> Level:
    draw = jax.jit(SETTINGS[size].draw_levels, static_argnums=1)
    return jax.device_get(draw(jax.random.key(7), 200))


def level(size: int, index: int) -> Level:
    return jax.tree.map(lambda x: jnp.asarray(x[index]), levels(size))


def solve(grid: np.ndarray, player: tuple[int, int]) -> list[int]:
    """A way to the gem without distractors: the next key or lock by breadth-first search."""
    grid, held, actions = grid.astype(int), None, []
    while True:
        came = {player: (player, -1)}
        queue, goal = deque([player]), None
        while queue and goal is None:
            cell = queue.popleft()
            for action, (down, across) in MOVES.items():
                target = (cell[0] + down, cell[1] + across)
                content, right = grid[target], grid[target[0], min(target[1] + 1, len(grid) - 1)]
                opens = LOCK <= content < DISTRACTOR and content - LOCK == held
                takes = GEM <= content < LOCK and right < LOCK and content - KEY != held
                if target in came or not (content == BACKGROUND or opens or takes):
                    continue
                came[target] = (cell, action)
                queue.append(target)
                if opens or takes:
                    goal = target
                    break
        assert goal is not None, "no way"
        path, cell = [], goal
        while cell != player:
            cell, action = came[cell]
            path.append(action)
        actions += path[::-1]
        content = grid[goal]
        if content == GEM:
            return actions
        held = content - KEY if content < LOCK else None
        grid[goal], player = BACKGROUND, goal


@settings(max_examples=25, deadline=None)
@given(size=st.sampled_from(sorted(SETTINGS)), index=st.integers(0, 199))
def test_levels_are_solved_by_a_reference_solver(size, index):
    env, start = SETTINGS[size], level(size, index)
    params = env.default_params.replace(max_steps=10_000)
    state, total = env.start(start, params), 0.0
    actions = solve(np.asarray(start.grid), tuple(start.player.tolist()))
    for count, action in enumerate(actions, 1):
        _, state, reward, done, info = STEP[size](None, state, jnp.int32(action), params)
        total += float(reward)
        assert bool(done) == bool(info["solved"]) == (count == len(actions))
    assert total == int(start.solution_length) + 10


@settings(max_examples=50, deadline=None)
@given(size=st.sampled_from(sorted(SETTINGS)), index=st.integers(0, 199))
def test_keys_and_locks_are_consistent(size, index):
    env, start = SETTINGS[size], level(size, index)
    params, grid = env.default_params, np.asarray(start.grid).astype(int)
    length, number = int(start.solution_length), int(start.num_distractors)
    assert length in params.solution_length
    assert number in params.num_distractors
    assert ((grid >= LOCK) & (grid < DISTRACTOR)).sum() == length
    assert (grid >= DISTRACTOR).sum() == number
    assert (grid == GEM).sum() == 1
    assert grid[tuple(start.player.tolist())] == BACKGROUND
    contents = np.argwhere((grid >= GEM) & (grid < LOCK))
    assert len(contents) == 1 + length + number  # A loose key, and one thing in each box.
    assert contents[:, 0].min() >= 2
    assert contents[:, 0].max() <= size - 1
    assert contents[:, 1].min() >= 2
    assert contents[:, 1].max() <= size - 3
    holds, loose, wrong = {}, None, {}
    for row, column in contents:
        content, lock = grid[row, column], grid[row, column + 1]
        # A box keeps away from what was there before it; a loose key was there first.
        around = grid[row - 1 : row + 2, column - 1 : column + (3 if lock >= LOCK else 2)]
        assert np.count_nonzero(around > 1) == (2 if lock >= LOCK else 1)
        if lock >= DISTRACTOR:
            wrong[lock - DISTRACTOR, content - KEY] = True
        elif lock >= LOCK:
            holds[lock - LOCK] = content - KEY
        else:
            loose = content - KEY
    path, key = [], loose
    while key in holds:  # The gem has the number -1.
        path.append(key)
        key = holds[key]
    assert (len(path), key) == (length, GEM - KEY)
    for lock, content in wrong:
        assert lock in path
        assert content not in path


def test_state_of_a_grid_size_of_numpy():
    env = BoxWorld(grid_size=np.int64(5), solution_length=(1,), num_distractors=(0,))
    with jax.enable_x64(True):
        _, state = jax.eval_shape(env.reset, jax.random.key(0))
    assert state.player.dtype == jnp.int32


def test_a_loose_key_needs_less_room_than_a_box():
    env = BoxWorld(grid_size=7, solution_length=(3,), num_distractors=(0,))
    grid = jax.jit(env.draw_level, static_argnums=1)(jax.random.key(0), env.default_params).grid
    assert (grid > 1).sum() == 7


def state_from(text: str, player: tuple[int, int], held: int = -1):
    """A state of a 5 x 5 grid; letters are keys, capitals locks, '!' a distractor's of colour 0."""
    codes = {".": BACKGROUND, "#": 1, "*": GEM, "!": DISTRACTOR}
    codes |= {chr(97 + c): KEY + c for c in range(3)} | {chr(65 + c): LOCK + c for c in range(3)}
    grid = np.array([[codes[c] for c in row] for row in text.split()], np.uint8)
    env = SETTINGS[5]
    start = Level(jnp.asarray(grid), jnp.array(player, jnp.int32), jnp.int32(1), jnp.int32(0))
    return env.start(start, env.default_params).replace(held=jnp.int32(held))


GRID = "####### #.....# #..bA.# #a....# #*B...# #..c!.# #######"
CASES = {
    "walks": ((1, 1), -1, RIGHT, (1, 2), -1, 0.0, False),
    "border": ((1, 1), -1, UP, (1, 1), -1, 0.0, False),
    "takes a key": ((2, 1), -1, DOWN, (3, 1), 0, 0.0, False),
    "a key replaces the other": ((2, 1), 1, DOWN, (3, 1), 0, 0.0, False),
    "no key": ((2, 5), -1, LEFT, (2, 5), -1, 0.0, False),
    "wrong key": ((2, 5), 1, LEFT, (2, 5), 1, 0.0, False),
    "opens": ((2, 5), 0, LEFT, (2, 4), -1, 1.0, False),
    "a locked key": ((1, 3), 0, DOWN, (1, 3), 0, 0.0, False),
    "a locked gem": ((3, 1), 1, DOWN, (3, 1), 1, 0.0, False),
    "a distractor ends it": ((5, 5), 0, LEFT, (5, 4), -1, -1.0, True),
}


@pytest.mark.parametrize("name", CASES)
def test_rules(name):
    player, held, action, new_player, new_held, reward, ends = CASES[name]
    state = state_from(GRID, player, held)
    params = SETTINGS[5].default_params
    _, new, got, done, info = STEP[5](None, state, jnp.int32(action), params)
    assert (tuple(new.player.tolist()), int(new.held)) == (new_player, new_held)
    assert (float(got), bool(done), bool(info["solved"])) == (reward, ends, False)
    moved = new_player != player
    assert not moved or new.grid[new_player] == BACKGROUND
    assert (np.asarray(new.grid) != np.asarray(state.grid)).sum() == (moved and name != "walks")


def test_gem_and_limit():
    params = SETTINGS[5].default_params.replace(max_steps=2)
    state = state_from(GRID.replace("*B", "*."), (3, 1))
    _, _, reward, done, info = STEP[5](None, state, jnp.int32(DOWN), params)
    assert (float(reward), bool(done), bool(info["solved"])) == (10.0, True, True)
    ends = []
    for _ in range(3):  # The third step is the one after two.
        _, state, _, done, info = STEP[5](None, state, jnp.int32(RIGHT), params)
        ends.append((bool(done), bool(info["terminated"]), bool(info["truncated"])))
    assert ends == [(False, False, False)] * 2 + [(True, True, False)]


@pytest.mark.parametrize("held", [-1, 3])
def test_viewport_is_a_window_of_the_frame_and_the_key(held):
    env = SETTINGS[8]
    params, look = env.default_params, jax.jit(env.get_obs)
    for index in range(20):
        state = env.start(level(8, index), params).replace(held=jnp.int32(held))
        window = np.asarray(look(state, params))
        state = state.replace(held=jnp.int32(-1))  # The pixel (0, 0) is cut off first.
        frame = np.asarray(look(state, params.replace(viewport=False)))
        padded = np.pad(frame, ((1, 1), (1, 1), (0, 0)))
        row, column = state.player.tolist()
        np.testing.assert_array_equal(
            window[..., :3], padded[row - 1 : row + 4, column - 1 : column + 4]
        )
        colour = [0.7, 0.664, 0.35] if held == 3 else [0, 0, 0]
        np.testing.assert_array_equal(
            window[..., 3:], np.broadcast_to(np.float32(colour), (5, 5, 3))
        )
    picture = np.asarray(env.render(state))
    assert (picture.shape, picture.dtype) == ((10, 10, 3), np.uint8)
    np.testing.assert_array_equal(picture, np.round(frame * 255))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"grid_size": 6}, ValueError, "grid_size=6 has room for 2 items at most"),
        ({"grid_size": 6, "solution_length": (2,), "num_distractors": (0,)}, ValueError, "make 3"),
        ({"grid_size": 0}, ValueError, "grid_size must be at least 1, got 0"),
        ({"solution_length": ()}, ValueError, "solution_length must hold a value"),
        (
            {"solution_length": 3},
            TypeError,
            r"solution_length must be a tuple such as \(1, 2\), got 3",
        ),
        ({"num_distractors": ()}, ValueError, "num_distractors must hold a value"),
        ({"solution_length": (0,)}, ValueError, "solution_length must be at least 1, got 0"),
        ({"num_distractors": (-1,)}, ValueError, "num_distractors must be at least 0, got -1"),
        ({"grid_size": 40, "solution_length": (19,)}, ValueError, "at most 18, two less than"),
        ({"grid_size": 8.0}, TypeError, "grid_size must be an integer, got 8.0"),
        ({"size": 8}, TypeError, "unexpected keyword argument 'size'"),
        ({"num_distractors": (0.5,)}, TypeError, "num_distractors must be an integer, got 0.5"),
        ({"viewport": "no"}, TypeError, "viewport must be True or False, got 'no'"),
        ({"max_steps": 0.5}, TypeError, r"max_steps must be an integer, got 0\.5"),
        ({"max_steps": None}, TypeError, "max_steps must be an integer, got None"),
        ({"max_steps": -3}, ValueError, "max_steps must be at least 1, got -3"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        BoxWorld(**options)
