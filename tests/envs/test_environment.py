"""The base class of environments: resets, pools of levels, spaces; and gymnax's base class."""

import importlib.metadata
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.envs import Box, BoxWorld, Discrete, MiniPacman

ENVS = {
    "mini_pacman": MiniPacman(),
    "box_world": BoxWorld(grid_size=6, solution_length=(1,), num_distractors=(0,), max_steps=12),
}


@pytest.fixture(params=ENVS)
def env(request):
    return ENVS[request.param]


@cache
def jitted(env, method):
    """Compiled once for all tests."""
    return jax.jit(getattr(env, method))


def test_step_resets_by_itself(env):
    """An episode's end gives the next one's first state, and the last observation apart."""
    params = env.default_params
    contains = jax.jit(env.observation_space(params).contains)
    step, step_env, reset = (jitted(env, name) for name in ("step", "step_env", "reset"))
    obs, state = reset(jax.random.key(0), params)
    ended = 0
    for index in range(200):
        key = jax.random.key(index)
        action = jnp.int32(index % env.num_actions if index % 3 else 1)
        for_step, for_reset = jax.random.split(key)
        expected = step_env(for_step, state, action, params)
        obs, state, reward, done, info = step(key, state, action, params)
        assert (obs.shape, obs.dtype) == (env.observation_space(params).shape, jnp.float32)
        assert bool(contains(obs))
        assert (reward.dtype, done.dtype) == (jnp.float32, jnp.bool_)
        chex.assert_trees_all_equal((reward, done), expected[2:4])
        np.testing.assert_array_equal(info["final_observation"], expected[0])
        assert bool(done) == bool(info["terminated"] | info["truncated"])
        fresh = reset(for_reset, params)
        chex.assert_trees_all_equal((obs, state), fresh if done else expected[:2])
        ended += int(done)
        if ended == 2:
            break
    assert ended == 2


def test_pool_of_levels(env):
    params = env.default_params
    pool = jax.jit(env.draw_levels, static_argnums=1)(jax.random.key(1), 3)
    pooled = params.replace(levels=pool)
    keys = jax.random.split(jax.random.key(2), 60)
    _, states = jax.jit(jax.vmap(env.reset, (0, None)))(keys, pooled)
    starts = jax.jit(jax.vmap(env.start, (0, None)))(pool, params)
    players = "pacman" if hasattr(states, "pacman") else "player"
    found = [tuple(x) for x in np.asarray(getattr(states, players)).tolist()]
    expected = [tuple(x) for x in np.asarray(getattr(starts, players)).tolist()]
    assert set(found) == set(expected)
    counts = [found.count(x) for x in expected]
    assert min(counts) >= 8  # 20 are expected of each.
    restored = params.replace(levels=jax.device_get(pool))  # As from a file.
    _, first = jax.jit(lambda key: env.reset(key, restored))(keys[0])
    chex.assert_trees_all_equal(first, jax.tree.map(lambda x: x[0], states))


@pytest.mark.parametrize("method", ["step", "step_env"])
def test_an_action_is_an_integer_scalar(env, method):
    key, params = jax.random.key(0), env.default_params
    _, state = jax.eval_shape(env.reset, key, params)
    for action, message in (
        (np.zeros(2, np.int32), r"action must be a scalar \(use jax\.vmap .*, got shape \(2,\)"),
        (np.float32(1), "action must be an integer, got float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            jax.eval_shape(getattr(env, method), key, state, action, params)


def test_bad_pools(env):
    key, params = jax.random.key(0), env.default_params
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        env.draw_levels(key, 0)
    one = jax.eval_shape(env.draw_level, key, params)
    empty, pool = (
        jax.tree.map(lambda x, n=n: jnp.zeros((n, *x.shape), x.dtype), one) for n in (0, 2)
    )
    single = jax.tree.map(lambda x: x[0], pool)
    wider = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] + [(0, 1)] * (x.ndim - 1)), pool)
    floats = jax.tree.map(lambda x: x.astype(jnp.float32), pool)
    for levels in (empty, single, wider, floats, ()):
        with pytest.raises(ValueError, match=r"levels must be a pool made by draw_levels .* got "):
            jax.eval_shape(env.reset, key, params.replace(levels=levels))


def test_params_are_those_of_the_environment(env):
    (other,) = (each for each in ENVS.values() if each is not env)
    key, wrong = jax.random.key(0), other.default_params
    _, state = jax.eval_shape(env.reset_env, key)
    jax.eval_shape(env.step_env, key, state, 0)
    names = [type(each.default_params).__name__ for each in (env, other)]
    message = "params must be {}, got {}".format(*names)
    for method in ("reset", "reset_env", "observation_space"):
        args = () if method == "observation_space" else (key,)
        with pytest.raises(TypeError, match=message):
            getattr(env, method)(*args, wrong)
    for method in ("step", "step_env"):
        with pytest.raises(TypeError, match=message):
            jax.eval_shape(getattr(env, method), key, state, 0, wrong)


