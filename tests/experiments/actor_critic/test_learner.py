"""Agents, rollouts and the learner: resets, stored carries, ends of episodes, lag."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments.common.actor_critic import rollout
from experiments.common.actor_critic.agent import Agent, Conv2x2, ConvLSTMCell2x2, run
from experiments.common.actor_critic.config import (
    AgentConfig,
    ConvLSTMConfig,
    GameConfig,
    make_agent,
)
from experiments.common.actor_critic.evaluation import play, standard_error
from experiments.common.actor_critic.learner import (
    Learner,
    LearnerConfig,
    LearnerState,
    rewards_and_discounts,
)
from experiments.common.cells import LSTMConfig, RMCConfig
from rrnn_jax import RNN
from rrnn_jax.envs import BoxWorld
from tests.experiments.toys import Count

ENVS, STEPS = 4, 14
SLOW = ("lstm", "conv_lstm", "none")
TINY = GameConfig(
    rmc=RMCConfig(mem_slots=2, num_heads=2, head_size=4, mlp_layers=1, gate_style="memory"),
    lstm=LSTMConfig(lstm_features=8),
    conv_lstm=ConvLSTMConfig(conv_features=3),
    agent=AgentConfig(width=8),
)
BOXES = BoxWorld(grid_size=5, solution_length=(1,), num_distractors=(0,), max_steps=5)


def make_learner(loss: str = "ppo", model: str = "rmc", **options: Any) -> Learner:
    config = LearnerConfig(
        loss=loss, unroll=STEPS, minibatch_envs=2, epochs=1, level_pool=8, fresh_levels=4, **options
    )
    agent = make_agent(dataclasses.replace(TINY, model=model), BOXES.num_actions)
    params = BOXES.default_params
    return Learner(BOXES, params, params, agent, config, optax.sgd(0.1), ENVS, 10)


class Watched(Learner):
    """Its metrics of an update include the trajectory: one program plays and learns."""

    def _learn(self, state, trajectory, *args):
        params, opt_state, parts = super()._learn(state, trajectory, *args)
        return params, opt_state, parts | {"trajectory": trajectory}


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Watched(*make_learner())


@pytest.fixture(scope="module")
def states(learner) -> tuple[list[LearnerState], dict[str, Any]]:
    """The initial state, those after two updates, and the metrics of the second."""
    update = jax.jit(learner.update)
    begun = jax.jit(learner.init)(jax.random.key(0))
    state, _ = update(begun, jax.random.key(1))
    after, metrics = update(state, jax.random.key(2))
    return [begun, state, after], metrics


@pytest.fixture(scope="module")
def played(states):
    """The second update's rollout: in the middle of play, the carries are not the initial ones."""
    (_, state, after), metrics = states
    return state, after.play, metrics["trajectory"], metrics


def test_convolution_is_flaxs():
    x = jax.random.normal(jax.random.key(0), (3, 2, 5, 6, 4))
    ours, theirs = Conv2x2(7), nn.Conv(7, (2, 2))
    variables = jax.jit(theirs.init)(jax.random.key(1), x)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(ours.init, jax.random.key(1), x))
    assert shapes == jax.tree.map(jnp.shape, variables)
    variables = jax.tree.map(lambda p: p + 0.1, variables)
    np.testing.assert_allclose(
        *(jax.jit(layer.apply)(variables, x) for layer in (ours, theirs)), atol=1e-5
    )


@pytest.mark.slow
def test_convolutional_lstm_is_flaxs():
    x = jax.random.normal(jax.random.key(0), (6, 2, 5, 6, 4))
    cells = ConvLSTMCell2x2(3), nn.ConvLSTMCell(3, (2, 2))
    ours, theirs = (RNN(cell, time_major=True, name="rnn") for cell in cells)
    variables = jax.jit(theirs.init)(jax.random.key(1), x)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(ours.init, jax.random.key(1), x))
    assert shapes == jax.tree.map(jnp.shape, variables)
    variables = jax.tree.map(lambda p: p + 0.1, variables)
    resets = jnp.arange(6)[:, None] == jnp.array([2, 4])

    def loss(variables, rnn):
        y = rnn.apply(variables, x, resets=resets)
        return jnp.sum(y**2), y

    (ours, y), (theirs, expected) = (
        jax.jit(jax.grad(partial(loss, rnn=rnn), has_aux=True))(variables) for rnn in (ours, theirs)
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": (3, 3)}, r"kernel_size must be \(2, 2\), got \(3, 3\)"),
        ({"strides": (2, 2)}, r"strides must be None, got \(2, 2\)"),
        ({"padding": "VALID"}, "padding must be 'SAME', got 'VALID'"),
        ({"use_bias": False}, "use_bias must be True, got False"),
    ],
)
def test_bad_options_of_the_convolutional_lstm(options, message):
    with pytest.raises(ValueError, match=message):
        ConvLSTMCell2x2(3, **options)


