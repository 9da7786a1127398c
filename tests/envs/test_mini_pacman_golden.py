"""Mini-Pacman replays the 4,000 transitions recorded from the published code, and its levels."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.envs import MiniPacman
from rrnn_jax.envs import mini_pacman_map as maze
from rrnn_jax.envs.mini_pacman import RULES, Draws, MiniPacmanState, Placement
from rrnn_jax.envs.mini_pacman_ghosts import GhostDraws, Ghosts
from tests.envs.test_box_world_golden import two_samples
from tests.grids import mostly_slow

GOLDEN = Path(__file__).parents[1] / "golden"
SLOTS = 4


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "mini_pacman.npz") as arrays:
        return dict(arrays)


def ints(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array.astype(np.int32))


def state_of(golden: dict, rows: np.ndarray) -> MiniPacmanState:
    at = {key[7:]: value[rows] for key, value in golden.items() if key.startswith("before/")}
    return MiniPacmanState(
        pacman=ints(at["pacman_pos"]),
        ghosts=Ghosts(
            ints(np.maximum(at["ghost_pos"], 0)),
            ints(np.maximum(at["ghost_dir"], 0)),
            jnp.asarray(at["ghost_alive"]),
        ),
        food=jnp.asarray(at["food"]),
        pills=ints(np.maximum(at["pill_pos"], 0)),
        has_pill=jnp.asarray(at["pill_alive"]),
        power=ints(at["power"]),
        timer=ints(at["timer"]),
        level=ints(at["level"]),
        time=ints(at["step_count"]),
    )


def draws_of(golden: dict, rows: np.ndarray) -> Draws:
    drawn = {key.split("/")[1]: value[rows] for key, value in golden.items() if "draws/" in key}
    sampled = {
        key.split("sampled_")[1]: np.maximum(value[rows], 0)
        for key, value in golden.items()
        if "sampled_" in key
    }
    # What was not drawn is NaN, and below no probability.
    choice = (drawn["random_index"] + 0.5) / np.maximum(drawn["num_candidates"], 1)
    ghosts = GhostDraws(
        jnp.asarray(drawn["move_uniform"]),
        jnp.asarray(drawn["branch_uniform"]),
        jnp.asarray(np.maximum(choice, 0).astype(np.float32)),
    )
    return Draws(
        ghosts,
        Placement(
            ints(sampled["pacman_pos"]),
            ints(sampled["pill_pos"]),
            ints(sampled["ghost_pos"]),
            ints(sampled["ghost_dir"]),
        ),
    )


def packed(values: np.ndarray, alive: np.ndarray) -> list[list]:
    """The entries of the living, in order: an eaten ghost leaves a gap in our slots."""
    rows = zip(values, alive, strict=True)
    return [[tuple(np.atleast_1d(v)) for v in row[keep]] for row, keep in rows]


@pytest.mark.parametrize("mode", mostly_slow(RULES, keep=["regular", "hunt"]))
def test_replays_every_transition(golden, mode):
    names = list(golden["mode_names"])
    rows = np.flatnonzero(golden["mode"] == names.index(mode))
    assert len(rows) == 800
    env = MiniPacman(mode=mode, viewport=False, max_ghosts=SLOTS)
    params = env.default_params

    @jax.jit
    @jax.vmap
    def step(state, action, draws):
        result = env.advance(state, action, draws, params)
        return result, env.get_obs(result.shown, params)

    result, obs = step(state_of(golden, rows), ints(golden["action"][rows]), draws_of(golden, rows))
    after = {key[6:]: value[rows] for key, value in golden.items() if key.startswith("after/")}
    new = result.state
    same = np.testing.assert_array_equal
    same(np.asarray(obs * 20).round(4), golden["observation_x20"][rows])
    np.testing.assert_allclose(result.reward, golden["reward"][rows], rtol=0, atol=1e-5)
    same(result.terminated, golden["died"][rows])
    same(result.truncated, golden["frame_cap_reached"][rows])
    same(result.terminated | result.truncated, golden["done"][rows])
    same(new.pacman, after["pacman_pos"])
    same(new.food, after["food"])
    for name, field in (("power", "power"), ("timer", "timer"), ("level", "level")):
        same(getattr(new, field), after[name], err_msg=name)
    same(new.time, after["step_count"])
    ghosts = new.ghosts
    for ours, recorded in ((ghosts.positions, "ghost_pos"), (ghosts.directions, "ghost_dir")):
        expected = packed(after[recorded], after["ghost_alive"])
        assert packed(np.asarray(ours), np.asarray(ghosts.alive)) == expected, recorded
    pills = packed(np.asarray(new.pills), np.asarray(new.has_pill))
    assert pills == packed(after["pill_pos"], after["pill_alive"])
    # The quirk is in the data: an observation of the old level, with the new one's state.
    stale = golden["observation_is_stale"][rows]
    assert stale.any() == (mode == "avoid")
    redrawn = jax.jit(jax.vmap(env.get_obs, (0, None)))(new, params)
    differs = np.any(np.asarray(redrawn) != np.asarray(obs), axis=(1, 2, 3))
    same(differs, stale)


def test_viewport_is_a_window_of_the_frame(golden):
    state = state_of(golden, np.arange(0, 4000, 10))
    env = MiniPacman(max_ghosts=SLOTS)
    params = env.default_params
    look = jax.jit(jax.vmap(env.get_obs, (0, None)))
    seen = np.asarray(look(state, params))
    frame = np.asarray(look(state, params.replace(viewport=False)))
    padded = np.pad(frame, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    for window, whole, (row, column) in zip(seen, padded, np.asarray(state.pacman), strict=True):
        np.testing.assert_array_equal(window, whole[row - 1 : row + 4, column - 1 : column + 4])


def test_map_and_exits(golden):
    np.testing.assert_array_equal(maze.MAZE, golden["map"] == 1)
    counts = json.loads((GOLDEN / "mini_pacman.json").read_text())["exit_counts"]
    exits = maze.EXITS.sum(-1)[~maze.MAZE]
    assert len(exits) == counts["open"] == 138
    assert [(exits > 2).sum(), (exits == 2).sum(), (exits < 2).sum()] == [
        counts["junctions"],
        counts["two_exits"],
        counts["dead_ends"],
    ]


def chi_square(first: np.ndarray, second: np.ndarray, categories: int) -> float:
    """Two samples' statistic, divided by its degrees of freedom."""
    counts = (np.bincount(x, minlength=categories).astype(float) for x in (first, second))
    statistic, freedom = two_samples(*counts)
    return statistic / freedom


