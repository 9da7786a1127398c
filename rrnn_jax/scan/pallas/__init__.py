"""Pallas kernels for NVIDIA GPUs: all that lies between the products of a step.

`kernels` holds them, `layout` the shapes of what they read and write, `recurrence` the loop over
time with its backward pass. This module is a `dispatch.Backend`; what imports Pallas is imported
when a sequence runs.
"""

import importlib.util
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.dispatch import Request
from rrnn_jax.scan.eligible import why_plain
from rrnn_jax.scan.mesh import has_explicit_axes, platform, product_of, varying_axes
from rrnn_jax.scan.relational import outputs_of, params_of, time_first
from rrnn_jax.scan.relational import why_slow as why_slow_at_all
from rrnn_jax.scan.relational.input_terms import input_terms
from rrnn_jax.scan.relational.weights import Dtypes, core_weights, product_dtypes
from rrnn_jax.scan.sequence import SequenceOutputs
from rrnn_jax.typing import Array

NAME = "fused"

# Of each pair of a sequence's memory slots, all products of queries and keys are in registers.
# Twice what was measured (8 slots of 256 numbers).
MOST_PAIRS = 1 << 15


def why_not(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    cell: Any = request.cell
    sequence = request.sequence
    reason = why_plain(cell) or unfusable(cell)
    if reason is not None:
        return reason
    if not _has_pallas_triton():
        return "needs jax.experimental.pallas.triton, which this JAX does not have"
    if request.remat not in ("none", "save_products"):
        return f"needs remat='none' or 'save_products', got {request.remat!r}"
    if request.capture:
        return "does not keep what is captured"
    if sequence.valid is not None:
        return "needs mask in place of seq_lengths"
    if product_of((*request.batch, request.steps)) is None:
        return "needs known sizes, not symbolic ones"
    arrays = (sequence, request.carry, request.fresh)
    if has_explicit_axes(sequence.inputs) or varying_axes(arrays):
        return "does not run within a mesh"
    carries = jax.tree.leaves((request.carry, request.fresh))
    for carry in carries:
        if carry.dtype != jnp.float32:
            return f"needs memories in float32, got {carry.dtype}"
    return None


def why_slow(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    sequence = request.sequence
    if not _on_one_nvidia_gpu():
        return "is for a single NVIDIA GPU"
    if sequence.resets is not None or sequence.mask is not None or request.lifting.unroll != 1:
        return "was measured without resets, mask and unroll only"
    return why_slow_at_all(request)


def unfusable(cell: RelationalMemoryCell) -> str | None:
    """What the kernels want that this cell does not have; None if it has all."""
    wanted = {
        "num_blocks": (cell.num_blocks, 1),
        "qkv_norm": (cell.qkv_norm, True),
        "output_gate": (cell.output_gate, False),
        "key_size": (cell.key_size or cell.head_size, cell.head_size),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            return f"needs {name}={needed!r}, got {found!r}"
    if cell.gate_style is None:
        return "needs gates, got gate_style=None"
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
    from rrnn_jax.scan.pallas.layout import sizes_of
    from rrnn_jax.scan.pallas.recurrence import recurrence

    cell: Any = request.cell
    if platform() not in ("gpu", "cuda"):
        warnings.warn(
            "implementation='fused' is interpreted on a platform other than a GPU, which may take "
            f"minutes; implementation='auto' picks what is fast on {platform()!r}",
            stacklevel=2,
        )
    params = params_of(request, variables)
    inputs, resets, mask, _ = time_first(request)
    assert inputs is not None
    dtypes = product_dtypes(cell, params, inputs.dtype, request.carry)
    if dtypes.rows not in (jnp.float32, jnp.bfloat16):
        raise ValueError(
            f"implementation='fused' needs products in float32 or bfloat16, got {dtypes.rows}; use "
            "implementation='hoisted' (or 'auto')"
        )
    steps, batch = inputs.shape[0], inputs.shape[1:-2]
    size = product_of(batch)

    def merged(x: Array | None) -> Array | None:
        return None if x is None else x.reshape(steps, size, *x.shape[1 + len(batch) :])

    terms = input_terms(cell, False, Dtypes(*[dtypes.rows] * 3), params, merged(inputs))  # type: ignore[arg-type]
    flags = merged(resets), merged(mask)
    carry = request.carry.reshape(size, *request.carry.shape[-2:])
    fresh = None if resets is None else jnp.reshape(request.fresh, carry.shape)  # type: ignore[arg-type]
    plain = cell.clone(parent=None, name=None)
    sizes = sizes_of(plain, dtypes.rows, terms, flags)
    found: Any = recurrence(sizes, core_weights(cell, params), carry, fresh, terms, flags)
    final, carries = found
    final = final.reshape(*batch, *final.shape[-2:])
    carries = carries.reshape(steps, *batch, *carries.shape[-2:])
    return outputs_of(request, final, jnp.moveaxis(carries, 0, request.time_axis)), {}


def _on_one_nvidia_gpu() -> bool:
    """Whether what is traced now is likely to run on the only device, of that kind.

    XLA does not divide a kernel among devices that share a batch.
    """
    if platform() not in ("gpu", "cuda") or jax.device_count() > 1:
        return False
    # AMD's are "gpu", too.
    return platform() == "cuda" or "cuda" in jax.devices()[0].client.platform_version.lower()


@cache
def _has_pallas_triton() -> bool:
    """Whether this JAX can compile the kernels; 0.11 says that a later one will not."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None
