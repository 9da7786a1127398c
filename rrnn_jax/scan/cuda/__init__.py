"""The recurrent part as CUDA kernels over all steps, for bfloat16 on NVIDIA GPUs; see README.md.

This module is a `dispatch.Backend`.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan import gpu
from rrnn_jax.scan.cuda import support
from rrnn_jax.scan.cuda.layout import layout_of
from rrnn_jax.scan.cuda.recurrence import Run, backward_pass, forward_pass
from rrnn_jax.scan.dispatch import Request
from rrnn_jax.scan.eligible import why_not_cell
from rrnn_jax.scan.gpu import Arguments, Kernels
from rrnn_jax.scan.mesh import product_of
from rrnn_jax.scan.sequence import SequenceOutputs
from rrnn_jax.typing import Array, Dtype

NAME = "cuda"
MEASURED = (9, 0)  # The compute capability of an H100 and an H200.


def why_not(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    cell: Any = request.cell
    reason = why_not_cell(cell) or gpu.why_not(request)
    if reason is not None:
        return reason
    dtype = jnp.float32 if cell.dtype is None else cell.dtype
    rows = request.sequence.inputs.shape[-2] if cell.matrix_inputs else 1
    batch = product_of(request.batch) or 1
    reason = support.unfit(cell, rows, dtype) or support.why_not_here()
    return reason or support.why_not(cell, dtype, batch, rows, support.default_gpu())


def why_slow(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    if support.capability_here() != MEASURED:
        return "was measured on GPUs of compute capability 9.0 only"
    return gpu.why_slow(request)


def run(request: Request, variables: Mapping[str, Any]) -> tuple[SequenceOutputs, dict[str, Array]]:
    """See `dispatch.Backend`."""
    return gpu.run(request, variables, kernels_of)


def kernels_of(cell: RelationalMemoryCell, dtype: Dtype, arguments: Arguments) -> Kernels:
    """The kernels for a cell and arguments of these shapes."""
    assert dtype == jnp.bfloat16
    batch, input_rows = arguments.terms.qkv[0].shape[1:3]
    flags = arguments.resets is not None or arguments.mask is not None
    plan = Run(cell, layout_of(cell, batch, input_rows, flags, support.default_gpu()))
    return Kernels(partial(forward_pass, plan), partial(backward_pass, plan))
