r"""Losses of an actor-critic as means over steps: PPO, and the policy gradient with V-trace."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.actor_critic.returns import vtrace
from rrnn_jax.typing import Array


class LossParts(NamedTuple):
    """Parts of a loss, scalars; the learner weights them.

    Attributes:
      policy: the loss of the policy.
      value: the loss of the values.
      entropy: the mean entropy of the policy, in nats.
      clipped: the share of steps whose ratio of policies was clipped.
      kl: an estimate of the divergence from the policy that acted.
    """

    policy: Array
    value: Array
    entropy: Array
    clipped: Array
    kl: Array


def ppo_loss(
    logits: Array,
    values: Array,
    actions: Array,
    old_log_probs: Array,
    advantages: Array,
    targets: Array,
    clip: float,
) -> LossParts:
    r"""Proximal policy optimisation with a clipped ratio (Schulman et al. 2017, equation 7).

    .. math:: L = -\mathrm{mean}\, \min(\rho A, \mathrm{clip}(\rho, 1 - c, 1 + c) A), \qquad
        L_V = \tfrac12 \mathrm{mean} (V - V^{target})^2

    Args:
      logits: ``[*B, A]`` of the policy that learns.
      values: ``[*B]``.
      actions: ``[*B]`` int32, those taken.
      old_log_probs: ``[*B]``, of those actions under the policy that acted.
      advantages: ``[*B]``, constants.
      targets: ``[*B]``, constants.
      clip: c.

    Returns:
      The parts.
    """
    log_probs, entropy = _log_probs(logits, actions)
    log_ratio = log_probs - old_log_probs
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    gain = jnp.minimum(ratio * advantages, clipped * advantages)
    return LossParts(
        policy=-jnp.mean(gain),
        value=0.5 * jnp.mean(jnp.square(values - targets)),
        entropy=jnp.mean(entropy),
        clipped=jnp.mean(jnp.abs(ratio - 1.0) > clip, dtype=jnp.float32),
        kl=_divergence(log_ratio),
    )


def vtrace_loss(
    logits: Array,
    values: Array,
    actions: Array,
    old_log_probs: Array,
    rewards: Array,
    discounts: Array,
    *,
    lambda_: float,
    clip_rho: float,
    clip_pg_rho: float,
) -> LossParts:
    r"""The policy gradient with V-trace (IMPALA, section 4.2), for ``[T, B]``, time first.

    .. math:: L = -\mathrm{mean}\, A_t \log \pi(a_t), \qquad
        L_V = \tfrac12 \mathrm{mean} (v_t - V_t)^2

    Args:
      logits: ``[T, B, A]``.
      values: ``[T+1, B]``: of all states, the last one included.
      actions: ``[T, B]`` int32.
      old_log_probs: ``[T, B]``, of those actions under the policy that acted.
      rewards: ``[T, B]``.
      discounts: ``[T, B]``, 0 where the episode ended.
      lambda_: see `vtrace`.
      clip_rho: see `vtrace`.
      clip_pg_rho: see `vtrace`.

    Returns:
      The parts.
    """
    log_probs, entropy = _log_probs(logits, actions)
    log_ratio = log_probs - old_log_probs
    ratio = jax.lax.stop_gradient(jnp.exp(log_ratio))
    fixed = jax.lax.stop_gradient(values)
    result = vtrace(
        fixed[:-1],
        fixed[1:],
        rewards,
        discounts,
        ratio,
        lambda_=lambda_,
        clip_rho=clip_rho,
        clip_pg_rho=clip_pg_rho,
    )
    targets = fixed[:-1] + result.errors
    return LossParts(
        policy=-jnp.mean(result.advantages * log_probs),
        value=0.5 * jnp.mean(jnp.square(targets - values[:-1])),
        entropy=jnp.mean(entropy),
        clipped=jnp.mean(ratio > clip_rho, dtype=jnp.float32),
        kl=_divergence(log_ratio),
    )


def _log_probs(logits: Array, actions: Array) -> tuple[Array, Array]:
    """Log-probabilities of the actions, and the entropy, ``[*B]`` each."""
    log_policy = jax.nn.log_softmax(logits)
    taken = jnp.take_along_axis(log_policy, actions[..., None], axis=-1)[..., 0]
    return taken, -jnp.sum(jnp.exp(log_policy) * log_policy, axis=-1)


def _divergence(log_ratio: Array) -> Array:
    """KL(actor || learner) from samples of the actor: mean(rho - 1 - log rho), never negative."""
    return jnp.mean(jnp.expm1(log_ratio) - log_ratio)
