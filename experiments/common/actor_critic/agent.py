"""The agents: the paper's convolutions and position maps, a recurrent core, policy and value.

Paper appendix A.3: two convolutions of 12 and 24 kernels of 2 x 2 with ReLU, and two maps with the
pixels' x and y in [-1, 1] concatenated to their output. The paper does not state how the maps
become the core's input; here a dense layer with ReLU does that. A ConvLSTM gets the maps directly.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype

from rrnn_jax import RNN
from rrnn_jax.typing import Array, Carry, Dtype


class Conv2x2(nn.Module):
    """`flax.linen.Conv` with 2 x 2 kernels as one product, with the same parameters and results.

    XLA's convolutions are slow within a loop on a CPU.

    Attributes:
      features: the number of kernels.
      dtype: dtype of the product.
    """

    features: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[*B, height, width, channels]`` to ``[*B, height, width, features]``."""
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(0, 1), (0, 1), (0, 0)])
        parts = (slice(None, -1), slice(1, None))
        corners = [x[..., rows, columns, :] for rows in parts for columns in parts]
        patches = jnp.concatenate(corners, axis=-1)
        return patches @ kernel.reshape(-1, self.features) + bias


class ConvLSTMCell2x2(nn.ConvLSTMCell):
    """`flax.linen.ConvLSTMCell` with 2 x 2 kernels as products, see `Conv2x2`.

    Parameters, results and carry are those of Flax's cell with its default strides, padding
    and biases.

    Raises:
      ValueError: another kernel, or strides, padding or biases that are not the defaults.
    """

    kernel_size: Sequence[int] = (2, 2)

    def __post_init__(self) -> None:
        only = {"kernel_size": (2, 2), "strides": None, "padding": "SAME", "use_bias": True}
        for name, value in only.items():
            if (found := getattr(self, name)) != value:
                raise ValueError(f"{name} must be {value!r}, got {found!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], inputs: Array) -> tuple[Carry, Array]:
        """One step; ``inputs`` is ``[*B, height, width, channels]``."""
        c, h = carry
        gates = Conv2x2(4 * self.features, dtype=self.dtype, name="ih")(inputs)
        gates += Conv2x2(4 * self.features, dtype=self.dtype, name="hh")(h)
        i, g, f, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f + 1) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h


class Agent(nn.Module):
    """Policy and values over trajectories, time first.

    Attributes:
      num_actions: the number of actions.
      cell: the recurrent core, or None for an agent without memory.
      width: width of the dense layers before and after the core (default: 64).
      last_action: whether the core also gets the last action and reward, as in IMPALA's agent
        (default: True).
      skip: whether the dense layer after the core also gets the core's input (default: False).
      dtype: dtype of the products; norms, memory, logits and values are always float32.
    """

    num_actions: int
    cell: nn.RNNCellBase | None = None
    width: int = 64
    last_action: bool = True
    skip: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, carry: Carry, obs: Array, resets: Array, actions: Array, rewards: Array
    ) -> tuple[Carry, Array, Array]:
        """Runs over a trajectory.

        Args:
          carry: the core's carry, ``[B, ...]``; () without a core.
          obs: ``[T, B, height, width, channels]``.
          resets: ``[T, B]`` bool, whether the observation is the first of an episode.
          actions: ``[T, B]`` int32, the last action; ignored at a reset.
          rewards: ``[T, B]``, the last reward; ignored at a reset.

        Returns:
          The carry, logits ``[T, B, A]`` and values ``[T, B]``.
        """
        x = obs
        for features in (12, 24):
            x = nn.relu(Conv2x2(features, dtype=self.dtype)(x))
        x = jnp.concatenate([x, _positions(x)], axis=-1)
        is_picture = self.cell is not None and self.cell.num_feature_axes == 3
        extra = _last(resets, actions, rewards, self.num_actions, x.dtype)
        if is_picture:
            if self.last_action:
                maps = jnp.broadcast_to(extra[..., None, None, :], (*x.shape[:-1], extra.shape[-1]))
                x = jnp.concatenate([x, maps], axis=-1)
        else:
            x = x.reshape(*x.shape[:2], -1)
            x = nn.relu(nn.Dense(self.width, dtype=self.dtype, name="to_core")(x))
            if self.last_action:
                x = jnp.concatenate([x, extra], axis=-1)
        if self.cell is not None:
            carry, y = RNN(self.cell, time_major=True, return_carry=True, name="core")(
                x, initial_carry=carry, resets=resets
            )
            seen = [y, x] if self.skip else [y]
            x = jnp.concatenate([each.reshape(*each.shape[:2], -1) for each in seen], axis=-1)
        x = nn.relu(nn.Dense(self.width, dtype=self.dtype, name="from_core")(x))
        # The initial policy is near uniform.
        small = nn.initializers.variance_scaling(1e-4, "fan_in", "truncated_normal")
        logits = nn.Dense(self.num_actions, kernel_init=small, name="policy")(x)
        values = nn.Dense(1, name="value")(x)[..., 0]
        return carry, logits.astype(jnp.float32), values.astype(jnp.float32)

    @nn.nowrap
    def initial_carry(self, obs_shape: tuple[int, ...], batch: int) -> Carry:
        """The core's initial memory for a batch; () without a core."""
        if self.cell is None:
            return ()
        extra = self.num_actions + 1 if self.last_action else 0
        if self.cell.num_feature_axes == 3:
            shape: tuple[int, ...] = (batch, *obs_shape[:2], 24 + 2 + extra)
        else:
            shape = (batch, self.width + extra)
        return self.cell.initialize_carry(jax.random.key(0), shape)


def run(
    agent: Agent, variables: Any, carry: Carry, inputs: tuple[Array, Array, Array, Array]
) -> tuple[Carry, Array, Array]:
    """Applies the agent with given parameters to the inputs of a trajectory; see `Agent`."""
    result: Any = agent.apply(variables, carry, *inputs)
    return result


def _positions(x: Array) -> Array:
    """Maps of y and x in [-1, 1], ``[*B, height, width, 2]``."""
    height, width = x.shape[-3:-1]
    y = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, height)[:, None], (height, width))
    across = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, width)[None, :], (height, width))
    maps = jnp.stack([y, across], axis=-1).astype(x.dtype)
    return jnp.broadcast_to(maps, (*x.shape[:-1], 2))


def _last(resets: Array, actions: Array, rewards: Array, num_actions: int, dtype: Any) -> Array:
    """The last action as a one-hot and the last reward, clipped to [-1, 1]; zeros at a reset."""
    extra = jnp.concatenate(
        [jax.nn.one_hot(actions, num_actions), jnp.clip(rewards, -1.0, 1.0)[..., None]], axis=-1
    )
    return jnp.where(resets[..., None], 0.0, extra).astype(dtype)
