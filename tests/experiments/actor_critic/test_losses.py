"""The losses: numbers by hand, and their gradients against slow loops in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.actor_critic import rollout
from experiments.common.actor_critic.agent import Agent, run
from experiments.common.actor_critic.learner import Learner, LearnerConfig, LearnerState
from experiments.common.actor_critic.losses import ppo_loss, vtrace_loss
from experiments.common.actor_critic.returns import vtrace
from tests.core.random_variables import random_variables
from tests.experiments.toys import Count


def test_ppo_by_hand():
    """Two actions; the old policy gave 1/2, the new one 3/4 to the first: ratios 1.5 and 0.5."""
    logits = jnp.log(jnp.array([[3.0, 1.0]] * 4))
    actions = jnp.array([0, 1, 0, 1])
    advantages = jnp.array([1.0, 1.0, -1.0, -1.0])
    values, targets = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    old = jnp.full((4,), jnp.log(0.5))
    parts = ppo_loss(logits, values, actions, old, advantages, targets, clip=0.2)
    # min(1.5, 1.2), min(0.5, 0.8), min(-1.5, -1.2), min(-0.5, -0.8)
    np.testing.assert_allclose(parts.policy, -(1.2 + 0.5 - 1.5 - 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(parts.value, (0 + 1 + 4 + 16) / 8)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(parts.entropy, entropy, rtol=1e-6)
    assert parts.clipped == 1.0
    kl = (0.5 - np.log(1.5) - 0.5 - np.log(0.5)) / 2
    np.testing.assert_allclose(parts.kl, kl, rtol=1e-5)


def example(steps=4, batch=2, choices=3):
    keys = jax.random.split(jax.random.key(1), 6)
    logits = jax.random.normal(keys[0], (steps, batch, choices))
    values = jax.random.normal(keys[1], (steps + 1, batch))
    actions = jax.random.randint(keys[2], (steps, batch), 0, choices)
    old = jax.nn.log_softmax(jax.random.normal(keys[3], (steps, batch, choices)))
    old = jnp.take_along_axis(old, actions[..., None], -1)[..., 0]
    rewards = jax.random.normal(keys[4], (steps, batch))
    discounts = jnp.where(jax.random.bernoulli(keys[5], 0.25, (steps, batch)), 0.0, 0.9)
    return logits, values, actions, old, rewards, discounts


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def policy_gradient(logits, actions, weights):
    """d/d logits of -mean(weight * log pi(a)), one step after the other."""
    found = np.zeros(logits.shape)
    for index in np.ndindex(*logits.shape[:-1]):
        one_hot = np.eye(logits.shape[-1])[actions[index]]
        found[index] = -weights[index] * (one_hot - softmax(logits[index]))
    return found / np.prod(logits.shape[:-1])


def as_double(*arrays):
    return [np.asarray(x, np.float64) for x in arrays]


def test_gradient_of_ppo():
    logits, values, actions, old, advantages, _ = example()

    def loss(logits, values):
        parts = ppo_loss(logits, values, actions, old, advantages, targets, 0.2)
        return parts.policy + parts.value

    targets = values[1:]
    for_logits, for_values = jax.jit(jax.grad(loss, (0, 1)))(logits, values[:-1])
    x, before, a, v = as_double(logits, old, advantages, values)
    chosen = np.asarray(actions)
    weights = np.zeros(a.shape)
    for index in np.ndindex(*a.shape):
        ratio = np.exp(np.log(softmax(x[index])[chosen[index]]) - before[index])
        is_cut = (a[index] > 0 and ratio > 1.2) or (a[index] < 0 and ratio < 0.8)
        weights[index] = 0.0 if is_cut else ratio * a[index]
    assert (weights == 0).any()
    assert (weights != 0).any()
    np.testing.assert_allclose(for_logits, policy_gradient(x, chosen, weights), atol=1e-6)
    np.testing.assert_allclose(for_values, (v[:-1] - v[1:]) / a.size, atol=1e-6)


@pytest.mark.parametrize("lambda_", [1.0, 0.8])
def test_gradient_of_vtrace_loss(lambda_):
    logits, values, actions, old, rewards, discounts = example()
    options = {"lambda_": lambda_, "clip_rho": 1.0, "clip_pg_rho": 1.0}

    def loss(logits, values):
        parts = vtrace_loss(logits, values, actions, old, rewards, discounts, **options)
        return parts.policy + parts.value

    for_logits, for_values = jax.jit(jax.grad(loss, (0, 1)))(logits, values)
    x, before, v, r, d = as_double(logits, old, values, rewards, discounts)
    chosen = np.asarray(actions)
    steps, batch = r.shape
    errors, advantages = np.zeros_like(r), np.zeros_like(r)
    for b in range(batch):
        later = 0.0
        for t in reversed(range(steps)):
            ratio = np.exp(np.log(softmax(x[t, b])[chosen[t, b]]) - before[t, b])
            rho = min(ratio, 1.0)
            q = r[t, b] + d[t, b] * (v[t + 1, b] + (lambda_ * later if t + 1 < steps else 0.0))
            advantages[t, b] = rho * (q - v[t, b])
            delta = rho * (r[t, b] + d[t, b] * v[t + 1, b] - v[t, b])
            later = errors[t, b] = delta + d[t, b] * lambda_ * rho * later
    np.testing.assert_allclose(for_logits, policy_gradient(x, chosen, advantages), atol=1e-6)
    expected = np.concatenate([-errors, np.zeros((1, batch))]) / r.size
    np.testing.assert_allclose(for_values, expected, atol=1e-6)
    again = vtrace(values[:-1], values[1:], rewards, discounts, jnp.ones_like(rewards))
    assert not np.allclose(again.errors, errors)  # The ratios make a difference.


def play_by_hand():
    """A trajectory of three steps in two environments, the inputs after it, and its last value."""
    rng = np.random.default_rng(0)
    float32, no = partial(np.asarray, dtype=np.float32), np.zeros((3, 2), bool)
    trajectory = rollout.Trajectory(
        obs=float32(rng.random((3, 2, 2, 2, 1))),
        resets=no,
        last_actions=rng.integers(0, 2, (3, 2), np.int32),
        last_rewards=float32(rng.normal(size=(3, 2))),
        actions=rng.integers(0, 2, (3, 2), np.int32),
        log_probs=float32(np.log(rng.uniform(0.3, 0.7, (3, 2)))),
        values=float32(rng.normal(size=(3, 2))),
        rewards=float32(rng.normal(size=(3, 2))),
        terminated=np.array([[False, True], [False, False], [False, False]]),
        truncated=np.array([[False, False], [True, False], [False, False]]),
        cut_values=float32([[0, 0], [3, 0], [0, 0]]),
    )
    last = jax.tree.map(lambda x: x[0] * 0.5, trajectory[:4])
    last = rollout.Play(
        None, (), last[0], no[0], trajectory.actions[0], last[3], *[np.zeros(2, np.float32)] * 2
    )
    return jax.tree.map(jnp.asarray, (trajectory, last, np.array([2.0, -3.0], np.float32)))


def loss_by_hand(config, trajectory, last_value, logits, values):
    """The loss's parts in NumPy, from the formulas of PPO and of V-trace."""
    rewards = config.reward_scale * trajectory.rewards + config.discount * trajectory.cut_values
    ends = trajectory.terminated | trajectory.truncated
    discounts = np.where(ends, 0.0, config.discount)
    log_policy = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_policy[:3], trajectory.actions[..., None], -1)[..., 0]
    ratio = np.exp(chosen - trajectory.log_probs)
    is_ppo = config.loss == "ppo"
    before = np.concatenate([trajectory.values, last_value[None]]) if is_ppo else values
    weight = np.ones_like(ratio) if is_ppo else np.minimum(ratio, config.clip_rho)
    errors = np.zeros((4, 2))
    for t in (2, 1, 0):
        delta = weight[t] * (rewards[t] + discounts[t] * before[t + 1] - before[t])
        trace = config.trace * (1.0 if is_ppo else np.minimum(ratio[t], 1.0))
        errors[t] = delta + discounts[t] * trace * errors[t + 1]
    targets = errors[:3] + before[:3]
    if is_ppo:
        a = errors[:3]
        a = (a - a.mean()) / a.std() if config.normalise else a
        low, high = 1 - config.clip_ratio, 1 + config.clip_ratio
        policy = -np.minimum(ratio * a, np.clip(ratio, low, high) * a).mean()
    else:
        later = before[1:] + config.trace * errors[1:]
        gain = np.minimum(ratio, config.clip_pg_rho) * (rewards + discounts * later - before[:3])
        policy = -(gain * chosen).mean()
    entropy = -(np.exp(log_policy) * log_policy)[:3].sum(-1).mean()
    return {"policy": policy, "value": 0.5 * np.square(targets - values[:3]).mean(),
            "entropy": entropy}  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "options"), [("ppo", {}), ("ppo", {"normalise": False}), ("vtrace", {"trace": 0.9})]
)
def test_losses_of_a_played_trajectory_by_hand(loss, options):
    """From rewards to the weighted sum: scale, discounts, bootstraps, targets, costs."""
    config = LearnerConfig(
        loss=loss, unroll=3, minibatch_envs=2, epochs=1, level_pool=0, reward_scale=0.5,
        discount=0.8, entropy_cost=0.2, final_entropy_cost=0.1, value_cost=0.7, **options,
    )  # fmt: skip
    env, agent = Count(), Agent(2, width=4)
    trajectory, last, last_value = play_by_hand()
    ends = (last.obs, last.reset, last.action, last.reward)
    inputs = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), trajectory[:4], ends)
    params = random_variables(agent, (), *inputs)
    optimizer = optax.sgd(0.1)
    learner = Learner(
        env, env.default_params, env.default_params, agent, config, optimizer, 2, num_updates=10
    )
    state = LearnerState(jnp.int32(3), params, optimizer.init(params), last, None)

    @jax.jit
    def learn(state):
        """The parts' means, and what the agent says before."""
        key = jax.random.key(0)
        parts = learner._learn(state, trajectory, (), last, last_value, key)[2]
        return {k: mean.value() for k, mean in parts.items()}, run(agent, params, (), inputs)[1:]

    found, outputs = jax.device_get(learn(state))
    by_hand = jax.device_get((trajectory, last_value))
    expected = loss_by_hand(config, *by_hand, *map(np.float64, outputs))
    cost = 0.2 - 0.1 * 3 / 10
    total = expected["policy"] + 0.7 * expected["value"] - cost * expected["entropy"]
    assert abs(expected["policy"]) > 0.01
    for name, value in (expected | {"loss": total}).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert learner._entropy_cost(jnp.int32(20)) == pytest.approx(0.1)  # It stays at the last.
