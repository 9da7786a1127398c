"""The losses: numbers by hand, and their gradients against slow loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.actor_critic.losses import ppo_loss, vtrace_loss
from experiments.common.actor_critic.returns import vtrace


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
