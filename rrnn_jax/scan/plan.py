"""How the hoisted scan is run, and what its forward pass hands to its backward pass."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.input_terms import InputTerms
from rrnn_jax.scan.tape import Weights
from rrnn_jax.scan.weights import CoreWeights
from rrnn_jax.typing import Array, Carry, Dtype


class Plan(NamedTuple):
    """How the recurrent part is run; static.

    Attributes:
      cell: the cell, for its configuration.
      dtype: dtype of the products.
      time_axis: 0 for ``[T, B, ...]``, 1 for ``[B, T, ...]``.
      save: whether the forward pass saves what the backward pass wants of a step; else the backward
        pass runs each step again.
      rows_per_product: a weight gradient is taken over about this many rows at once.
      prefetch: see `loop_over_time`; of the forward pass.
      transpose: see `products.weight_gradient`.
      for_cpu: whether to use what XLA's CPU backend is quick with; see `reductions`, `attending`.
      turned: whether the forward pass of a step multiplies with kernels turned over, ``[N, F]``.
      unroll: steps per iteration of a loop over time.
      fused: whether `fused.py` runs the recurrent part, if `save`.
    """

    cell: RelationalMemoryCell
    dtype: Dtype
    time_axis: int
    save: bool
    rows_per_product: int
    prefetch: bool
    transpose: bool
    for_cpu: bool
    turned: bool
    unroll: int
    fused: bool


class Timewise(NamedTuple):
    """What is read step by step.

    Attributes:
      inputs: ``[B, T, R, I]``, or ``[T, B, R, I]`` with ``plan.time_axis == 0``.
      resets: ``[B, T]`` or ``[T, B]`` bool, or None.
      mask: the same.
    """

    inputs: Array
    resets: Array | None
    mask: Array | None


class Arguments(NamedTuple):
    """What a run starts from; together with the inputs, what it has gradients for.

    Attributes:
      params: the cell's parameters.
      carry: ``[B, S, F]``, or a pair of such arrays with an output gate.
      reset_carry: what a reset puts in place of the carry, shaped like it; None without resets.
    """

    params: Mapping[str, Any]
    carry: Carry
    reset_carry: Carry | None


class Residuals(NamedTuple):
    """What the backward pass gets from the forward pass.

    Attributes:
      saved: what `tape.Record` saved of every step, time first; None if it was not to be kept.
    """

    weights: CoreWeights
    first_carry: Carry
    reset_carry: Carry | None
    terms: InputTerms
    carries: Carry
    saved: list[Any] | None


def forward_weights(plan: Plan, weights: CoreWeights) -> Weights:
    """What a forward step of that plan uses: cast and turned over once, not in every step."""
    kernels = cast_kernels(weights, plan.dtype)
    if plan.turned:
        kernels = {k: jax.lax.optimization_barrier(x.T) for k, x in kernels.items()}
    return Weights(kernels, weights.vectors)


def cast_kernels(weights: CoreWeights, dtype: Dtype) -> dict[str, Array]:
    """The kernels in the dtype of the products: cast once, not in every step."""
    return {name: kernel.astype(dtype) for name, kernel in weights.kernels.items()}
