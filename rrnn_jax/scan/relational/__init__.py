"""The fast path of the relational memory: terms of the inputs are hoisted out of the scan.

`input_terms` computes them for all steps at once. `recurrence` runs the rest of the step (`step`)
over time, with operations whose derivatives are fast in XLA (`operations`). Everything is
differentiable any number of times, in any mode. This module is a `dispatch.Backend`.
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import packed_width
from rrnn_jax.scan.dispatch import Request
from rrnn_jax.scan.eligible import why_not_cell
from rrnn_jax.scan.mesh import (
    has_explicit_axes,
    platform,
    product_of,
    varying_axes,
    varying_over,
)
from rrnn_jax.scan.relational import one_slot
from rrnn_jax.scan.relational.input_terms import terms_of_inputs
from rrnn_jax.scan.relational.recurrence import (
    Carried,
    Outputs,
    Settings,
    Timed,
    in_chunks,
    recurrence,
)
from rrnn_jax.scan.relational.weights import (
    checked_params,
    core_weights,
    product_dtypes,
    query_key_sizes,
)
from rrnn_jax.scan.sequence import SequenceOutputs
from rrnn_jax.typing import Array, Carry, accumulation_dtype

NAME = "hoisted"

# With at least this many memory rows B*S it is faster than the plain scan on a CPU. Measured
# forward on two cores of an AMD EPYC: 0.87 times as fast with 4 rows of width 256, 1.05 with 8.
LEAST_ROWS = 8

# Kernels that do not fit into a cache are read from memory at every step. XLA's CPU backend reads a
# kernel [F, N] in narrow columns, with each row on another page; with a transposed kernel [N, F] it
# multiplies a few rows 1.5 to 2.5 times as fast with AVX2 (F 2500, N 7500: 12 ms against 24 for 4
# rows, 19 against 33 for 32), 1.4 times with AVX-512. With 64 rows or more there is no difference,
# with a single row little, and with kernels in a cache it is slower. Transposing a kernel takes the
# time that two steps save with AVX2, or forty with AVX-512.
LARGE_KERNELS = 1 << 23
TRANSPOSED_STEPS, TRANSPOSED_STEPS_AVX512 = 4, 64

# With fewer rows a kernel's gradient is bound by reading and writing the sum of gradients. For GPUs
# this follows from 3 TB/s of memory and 800 TFLOP/s of bfloat16 products, not from a measurement.
ROWS_PER_GRADIENT = 512
FEW_ROWS = {"cpu": (2, 32), "gpu": (1, ROWS_PER_GRADIENT)}

# On a GPU XLA multiplies 16-bit numbers in tiles of 8. It would pad a kernel of another size at
# every step.
GPU_TILE = 8


def why_not(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    return why_not_cell(request.cell)


def why_slow(request: Request) -> str | None:
    """See `dispatch.Backend`."""
    cell: Any = request.cell
    rows = product_of((*request.batch, cell.mem_slots))
    if product_of((request.steps,)) == 1:
        return "gains nothing in a single step"
    few = platform() == "cpu" and rows is not None and rows < LEAST_ROWS
    if few and not _has_large_kernels(cell, rows, request.steps):
        return f"gains nothing on a CPU with fewer than {LEAST_ROWS} memory rows, got {rows}"
    return None


def run(request: Request, variables: Mapping[str, Any]) -> tuple[SequenceOutputs, dict[str, Array]]:
    """See `dispatch.Backend`."""
    cell: Any = request.cell
    params = params_of(request, variables)
    axes = varying_axes(params, request.sequence, request.carry, request.fresh)
    params, carry, fresh = varying_over(axes, (params, request.carry, request.fresh))
    inputs, resets, mask, valid, present = time_first(request)
    settings, length = _settings(request, params, carry)
    # In bfloat16 sums of gradients over many steps or chunks would stop growing.
    params = jax.tree.map(lambda p: p.astype(accumulation_dtype(p.dtype)), params)
    weights = core_weights(cell, params)
    core = _one_slot(request, settings, carry)

    def over(carried: Carried, x: tuple) -> tuple[Carried, Outputs]:
        inputs, present, kept, *flags = x
        terms = terms_of_inputs(cell, settings.cpu, settings.dtypes, params, inputs, present, kept)
        if core is None:
            return recurrence(settings, weights, carried, fresh, Timed(terms, *flags))
        carries = one_slot.recurrence(core, weights, carried.carry, terms)
        outputs = jnp.moveaxis(carries, 0, settings.time_axis)
        return Carried(carries[-1], None), Outputs(outputs, {})

    first = Carried(carry, None if valid is None else carry)
    xs = (inputs, present, request.kept, resets, mask, valid)
    if length is None:
        carried, outputs = over(first, xs)
    else:
        carried, outputs = in_chunks(
            over, first, xs, length, request.time_axis, in_place=settings.cpu
        )
    final = carried.carry if valid is None else carried.last_valid
    return outputs_of(request, final, outputs.carries), outputs.sown


def params_of(request: Request, variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The cell's parameters, checked."""
    cell: Any = request.cell
    shape = list(request.sequence.inputs.shape)
    del shape[request.time_axis]
    step = jax.ShapeDtypeStruct(tuple(shape), request.sequence.inputs.dtype)
    return checked_params(cell, variables, request.carry, step)


