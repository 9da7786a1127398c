"""A sequence on the CUDA kernels, as `RNN` runs one: emulated, or compiled for a GPU."""

from typing import Any

import jax.numpy as jnp

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.scan import dispatch
from rrnn_jax.scan.cuda.recurrence import Terms, Weights, cuda_recurrence
from rrnn_jax.scan.input_terms import input_terms
from rrnn_jax.scan.sequence import without_masked
from rrnn_jax.scan.weights import core_weights


def kernels_run(
    cell: RelationalMemoryCell,
    params: Any,
    x: Any,
    carry: Any,
    reset_carry: Any = None,
    resets: Any = None,
    mask: Any = None,
    time_axis: int = 1,
    tiles: int | None = None,
) -> tuple[Any, Any]:
    """Final carry and outputs ``[B, T, S*F]``, in the cell's dtype."""
    batch, steps = x.shape[1 - time_axis], x.shape[time_axis]
    plan = dispatch.hoisted_plan(cell, 1, batch_size=batch, steps=steps, fused=True)._replace(
        dtype=jnp.dtype(jnp.bfloat16), time_axis=time_axis, transpose=False, for_cpu=False
    )
    x = x if cell.matrix_inputs else x[:, :, None]
    if mask is not None:
        x, resets = without_masked(x, resets, mask)
    terms = input_terms(plan, params, x, None, None)
    final, memories = cuda_recurrence(
        cell,
        Weights(*core_weights(cell, params)),
        carry,
        reset_carry,
        Terms(terms.qkv[0], terms.gates, resets, mask),
        time_axis=time_axis,
        tiles=tiles,
    )
    return final, cell.output_from_carry(memories)
