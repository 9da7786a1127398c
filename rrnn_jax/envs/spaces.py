"""Spaces of actions and observations, with gymnax's attributes and methods."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.checks import check_positive, check_tuple
from rrnn_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers from 0 to n - 1.

    >>> space = Discrete(5)
    >>> bool(space.contains(space.sample(jax.random.key(0)))), bool(space.contains(5))
    (True, False)

    Attributes:
      n: the number of integers.
    """

    n: int
    shape: tuple[int, ...] = dataclasses.field(default=(), init=False)
    dtype: Any = dataclasses.field(default=jnp.int32, init=False)

    def __post_init__(self) -> None:
        check_positive(n=self.n)

    def sample(self, key: Array) -> Array:
        """A uniform int32 scalar."""
        return jax.random.randint(key, (), 0, self.n, jnp.int32)

    def contains(self, x: Any) -> Array:
        """Whether `x` is one of them; a bool scalar."""
        x = jnp.asarray(x)
        if x.shape != self.shape:
            return jnp.asarray(False)
        return (x >= 0) & (x < self.n) & (x == jnp.floor(x))


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays of one shape with entries in [low, high].

    >>> space = Box(0.0, 1.0, (5, 5, 3))
    >>> space.sample(jax.random.key(0)).shape
    (5, 5, 3)
    >>> bool(space.contains(jnp.full((5, 5, 3), 2.0)))
    False

    Attributes:
      low: the smallest entry.
      high: the largest entry.
      shape: shape of an array.
      dtype: dtype of an array (default: float32).

    Raises:
      ValueError: `low` above `high`, or a size below 1.
      TypeError: `shape` is not a sequence of integers.
    """

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_tuple("(5, 5, 3)", shape=self.shape)
        for size in self.shape:
            check_positive(shape=size)
        if not self.low <= self.high:
            raise ValueError(f"low must be at most high={self.high}, got {self.low}")
        object.__setattr__(self, "shape", tuple(self.shape))

    def sample(self, key: Array) -> Array:
        """Uniform entries."""
        return jax.random.uniform(key, self.shape, self.dtype, self.low, self.high)

    def contains(self, x: Any) -> Array:
        """Whether `x` has the shape and all its entries are in range; a bool scalar."""
        x = jnp.asarray(x)
        if x.shape != self.shape:
            return jnp.asarray(False)
        x = x.astype(self.dtype)
        return jnp.all((x >= self.low) & (x <= self.high))