def test_levels_are_distributed_as_recorded(golden):
    env = MiniPacman(max_ghosts=SLOTS)
    drawn = jax.jit(env.draw_levels, static_argnums=1)(jax.random.key(0), 20_000)
    cell = np.full(maze.MAZE.shape, -1)
    cell[tuple(maze.OPEN.T)] = np.arange(138)
    ours = {
        "pacman": cell[tuple(np.asarray(drawn.pacman).T)],
        "pill": cell[tuple(np.asarray(drawn.pills)[:, 0].T)],
        "ghost": cell[tuple(np.asarray(drawn.ghosts)[:, 0].T)],
    }
    recorded = {
        "pacman": cell[tuple(golden["level_starts/pacman_pos"].T)],
        "pill": cell[tuple(golden["level_starts/pill_pos"][:, 0].T)],
        "ghost": cell[tuple(golden["level_starts/ghost_pos"][:, 0].T)],
    }
    for name, cells in ours.items():
        assert cells.min() >= 0, name
        # 99.99 % at 137 degrees of freedom is 1.50 of them.
        assert chi_square(cells, recorded[name], 138) < 1.5, name
    uniform = np.arange(138).repeat(1000)
    assert chi_square(ours["pacman"], uniform, 138) < 1.5
    assert chi_square(ours["pill"], uniform, 138) < 1.5
    directions = np.asarray(drawn.directions).reshape(-1)
    assert chi_square(directions, np.arange(4).repeat(10_000), 4) < 7.0
    # Ghosts keep away: no one in the rows and columns from 5 before to 4 behind.
    offset = np.asarray(drawn.ghosts) - np.asarray(drawn.pacman)[:, None]
    assert not ((offset >= -5) & (offset <= 4)).all(-1).any()
    both = np.asarray(drawn.pills)
    assert 0.004 < (both[:, 0] == both[:, 1]).all(-1).mean() < 0.011  # 1 in 138.


def test_numbers_of_ghosts(golden):
    env = MiniPacman()
    reset = jax.jit(env.reset)
    ghosts = json.loads((GOLDEN / "mini_pacman.json").read_text())["ghosts_at_level"]
    for level, expected in {**ghosts, "16": 8, "17": 8, "40": 8}.items():
        params = env.default_params.replace(level=int(level))
        _, state = reset(jax.random.key(0), params)
        assert state.ghosts.alive.sum() == expected
