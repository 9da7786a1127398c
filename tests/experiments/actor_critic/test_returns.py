"""V-trace and generalised advantages: recorded arrays, numbers by hand, a slow loop."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.actor_critic import returns

vtrace = jax.jit(returns.vtrace)
generalised_advantages = jax.jit(returns.generalised_advantages)
GOLDEN = Path(__file__).parents[2] / "golden" / "vtrace.npz"


@pytest.mark.parametrize("case", range(8))
def test_vtrace_is_as_recorded(case):
    with np.load(GOLDEN) as arrays:
        at = {k.split("/")[1]: arrays[k] for k in arrays if k.startswith(f"case{case}/")}
    inputs = [at[n] for n in ("v_tm1", "v_t", "r_t", "discount_t", "rho_tm1")]
    result = vtrace(
        *inputs,
        lambda_=float(at["lambda_"]),
        clip_rho=float(at["clip_rho_threshold"]),
        clip_pg_rho=float(at["clip_pg_rho_threshold"]),
    )
    for ours, name in zip(result, ("errors", "pg_advantage", "q_estimate"), strict=True):
        scale = np.maximum(np.abs(at[name]), 1.0)
        np.testing.assert_allclose(np.asarray(ours) / scale, at[name] / scale, rtol=0, atol=1e-6)


def test_vtrace_by_hand():
    """Two steps with ratios 2 and 0.5, bounds 1: every number below is worked out on paper."""
    v_tm1, v_t = jnp.array([1.0, 2.0]), jnp.array([2.0, 3.0])
    rewards, discounts = jnp.array([1.0, -1.0]), jnp.array([0.5, 0.5])
    ratios = jnp.array([2.0, 0.5])
    # delta = (1 (1 + 1 - 1), 0.5 (-1 + 1.5 - 2)) = (1, -0.75); e = (1 + 0.5 * -0.75, -0.75)
    result = vtrace(v_tm1, v_t, rewards, discounts, ratios)
    np.testing.assert_allclose(result.errors, [0.625, -0.75])
    # q = (1 + 0.5 (2 - 0.75), -1 + 1.5); advantages = (1 (1.625 - 1), 0.5 (0.5 - 2))
    np.testing.assert_allclose(result.returns, [1.625, 0.5])
    np.testing.assert_allclose(result.advantages, [0.625, -0.75])
    result = vtrace(v_tm1, v_t, rewards, discounts, ratios, clip_rho=3.0, clip_pg_rho=1.5)
    # delta = (2, -0.75); the trace's ratio stays below 1: e = (2 - 0.375, -0.75)
    np.testing.assert_allclose(result.errors, [1.625, -0.75])
    np.testing.assert_allclose(result.advantages, [0.9375, -0.75])


def n_step_returns(rewards, discounts, last_value):
    total, found = last_value, []
    for reward, discount in zip(rewards[::-1], discounts[::-1], strict=True):
        total = reward + discount * total
        found.append(total)
    return np.stack(found[::-1])


def trajectory(steps=7, batch=3):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((steps + 1, batch), np.float32)
    rewards, logs = rng.standard_normal((2, steps, batch), np.float32)
    discounts = np.where(rng.random((steps, batch)) < 0.2, np.float32(0), np.float32(0.9))
    return values, rewards, discounts, np.exp(logs)


def test_on_policy_targets_are_n_step_returns():
    values, rewards, discounts, _ = trajectory()
    expected = n_step_returns(rewards, discounts, values[-1])
    result = vtrace(values[:-1], values[1:], rewards, discounts, np.ones_like(rewards))
    np.testing.assert_allclose(values[:-1] + result.errors, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.advantages, expected - values[:-1], rtol=1e-5, atol=1e-5)
    advantages = generalised_advantages(values[:-1], values[1:], rewards, discounts, 1.0)
    np.testing.assert_allclose(advantages, expected - values[:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lambda_", [0.0, 0.7])
def test_advantages_agree_with_vtrace_of_equal_policies(lambda_):
    values, rewards, discounts, _ = trajectory()
    advantages = generalised_advantages(values[:-1], values[1:], rewards, discounts, lambda_)
    same = vtrace(
        values[:-1], values[1:], rewards, discounts, np.ones_like(rewards), lambda_=lambda_
    )
    np.testing.assert_allclose(advantages, same.errors, rtol=1e-5, atol=1e-6)


def test_advantages_by_hand():
    # delta = (1 + 1 - 1, 2 + 0 - 2, 0 + 2 - 3) = (1, 0, -1); a step's weight is 0.5 * 0.5.
    advantages = generalised_advantages(
        jnp.array([1.0, 2.0, 3.0]),
        jnp.array([2.0, 3.0, 4.0]),
        jnp.array([1.0, 2.0, 0.0]),
        jnp.array([0.5, 0.0, 0.5]),
        0.5,
    )
    np.testing.assert_allclose(advantages, [1.0, 0.0, -1.0])
    # Without the end in the middle: delta_1 = 2 + 1.5 - 2 = 1.5, then 1.5 - 0.25, 1 + 0.3125.
    advantages = generalised_advantages(
        jnp.array([1.0, 2.0, 3.0]),
        jnp.array([2.0, 3.0, 4.0]),
        jnp.array([1.0, 2.0, 0.0]),
        jnp.full((3,), 0.5),
        0.5,
    )
    np.testing.assert_allclose(advantages, [1.3125, 1.25, -1.0])


def test_targets_have_no_gradients():
    values, rewards, discounts, ratios = trajectory()

    def total(values, ratios):
        result = vtrace(values[:-1], values[1:], rewards, discounts, ratios)
        other = generalised_advantages(values[:-1], values[1:], rewards, discounts, 0.9)
        return sum(jnp.sum(x) for x in (*result, other))

    gradients = jax.jit(jax.grad(total, (0, 1)))(values, ratios)
    assert all(not np.any(gradient) for gradient in gradients)


def test_shapes_are_checked():
    ones = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"rho_tm1 must have shape \[T, \*B\] = \(3, 2\)"):
        vtrace(ones, ones, ones, ones, jnp.ones((3,)))
