r"""Targets of an actor-critic from a trajectory: V-trace, and generalised advantages.

Names contain the time step: an action at t-1, in a state with value ``v_tm1``, leads to the reward
``r_t`` and a state with value ``v_t``, discounted by ``discount_t`` (gamma, or 0 where the episode
terminated). Arrays are ``[T, *B]``, time first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.checks import check_shape
from rrnn_jax.typing import Array


class VTrace(NamedTuple):
    """The results of V-trace, ``[T, *B]`` each.

    Attributes:
      errors: v_s - V(x_s), the errors of the values.
      advantages: weights of the policy's gradient, including the clipped ratio.
      returns: the estimates r + discount * v of the actions' values.
    """

    errors: Array
    advantages: Array
    returns: Array


def vtrace(
    v_tm1: Array,
    v_t: Array,
    r_t: Array,
    discount_t: Array,
    rho_tm1: Array,
    *,
    lambda_: float | Array = 1.0,
    clip_rho: float | Array = 1.0,
    clip_pg_rho: float | Array = 1.0,
) -> VTrace:
    r"""V-trace: returns of one policy from the actions of another.

    With :math:`\bar\rho, \bar\rho_{pg}` the bounds on the ratios of the two policies,

    .. math::

        \delta_t &= \min(\bar\rho, \rho_t) (r_t + \gamma_t V_t - V_{t-1}) \\
        e_t &= \delta_t + \gamma_t \lambda \min(1, \rho_t) e_{t+1} \\
        q_t &= r_t + \gamma_t (V^{next} + \lambda e_{t+1}) \\
        A_t &= \min(\bar\rho_{pg}, \rho_t) (q_t - V_{t-1})

    where :math:`V^{next}` is `v_tm1` of the next step (equal to `v_t` if both are shifted values of
    one trajectory), and :math:`q_T = r_T + \gamma_T V_T` at the last step. With equal policies and
    lambda 1 these are n-step returns. Targets are not differentiated.

    Espeholt et al. 2018, "IMPALA", section 4.1; lambda as in its remark 2.

    >>> import jax.numpy as jnp
    >>> zeros, ones = jnp.zeros(3), jnp.ones(3)
    >>> vtrace(zeros, zeros, ones, 0.5 * ones, ones).errors
    Array([1.75, 1.5 , 1.  ], dtype=float32)

    Args:
      v_tm1: values before the steps.
      v_t: values after them.
      r_t: rewards.
      discount_t: discounts; 0 ends an episode.
      rho_tm1: ratios of the probabilities of the actions taken, learner over actor.
      lambda_: mixes n-step returns with shorter ones.
      clip_rho: bound on the ratios in the errors.
      clip_pg_rho: bound on the ratio in the advantages.

    Returns:
      A `VTrace` without gradients.

    Raises:
      ValueError: arrays of different shapes.
    """
    _check(v_tm1=v_tm1, v_t=v_t, r_t=r_t, discount_t=discount_t, rho_tm1=rho_tm1)
    v_tm1, v_t, rho_tm1 = jax.lax.stop_gradient((v_tm1, v_t, rho_tm1))
    one_step = r_t + discount_t * v_t
    delta = jnp.minimum(rho_tm1, clip_rho) * (one_step - v_tm1)
    decay = discount_t * lambda_ * jnp.minimum(rho_tm1, 1.0)
    errors = _accumulate(delta, decay)
    targets = (errors + v_tm1)[1:]
    later = r_t[:-1] + discount_t[:-1] * (lambda_ * targets + (1.0 - lambda_) * v_tm1[1:])
    returns = jnp.concatenate([later, one_step[-1:]])
    advantages = jnp.minimum(rho_tm1, clip_pg_rho) * (returns - v_tm1)
    return VTrace(errors, advantages, returns)


def generalised_advantages(
    v_tm1: Array, v_t: Array, r_t: Array, discount_t: Array, lambda_: float | Array
) -> Array:
    r"""Generalised advantages (Schulman et al. 2015, equation 16).

    .. math:: A_t = r_t + \gamma_t V_t - V_{t-1} + \gamma_t \lambda A_{t+1}

    >>> import jax.numpy as jnp
    >>> zeros, ones = jnp.zeros(3), jnp.ones(3)
    >>> generalised_advantages(zeros, zeros, ones, 0.5 * ones, 1.0)
    Array([1.75, 1.5 , 1.  ], dtype=float32)

    Args:
      v_tm1: values before the steps.
      v_t: values after them.
      r_t: rewards.
      discount_t: discounts; 0 ends an episode.
      lambda_: 0 for one step, 1 for all steps.

    Returns:
      ``[T, *B]`` without gradients.

    Raises:
      ValueError: arrays of different shapes.
    """
    _check(v_tm1=v_tm1, v_t=v_t, r_t=r_t, discount_t=discount_t)
    v_tm1, v_t = jax.lax.stop_gradient((v_tm1, v_t))
    return _accumulate(r_t + discount_t * v_t - v_tm1, discount_t * lambda_)


def _accumulate(terms: Array, decay: Array) -> Array:
    """``x_t = terms_t + decay_t * x_{t+1}``, from the last step to the first."""

    def step(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        term, weight = now
        total = term + weight * later
        return total, total

    return jax.lax.scan(step, jnp.zeros_like(terms[0]), (terms, decay), reverse=True)[1]


def _check(**arrays: Array) -> None:
    first = next(iter(arrays.values()))
    for name, array in arrays.items():
        check_shape(name, array, first.shape, "[T, *B]")
