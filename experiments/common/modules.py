"""Modules that experiments share."""

import jax
from flax import linen as nn

from rrnn_jax.typing import Array, Dtype


class MLP(nn.Module):
    """The paper's read-out: hidden layers with ReLU, then one linear layer.

    Attributes:
      num_outputs: width of the result.
      hidden: width of each hidden layer (default: the paper's four of 256).
      dtype: dtype of the products.
    """

    num_outputs: int
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``[..., X]`` to ``[..., num_outputs]``."""
        for i, width in enumerate(self.hidden):
            x = jax.nn.relu(nn.Dense(width, dtype=self.dtype, name=f"hidden_{i}")(x))
        return nn.Dense(self.num_outputs, dtype=self.dtype, name="output")(x)
