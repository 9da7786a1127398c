"""A sequence on the CUDA kernels, as `RNN` runs one: emulated, or compiled for a GPU."""

from typing import Any

import jax.numpy as jnp

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.scan.cuda.layout import Gpu
from rrnn_jax.scan.cuda.recurrence import Terms, Weights, cuda_recurrence
from rrnn_jax.scan.relational.input_terms import terms_of_inputs
from rrnn_jax.scan.relational.weights import Dtypes, core_weights
from rrnn_jax.scan.sequence import SequenceInputs, without_unused


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
    cluster: int = 1,
    gpu: Gpu | None = None,
) -> tuple[Any, Any]:
    """Final carry and outputs ``[B, T, S*F]``, in the cell's dtype."""
    sequence = without_unused(SequenceInputs(x, resets, mask), time_axis, repeat=False)
    x, resets = sequence.inputs, sequence.resets
    x = x if cell.matrix_inputs else x[:, :, None]
    low = jnp.dtype(jnp.bfloat16)
    terms = terms_of_inputs(cell, False, Dtypes(low, low, low), params, x)
    final, memories = cuda_recurrence(
        cell,
        Weights(*core_weights(cell, params)),
        carry,
        reset_carry,
        Terms(terms.qkv[0], terms.gates, resets, mask),
        time_axis=time_axis,
        tiles=tiles,
        cluster=cluster,
        gpu=gpu,
    )
    return final, cell.output_from_carry(memories)
