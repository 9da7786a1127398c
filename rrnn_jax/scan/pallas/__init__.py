"""Pallas kernels for NVIDIA GPUs: everything in a step but the matrix products.

`kernels` contains them, `layout` the shapes of their inputs and outputs, `recurrence` the loop over
time with its backward pass. This module is a `dispatch.Backend`; modules that need Pallas are
imported when a sequence runs.
"""

import importlib.util
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan import gpu
from rrnn_jax.scan.dispatch import Request
from rrnn_jax.scan.eligible import why_not_cell, why_not_step
from rrnn_jax.scan.mesh import platform
from rrnn_jax.scan.sequence import SequenceOutputs
from rrnn_jax.typing import Array, accumulation_dtype

NAME = "fused"
GATE_STYLES = ("unit", "memory")  # Those of `arithmetic`.

# Products of queries and keys of all pairs of slots of a sequence are in registers.
# Twice the measured size (8 slots of width 256).
MOST_PAIRS = 1 << 15


def why_not(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    cell: Any = request.cell
    reason = why_not_cell(cell) or unfusable(cell)
    if reason is None and not _has_pallas_triton():
        reason = "needs jax.experimental.pallas.triton, which this JAX does not have"
    if reason is None:
        reason = gpu.why_not(request)
    by_promotion = accumulation_dtype(request.sequence.inputs.dtype, cell.param_dtype)
    dtype = by_promotion if cell.dtype is None else jnp.dtype(cell.dtype)
    if reason is None and dtype not in (jnp.float32, jnp.bfloat16):
        reason = f"needs products in float32 or bfloat16, got dtype={dtype}"
    return reason


def why_slow(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    return gpu.why_slow(request)


def unfusable(cell: RelationalMemoryCell) -> str | None:
    """The requirement of the kernels that a cell does not meet; None if it meets all."""
    if reason := why_not_step(cell, GATE_STYLES):
        return reason
    for name in ("mem_slots", "num_heads", "head_size"):
        size = getattr(cell, name)
        if size & (size - 1):
            return f"needs a power of 2 for {name}, got {size}"
    pairs = cell.mem_slots**2 * cell.mem_size
    if pairs > MOST_PAIRS:
        return f"needs at most {MOST_PAIRS} for mem_slots**2 * num_heads * head_size, got {pairs}"
    return None


def run(request: Request, variables: Mapping[str, Any]) -> tuple[SequenceOutputs, dict[str, Array]]:
    """See `dispatch.Backend`."""
    from rrnn_jax.scan.pallas.recurrence import kernels_of

    if not gpu.on_nvidia():
        warnings.warn(
            "implementation='fused' is interpreted on anything but an NVIDIA GPU, which may take "
            f"minutes; implementation='auto' picks what is fast on {platform()!r}",
            stacklevel=2,
        )
    return gpu.run(request, variables, kernels_of)


@cache
def _has_pallas_triton() -> bool:
    """Whether this JAX can compile the kernels; 0.11 announces the removal of Triton."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None