@pytest.mark.parametrize(("env", "count"), [("mini_pacman", "level"), ("box_world", "max_steps")])
def test_params_by_axes(env, count):
    """A sweep in the usual way, with an axis in place of each number."""
    env, numbers = ENVS[env], jnp.arange(1, 5, dtype=jnp.int32)
    params = env.default_params
    axes = jax.tree.map(lambda x: None, params).replace(**{count: 0})
    reset = jax.vmap(env.reset, in_axes=(0, axes))
    keys = jax.random.split(jax.random.key(0), 4)
    obs, _ = jax.eval_shape(reset, keys, params.replace(**{count: numbers}))
    assert obs.shape[0] == 4
    with pytest.raises(ValueError, match=f"{count} must be at least 1, got 0"):
        env.reset(keys[0], params.replace(**{count: 0}))


def test_same_key_same_episode(env):
    reset = jitted(env, "reset")
    one, again, other = (reset(jax.random.key(k)) for k in (3, 3, 4))
    chex.assert_trees_all_equal(one, again)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(one, other)


def test_rollout_within_shard_map(env):
    mesh = jax.make_mesh((1,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("b")

    @partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    @jax.vmap
    def roll(key):
        _, state = env.reset(key)
        return jax.lax.scan(lambda s, k: env.step(k, s, 0)[1:3], state, jax.random.split(key, 2))

    _, rewards = jax.eval_shape(roll, jax.random.split(jax.random.key(0), 4))
    assert rewards.shape == (4, 2)


def test_frame_cap_truncates():
    env = ENVS["mini_pacman"]
    params = env.default_params.replace(max_frames=2)
    _, state = jax.jit(env.reset)(jax.random.key(0), params)
    step = jax.jit(env.step_env)
    ends = []
    for index in range(2):
        _, state, _, done, info = step(jax.random.key(index), state, jnp.int32(0), params)
        ends.append((bool(done), bool(info["terminated"]), bool(info["truncated"])))
    assert ends == [(False, False, False), (True, False, True)]
    assert env.can_truncate
    assert not ENVS["box_world"].can_truncate


def test_spaces():
    discrete, box = Discrete(4), Box(0.0, 1.0, (2, 3))
    draws = jax.vmap(discrete.sample)(jax.random.split(jax.random.key(0), 100))
    assert sorted(set(draws.tolist())) == [0, 1, 2, 3]
    found = [bool(discrete.contains(x)) for x in (-1, 0, 3, 4, 2.5)]
    assert found == [False, True, True, False, False]
    assert bool(box.contains(box.sample(jax.random.key(1))))
    assert not bool(box.contains(jnp.zeros((3, 2))))
    assert not bool(discrete.contains(jnp.zeros((2,), jnp.int32)))
    assert bool(Box(0.0, 1.0, [2, 3]).contains(jnp.ones((2, 3), jnp.int32)))
    for low, high, shape in ((1.0, 0.0, (2,)), (0.0, 1.0, (0,)), (0.0, 1.0, 5)):
        with pytest.raises((TypeError, ValueError), match=r"^(low|shape) must be"):
            Box(low, high, shape)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        Discrete(0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "hide"}, ValueError, "mode must be one of 'regular', .*; got 'hide'"),
        ({"max_ghosts": 0}, ValueError, "max_ghosts must be at least 1, got 0"),
        ({"level": 0}, ValueError, "level must be at least 1, got 0"),
        ({"max_frames": 0}, ValueError, "max_frames must be at least 1, got 0"),
        ({"max_frames": np.int32(-1)}, ValueError, "max_frames must be at least 1, got -1"),
        ({"level": 1.5}, TypeError, r"level must be an integer, got 1\.5"),
        ({"viewport": "no"}, TypeError, "viewport must be True or False, got 'no'"),
    ],
)
def test_bad_options_of_mini_pacman(options, error, message):
    with pytest.raises(error, match=message):
        MiniPacman(**options)


def test_is_shaped_as_gymnaxs(env):
    """They have what gymnax's base class has; its `reset` and its wrapper run on them."""
    gymnax = pytest.importorskip("gymnax.environments.environment")
    theirs, params = gymnax.Environment, env.default_params
    names = [name for name in vars(theirs) if not name.startswith("_")]
    needed = {"step", "reset", "step_env", "reset_env", "get_obs", "name", "num_actions",
              "action_space", "observation_space", "default_params"}  # fmt: skip
    assert needed <= set(names)
    assert all(hasattr(env, name) for name in needed)
    key = jax.random.key(5)
    found = jax.jit(partial(theirs.reset.__wrapped__, env))(key, params)
    chex.assert_trees_all_equal(found, jitted(env, "reset")(key, params))
    if importlib.metadata.version("gymnax") < "1":  # Since then `step` returns six values.
        logged = pytest.importorskip("gymnax.wrappers.purerl").LogWrapper(env)
        _, state = jax.jit(logged.reset)(key, params)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            obs, state, reward, _, _ = jax.jit(logged.step)(key, state, jnp.int32(0), params)
        assert obs.shape == env.observation_space(params).shape
        assert float(state.episode_returns) == float(reward)
