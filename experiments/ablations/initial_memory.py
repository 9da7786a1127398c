"""Initial memories other than the identity: one random draw, zeros, and a learned one."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.initializers import identity_rows
from rrnn_jax.typing import Array, Carry, Dtype


def random_rows(key: Array | None, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Normal rows of about unit length, equal for all sequences and calls.

    >>> a, b = random_rows(None, (2, 3, 4))
    >>> bool((a == b).all()), bool((a[0] == a[1]).any())
    (True, False)

    Args:
      key: ignored, because training and evaluation must use the same rows.
      shape: ``[*B, S, F]``.
      dtype: dtype of the result.

    Returns:
      An array of that shape.
    """
    del key
    rows = jax.random.normal(jax.random.key(0), shape[-2:], dtype)
    return jnp.broadcast_to(rows / jnp.asarray(math.sqrt(shape[-1]), dtype), shape)


def zero_rows(key: Array | None, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Zeros. All slots are equal, share all weights, and therefore stay equal."""
    del key
    return jnp.zeros(shape, dtype)


class LearnedStartCell(nn.RNNCellBase):
    """A memory core whose initial memory is a parameter, initialised to identity rows.

    Its carry is the cell's carry and a flag, which is False before the first step; the first step
    replaces the memory by the parameter.

    Attributes:
      cell: the memory core, without an output gate.

    Raises:
      ValueError: the core has an output gate, and so a carry of two parts.
    """

    cell: RelationalMemoryCell

    def __post_init__(self) -> None:
        if self.cell.output_gate:
            raise ValueError("cell must have output_gate=False, got output_gate=True")
        super().__post_init__()

    @property
    def num_feature_axes(self) -> int:
        """Feature axes of the input."""
        return self.cell.num_feature_axes

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Carry:
        """An unused memory, and False."""
        memory = self.cell.initialize_carry(rng, input_shape)
        return memory, jnp.zeros(memory.shape[:-2], jnp.bool_)

    @nn.compact
    def __call__(self, carry: Carry, inputs: Array) -> tuple[Carry, Any]:
        """One step."""
        memory, has_begun = carry
        start = self.param("initial_memory", identity_rows, memory.shape[-2:])
        start = jnp.broadcast_to(start.astype(memory.dtype), memory.shape)
        memory = jnp.where(has_begun[..., None, None], memory, start)
        memory, output = self.cell(memory, inputs)
        return (memory, jnp.ones_like(has_begun)), output
