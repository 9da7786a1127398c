"""How the hoisted scan is run, and what its forward pass hands to its backward pass."""

from typing import NamedTuple

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.step import InputTerms
from rrnn_jax.scan.weights import CoreWeights
from rrnn_jax.typing import Array, Carry, Dtype


class Plan(NamedTuple):
    """How the recurrent part is run; static.

    Attributes:
      cell: the cell, for its configuration.
      dtype: dtype of the products.
      time_axis: 0 for ``[T, B, ...]``, 1 for ``[B, T, ...]``.
      keep_products: whether the forward pass keeps the results of the products.
      rows_per_product: a weight gradient is taken over about this many rows at once.
      prefetch: see `loop_over_time`.
    """

    cell: RelationalMemoryCell
    dtype: Dtype
    time_axis: int
    keep_products: bool
    rows_per_product: int
    prefetch: bool


class Residuals(NamedTuple):
    """What the backward pass gets from the forward pass."""

    weights: CoreWeights
    first_carry: Carry
    reset_carry: Carry | None
    terms: InputTerms
    carries: Carry
    products: list[Array] | None


def cast_kernels(weights: CoreWeights, dtype: Dtype) -> dict[str, Array]:
    """The kernels in the dtype of the products: cast once, not in every step."""
    return {name: kernel.astype(dtype) for name, kernel in weights.kernels.items()}