def time_first(request: Request) -> list[Array | None]:
    """Inputs ``[T, *B, R, I]``, and the flags of steps ``[T, *B]``."""
    cell: Any = request.cell
    inputs, *flags = (
        None if x is None else jnp.moveaxis(x, request.time_axis, 0) for x in request.sequence
    )
    assert inputs is not None
    return [inputs if cell.matrix_inputs else inputs[..., None, :], *flags]


def outputs_of(request: Request, final: Carry, carries: Carry) -> SequenceOutputs:
    """The outputs that belong to the carries."""
    cell: Any = request.cell
    outputs = cell.output_from_carry(carries)
    return SequenceOutputs(final, outputs, carries if request.all_carries else None)


def _settings(
    request: Request, params: Mapping[str, Any], carry: Carry
) -> tuple[Settings, int | None]:
    """The settings, and the steps of a chunk if only carries between chunks are stored."""
    cell: Any = request.cell
    inputs = request.sequence.inputs
    rows = product_of((*request.batch, cell.mem_slots))
    typed = has_explicit_axes(inputs) or bool(varying_axes(params))
    cpu = platform() == "cpu" and not typed
    large = not typed and _has_large_kernels(cell, rows, request.steps)
    length = _chunk_length(request, rows, large)
    dtypes = product_dtypes(cell, params, inputs.dtype, carry)
    # Explicit axes of a mesh may divide a kernel, which then cannot be padded.
    tiled = (
        platform() == "gpu"
        and not has_explicit_axes(inputs)
        and jnp.dtype(dtypes.rows).itemsize == 2
    )
    settings = Settings(
        cell=cell.clone(parent=None, name=None),
        dtypes=dtypes,
        cpu=cpu,
        transpose=large and cpu and _pays_to_transpose(request.steps),
        tile=GPU_TILE if tiled else 1,
        apart=large,
        time_axis=request.time_axis,
        capture=request.capture,
        store=length is not None or request.remat in ("none", "save_products"),
        unroll=request.lifting.unroll,
    )
    return settings, length


def _one_slot(request: Request, settings: Settings, carry: Carry) -> one_slot.Core | None:
    """The settings of `one_slot`, if it can run the request and a step is bound by its launches."""
    cell, rows, dtypes = settings.cell, request.sequence.inputs, settings.dtypes
    of_paper = cell.mem_slots == cell.num_blocks == 1 and cell.gate_style == "unit"
    of_paper &= cell.qkv_norm and not cell.output_gate and cell.key_size in (None, cell.head_size)
    of_paper &= not cell.matrix_inputs or rows.shape[-2] == 1
    flags = *request.sequence[1:], request.kept
    plain = not request.capture and all(flag is None for flag in flags)
    wide = accumulation_dtype(dtypes.rows, *(x.dtype for x in jax.tree.leaves(carry)))
    same = dtypes.rows == dtypes.gates and jax.tree.leaves(carry)[0].dtype == wide
    if not (platform() == "gpu" and settings.apart and of_paper and plain and same):
        return None
    return one_slot.core_of(cell, dtypes.rows, GPU_TILE, settings.unroll)


def _chunk_length(request: Request, rows: int | None, apart: bool) -> int | None:
    steps = product_of((request.steps,))
    if steps is None:
        return None
    if request.remat == "chunked":
        return max(1, math.isqrt(steps))
    if request.remat == "full" and apart and rows:  # Enough rows for the gradient of a kernel.
        return max(1, min(steps, ROWS_PER_GRADIENT // rows))
    return None


def _has_large_kernels(cell: RelationalMemoryCell, rows: int | None, steps: Any) -> bool:
    """Whether steps have few rows, and kernels too large for a cache."""
    few = FEW_ROWS.get(platform())
    if few is None or rows is None or product_of((steps,)) is None:
        return False
    width = cell.mem_size
    gates = packed_width(cell.gate_style, width, cell.output_gate)
    packed = cell.num_blocks * sum(query_key_sizes(cell))
    outputs = packed + cell.attention_mlp_layers * width + gates
    least, most = few
    return least <= rows <= most and steps >= TRANSPOSED_STEPS and width * outputs >= LARGE_KERNELS


def _pays_to_transpose(steps: int) -> bool:
    """Whether products with transposed kernels are faster; see above."""
    return steps >= (TRANSPOSED_STEPS_AVX512 if _has_avx512() else TRANSPOSED_STEPS)


@cache
def _has_avx512() -> bool:
    """Whether the processor has AVX-512; False if unknown."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