@pytest.mark.slow
def test_with_skip_what_follows_the_core_sees_its_inputs():
    agent = make_agent(dataclasses.replace(TINY, agent=AgentConfig(width=8, skip=True)), 4)
    obs = np.random.default_rng(0).random((3, 2, 5, 5, 6), np.float32)
    inputs = (obs, *(np.zeros((3, 2), dtype) for dtype in (bool, np.int32, np.float32)))
    carry = agent.initial_carry((5, 5, 6), 2)
    variables = jax.jit(agent.init)(jax.random.key(1), carry, *inputs)
    kernel = np.array(variables["params"]["from_core"]["kernel"])
    assert len(kernel) == 2 * 8 + 8 + 4 + 1  # Slots, the layer before, last action and reward.
    kernel[: 2 * 8] = 0  # Without the memory.
    variables["params"]["from_core"]["kernel"] = kernel
    apply = jax.jit(lambda carry, obs: run(agent, variables, carry, (obs, *inputs[1:]))[2])
    values = apply(carry, obs)
    np.testing.assert_allclose(values, apply(carry + 1, obs), atol=1e-6)
    assert not np.allclose(values, apply(carry, obs + 1), atol=1e-3)


@pytest.mark.parametrize(
    "model", ["rmc", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_resets_begin_anew(model):
    """Two episodes in a row give what two runs give, the second from the initial memory."""
    agent = make_agent(dataclasses.replace(TINY, model=model), 4)
    rng = np.random.default_rng(0)
    obs = rng.random((6, 2, 5, 5, 6), np.float32)
    actions = rng.integers(0, 4, (6, 2), np.int32)
    rewards = rng.standard_normal((6, 2), np.float32)
    resets = np.zeros((6, 2), bool)
    resets[3] = True
    fresh = jax.device_get(agent.initial_carry((5, 5, 6), 2))
    other = jax.tree.map(lambda x: x + 0.5, fresh)
    inputs = (obs, resets, actions, rewards)
    variables = jax.jit(agent.init)(jax.random.key(3), fresh, *inputs)
    apply = jax.jit(lambda carry, inputs: run(agent, variables, carry, inputs))
    _, logits, values = apply(other, inputs)
    _, first, _ = apply(other, jax.tree.map(lambda x: x[:3], inputs))
    _, second, v = apply(fresh, jax.tree.map(lambda x: x[3:], inputs))
    np.testing.assert_allclose(logits, np.concatenate([first, second]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values[3:], v, rtol=1e-4, atol=1e-6)
    if model != "none":  # The carry matters, without a reset.
        _, unlike, _ = apply(fresh, jax.tree.map(lambda x: x[:3], inputs))
        assert not np.allclose(first, unlike, rtol=1e-4, atol=1e-6)


def test_stored_carry_and_trajectory_replay_the_rollout(learner, played):
    state, _, trajectory, _ = played
    assert trajectory.resets.any()  # Episodes are at most 6 steps long.
    replay = jax.jit(partial(run, learner.agent))
    _, logits, values = replay(state.params, state.play.carry, trajectory[:4])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), trajectory.actions[..., None], -1)
    np.testing.assert_allclose(chosen[..., 0], trajectory.log_probs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values, trajectory.values, rtol=1e-4, atol=1e-5)


def test_rollout_keeps_the_books(played):
    """Last actions, resets and the returns of finished episodes, against a loop in NumPy."""
    before, play, trajectory, metrics = jax.device_get(played)
    done = trajectory.terminated | trajectory.truncated
    np.testing.assert_array_equal(trajectory.resets[1:], done[:-1])
    np.testing.assert_array_equal(trajectory.last_actions[1:], trajectory.actions[:-1])
    np.testing.assert_array_equal(trajectory.last_rewards[1:], trajectory.rewards[:-1])
    np.testing.assert_array_equal(play.reset, done[-1])
    total, length = before.play.total.copy(), before.play.length.copy()
    returns, lengths = [], []
    for rewards, ends in zip(trajectory.rewards, done, strict=True):
        total, length = total + rewards, length + 1
        returns += list(total[ends])
        lengths += list(length[ends])
        total[ends], length[ends] = 0, 0
    assert metrics["length"].count == metrics["return"].count == len(returns) > ENVS
    np.testing.assert_allclose(metrics["return"].total, sum(returns), atol=1e-4)
    assert metrics["length"].total == sum(lengths)
    np.testing.assert_allclose(play.total, total, atol=1e-5)
    np.testing.assert_array_equal(play.length, length)
    assert max(lengths) <= 6
    assert (trajectory.cut_values == 0).all()  # BoxWorld is never cut off.


def test_truncation_bootstraps_and_termination_does_not():
    config = LearnerConfig(reward_scale=0.5, discount=0.8)
    zeros = jnp.zeros((3,))
    trajectory = rollout.Trajectory(
        *[zeros] * 7,
        rewards=jnp.array([2.0, 2.0, 2.0]),
        terminated=jnp.array([False, True, False]),
        truncated=jnp.array([False, False, True]),
        cut_values=jnp.array([0.0, 0.0, 10.0]),
    )
    rewards, discounts = rewards_and_discounts(trajectory, config)
    np.testing.assert_allclose(rewards, [1.0, 1.0, 1.0 + 0.8 * 10.0])
    np.testing.assert_allclose(discounts, [0.8, 0.0, 0.0])


def test_a_cut_episode_counts_with_the_value_of_its_last_state():
    env, agent = Count(), Agent(2, width=4)
    begin = jax.jit(partial(rollout.begin, env, agent), static_argnums=2)
    game = begin(jax.random.key(0), env.default_params, 2)
    now = jax.device_get((game.obs, game.reset, game.action, game.reward))
    inputs = jax.tree.map(lambda x: x[None], now)
    variables = jax.jit(agent.init)(jax.random.key(1), (), *inputs)
    play_on = jax.jit(partial(rollout.rollout, env, agent), static_argnums=4)
    _, *found = play_on(variables, game, jax.random.key(2), env.default_params, 4)
    trajectory, metrics = jax.device_get(found)
    np.testing.assert_array_equal(trajectory.truncated[:, 0], [False, False, True, False])
    np.testing.assert_array_equal(trajectory.obs[:, 0, 0, 0, 0], [0, 1, 2, 0])  # 3 is not shown,
    last = np.full((1, 2, 2, 2, 1), 3.0, np.float32)  # but valued.
    inputs = (last, np.zeros((1, 2), bool), trajectory.actions[2:3], trajectory.rewards[2:3])
    _, _, values = jax.jit(partial(run, agent))(variables, (), inputs)
    np.testing.assert_allclose(trajectory.cut_values[2], values[0], rtol=1e-5)
    assert not trajectory.cut_values[[0, 1, 3]].any()
    assert metrics["return"].value() == 3.0
    play_all = jax.jit(partial(play, env, agent), static_argnums=3)
    ended = play_all(variables, jax.random.key(3), env.default_params, 5)
    np.testing.assert_array_equal(ended.total, np.full(5, 3.0))
    np.testing.assert_array_equal(ended.length, np.full(5, 3))


@pytest.mark.slow
def test_an_episode_that_terminates_at_its_cap_has_no_later_value():
    class Both(Count):
        def transition(self, key, state, action, params):
            found = super().transition(key, state, action, params)
            return found._replace(terminated=found.truncated)

    env, agent = Both(), Agent(2, width=4)
    game = jax.jit(partial(rollout.begin, env, agent), static_argnums=2)(
        jax.random.key(0), env.default_params, 2
    )
    now = jax.tree.map(lambda x: x[None], (game.obs, game.reset, game.action, game.reward))
    variables = jax.jit(agent.init)(jax.random.key(1), (), *now)
    play_on = jax.jit(partial(rollout.rollout, env, agent), static_argnums=4)
    trajectory = play_on(variables, game, jax.random.key(2), env.default_params, 4)[1]
    assert trajectory.terminated[2].all()
    assert not trajectory.cut_values.any()


@pytest.mark.slow
def test_first_minibatch_is_on_policy_and_later_ones_lag():
    """With V-trace the ratios of the first minibatch are 1; those of the second are not."""
    learner = make_learner("vtrace", model="lstm")
    state = jax.jit(learner.init)(jax.random.key(0))
    whole = dataclasses.replace(learner.config, minibatch_envs=ENVS)
    once = jax.jit(learner._replace(config=whole).update)(state, jax.random.key(1))[1]
    twice = jax.jit(learner.update)(state, jax.random.key(1))[1]
    assert abs(float(once["kl"].value())) < 1e-9
    assert float(twice["kl"].value()) > 1e-9
    assert twice["loss"].count == 2


def test_pool_is_refilled_in_turn(states):
    begun, once, twice = (state.levels for state in states[0])
    changed = [(a.grid != b.grid).any((1, 2)) for a, b in ((begun, once), (once, twice))]
    assert changed[0][:4].any()
    assert not changed[0][4:].any()
    assert changed[1][4:].any()
    assert not changed[1][:4].any()


@pytest.mark.slow
def test_curriculum_begins_with_easy_levels():
    easy = BoxWorld(grid_size=8, solution_length=(1,), num_distractors=(0,)).default_params
    env = BoxWorld(grid_size=8, solution_length=(2,), num_distractors=(1,))
    learner = make_learner(easy_share=0.5)
    learner = learner._replace(env=env, env_params=env.default_params, easy_params=easy)
    draw = jax.jit(learner._draw, static_argnums=1)
    for step, expected in ((0, 1), (4, 1), (5, 2), (9, 2)):
        levels = draw(jax.random.key(step), 3, jnp.int32(step))
        assert (levels.solution_length == expected).all()


def test_standard_error_by_hand():
    values = np.array([1.0, 2.0, 4.0, 5.0])
    expected = values.std(ddof=1) / 2
    assert standard_error(3.0, float((values**2).mean()), 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dqn"}, "loss must be one of 'ppo', 'vtrace'; got 'dqn'"),
        ({"unroll": 0}, "unroll must be at least 1, got 0"),
        ({"discount": 1.1}, r"discount must lie in \[0, 1\], got 1.1"),
        ({"discount": np.nan}, r"discount must lie in \[0, 1\], got nan"),
        ({"entropy_cost": -1.0}, "entropy_cost must be finite and not negative, got -1.0"),
        ({"entropy_cost": np.nan}, "entropy_cost must be finite and not negative, got nan"),
        ({"final_entropy_cost": np.inf}, "final_entropy_cost must be finite .*, got inf"),
        ({"value_cost": np.inf}, "value_cost must be finite and not negative, got inf"),
        ({"reward_scale": 0.0}, "reward_scale must be positive and finite, got 0.0"),
        ({"reward_scale": np.inf}, "reward_scale must be positive and finite, got inf"),
        ({"clip_rho": 0.0}, "clip_rho must be positive, got 0.0"),
        ({"clip_ratio": np.nan}, "clip_ratio must be positive, got nan"),
        ({"level_pool": 128.0}, "level_pool must be an integer, got 128.0 of type float"),
        ({"level_pool": -128}, "level_pool must be at least 0, got -128"),
        ({"level_pool": 100}, "level_pool must be 0 or a multiple of fresh_levels=128, got 100"),
        ({"level_pool": 0, "easy_share": 0.5}, "easy_share must be 0 with level_pool=0, got 0.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LearnerConfig(**options)


def test_infinite_bounds_clip_nothing():
    LearnerConfig(clip_ratio=np.inf, clip_rho=np.inf, clip_pg_rho=np.inf)


def test_minibatches_must_fit():
    with pytest.raises(ValueError, match="minibatch_envs must divide batch_size=100, got 64"):
        LearnerConfig().gradient_steps(100)
    assert LearnerConfig(epochs=3).gradient_steps(256) == 12
