"""BoxWorld replays the 200 levels recorded from the authors' code, and draws levels as it does."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.envs import BoxWorld
from rrnn_jax.envs.box_world import BoxWorldParams
from rrnn_jax.envs.box_world_levels import BACKGROUND, BORDER, DISTRACTOR, GEM, KEY, LOCK, Level
from tests.grids import mostly_slow

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "box_world.npz") as arrays:
        return dict(arrays)


def recorded_level(golden: dict, index: int) -> Level:
    size = int(golden["grid_size"][index])
    grid = np.full((size + 2, size + 2), BORDER, np.uint8)
    grid[1:-1, 1:-1] = BACKGROUND
    for item in golden["items"][index, : golden["num_items"][index]].astype(int):
        row, column, content, lock_column, lock, is_distractor = item
        grid[row, column] = GEM if content < 0 else KEY + content
        if lock >= 0:
            grid[row, lock_column] = (DISTRACTOR if is_distractor else LOCK) + lock
    counts = (golden[name][index] for name in ("goal_length", "num_distractor_boxes"))
    return Level(
        jnp.asarray(grid),
        jnp.asarray(golden["player_start"][index].astype(np.int32)),
        *(jnp.int32(count) for count in counts),
    )


@pytest.mark.parametrize(
    ("size", "steps"),
    mostly_slow([(12, 120), (12, 40), (10, 50), (8, 120), (6, 25)], keep=[(12, 120), (6, 25)]),
)
def test_replays_every_level(golden, size, steps):
    which = np.flatnonzero((golden["grid_size"] == size) & (golden["max_num_steps"] == steps))
    assert len(which) >= 10
    env = BoxWorld(grid_size=12, viewport=False, max_steps=steps)
    # Rules do not depend on how levels are drawn, only on the grid's size.
    params = BoxWorldParams(size, (1,), (0,), viewport=False, max_steps=steps)
    levels = jax.tree.map(lambda *x: jnp.stack(x), *(recorded_level(golden, i) for i in which))
    key = jax.random.key(0)

    @jax.jit
    def play(levels: Level, actions: jax.Array):
        def step(state, action):
            result = jax.vmap(env.transition, (None, 0, 0, None))(key, state, action, params)
            frame = jax.vmap(env.frame)(result.state)
            return result.state, (frame, result.reward, result.terminated, result.truncated)

        start = jax.vmap(env.start, (0, None))(levels, params)
        obs = jax.vmap(env.get_obs, (0, None))(start, params)
        return jax.vmap(env.frame)(start), obs, jax.lax.scan(step, start, actions.T)[1]

    actions = np.maximum(golden["actions"][which], 0).astype(np.int32)
    first, obs, (frames, rewards, done, truncated) = jax.device_get(
        play(levels, jnp.asarray(actions))
    )
    window = slice(0, size + 2)
    expected = golden["frames"][which][:, :, window, window]
    np.testing.assert_array_equal(first, expected[:, 0])
    rgb = golden["initial_rgb"][which][:, window, window].astype(np.float32)
    np.testing.assert_array_equal(obs, rgb / np.float32(1000))
    valid = golden["valid"][which].T
    np.testing.assert_array_equal(frames[valid], expected[:, 1:].swapaxes(0, 1)[valid])
    np.testing.assert_array_equal(rewards[valid], golden["rewards"][which].T[valid])
    np.testing.assert_array_equal(done[valid], golden["done"][which].T[valid])
    assert not truncated.any()


def two_samples(first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """The chi-square statistic of two histograms, and its degrees of freedom."""
    a, b = np.sqrt(second.sum() / first.sum()), np.sqrt(first.sum() / second.sum())
    seen = first + second > 0
    terms = (a * first - b * second) ** 2
    return float((terms[seen] / (first + second)[seen]).sum()), int(seen.sum()) - 1


SMALL = json.loads((GOLDEN / "box_world_small.json").read_text())
POSSIBLE = {name: case for name, case in SMALL.items() if case["grid"] > 6 or name == "g6_L1_F0"}
PAPER = json.loads((GOLDEN / "box_world.json").read_text())["generator_statistics"]
# 99.9 % of chi-square, by degrees of freedom.
LIMIT = {0: 0.0, 1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5}


@cache
def draw(size: int, lengths: tuple[int, ...], distractors: tuple[int, ...]) -> Level:
    """4,000 levels."""
    env = BoxWorld(grid_size=size, solution_length=lengths, num_distractors=distractors)
    levels = jax.jit(env.draw_levels, static_argnums=1)(jax.random.key(1), 4000)
    return jax.device_get(levels)


@pytest.mark.slow
@pytest.mark.parametrize("name", POSSIBLE)
def test_lengths_and_distractors_are_distributed_as_recorded(name):
    case = dict(POSSIBLE[name])
    if name == "g12_L1-5_F0-5":  # 2,000 levels of the same setting, and 600.
        for field in ("goal_length", "num_forward"):
            case[field] = {k: v + PAPER[field][k] for k, v in case[field].items()}
    levels = draw(case["grid"], tuple(case["L"]), tuple(case["F"]))
    drawn = {"goal_length": levels.solution_length, "num_forward": levels.num_distractors}
    for field, values in drawn.items():
        bins = {int(k): count for k, count in case[field].items()}
        ours = np.bincount(np.asarray(values), minlength=max(bins) + 1).astype(float)
        theirs = np.array([bins.get(i, 0) for i in range(len(ours))], float)
        statistic, freedom = two_samples(ours, theirs)
        assert statistic <= LIMIT[freedom], (field, ours, theirs)


@pytest.mark.slow
def test_cells_and_colours_are_distributed_as_recorded(golden):
    levels = draw(12, (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5))
    grid, player = np.asarray(levels.grid).astype(int), np.asarray(levels.player)
    which = np.flatnonzero(np.isin(golden["config_name"], ["paper", "default"]))
    for axis in (0, 1):
        theirs = np.bincount(golden["player_start"][which, axis], minlength=14).astype(float)
        ours = np.bincount(player[:, axis], minlength=14).astype(float)
        statistic, freedom = two_samples(ours, theirs)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
        gems = np.argwhere(grid == GEM)[:, 1 + axis]
        recorded = [
            item[axis]
            for index in which
            for item in golden["items"][index, : golden["num_items"][index]]
            if item[2] == -1
        ]
        theirs = np.bincount(recorded, minlength=14).astype(float)
        statistic, freedom = two_samples(np.bincount(gems, minlength=14).astype(float), theirs)
        assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    # Colours are alike: the gem's lock has any of the 20.
    row = np.argwhere(grid == GEM)
    locks = grid[row[:, 0], row[:, 1], row[:, 2] + 1] - LOCK
    counts = np.bincount(locks, minlength=20)
    assert ((counts - 200.0) ** 2 / 200).sum() < 50  # 99.99 % at 19 degrees of freedom.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g6_L1_F0", "g8_L1-2_F0-1"])
def test_random_policy_scores_as_recorded(name):
    case = SMALL[name]
    env = BoxWorld(
        grid_size=case["grid"],
        solution_length=tuple(case["L"]),
        num_distractors=tuple(case["F"]),
        max_steps=case["max_num_steps"],
    )
    episodes, steps = 2000, case["max_num_steps"] + 1
    params = env.default_params

    @jax.jit
    def play(key: jax.Array):
        def step(carry, key):
            state, over, total, solved = carry
            actions = jax.random.randint(key, (episodes,), 0, 4, jnp.int32)
            result = jax.vmap(env.transition, (None, 0, 0, None))(key, state, actions, params)
            total = total + jnp.where(over, 0.0, result.reward)
            solved = solved | (result.info["solved"] & ~over)
            return (result.state, over | result.terminated, total, solved), None

        for_levels, for_steps = jax.random.split(key)
        levels = env.draw_levels(for_levels, episodes)
        state = jax.vmap(env.start, (0, None))(levels, params)
        no = jnp.zeros((episodes,), bool)
        start = (state, no, jnp.zeros((episodes,), jnp.float32), no)
        return jax.lax.scan(step, start, jax.random.split(for_steps, steps))[0]

    _, over, total, solved = play(jax.random.key(3))
    assert bool(over.all())
    theirs, share = case["random"], float(jnp.mean(solved, dtype=jnp.float32))
    error = (theirs["solved"] * (1 - theirs["solved"]) * (1 / 300 + 1 / episodes)) ** 0.5
    assert abs(share - theirs["solved"]) < 4 * error
    error = float(jnp.std(total)) * (1 / 300 + 1 / episodes) ** 0.5
    assert abs(float(jnp.mean(total)) - theirs["return_mean"]) < 4 * error
