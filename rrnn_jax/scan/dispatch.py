"""Which implementation runs a sequence, and how: decided here and nowhere else.

The modules of the hoisted scan are imported once it is to run: they are a third of what importing
the package costs.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from flax import linen as nn
from flax.core.scope import in_filter

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import gate_width
from rrnn_jax.scan.eligible import why_plain
from rrnn_jax.scan.plain import Lifting
from rrnn_jax.scan.weights import query_key_sizes

if TYPE_CHECKING:
    from rrnn_jax.scan.plan import Plan

REMATS = ("none", "full", "save_products", "chunked")
IMPLEMENTATIONS = ("auto", "scan", "hoisted", "fused")

# Of each pair of a sequence's memory slots, all products of queries and keys are in registers.
# Twice what was measured (8 slots of 256 numbers).
FUSED_PAIRS = 1 << 15

# A weight gradient of fewer rows than this is bound by reading and writing the accumulator.
ROWS_PER_PRODUCT = 512

# Kernels that no cache holds are read from memory at every step. XLA's CPU backend goes through a
# kernel [F, N] in narrow columns, each row of them on another page; turned over, [N, F], it
# multiplies a few rows 1.5 to 2.5 times as fast with AVX2 (by hand, F 2500, N 7500: 12 ms against
# 24 for 4 rows, 19 against 33 for 32), 1.4 times with AVX-512. From 64 rows on it makes no
# difference, for a single row little, and with kernels in a cache it is slower. To turn one over
# costs what two steps save with AVX2, with AVX-512 what forty do.
LARGE_KERNELS, FEW_ROWS = 1 << 23, (2, 32)
TURNED_STEPS, TURNED_STEPS_AVX512 = 4, 64


def resolve_implementation(
    implementation: str,
    cell: nn.RNNCellBase,
    lifting: Lifting,
    batch_size: int,
    steps: int,
    flags: bool = False,
    explicit: bool = False,
) -> str:
    """The implementation that runs `cell`.

    Args:
      implementation: what the user asked for.
      cell: the cell to run.
      lifting: what the steps share.
      batch_size: B, the product of all batch axes.
      steps: T.
      flags: whether there are resets or a mask.
      explicit: whether the inputs lie on a mesh whose axes are explicit, in whose types JAX has
        each array's sharding.

    Returns:
      ``"scan"``, ``"hoisted"`` or ``"fused"``.

    Raises:
      ValueError: ``"hoisted"`` or ``"fused"`` for a cell that is not a plain
        `RelationalMemoryCell`, or for one whose steps do not share their parameters; ``"fused"``
        for one that its kernels are not made for, or where JAX cannot compile them.
    """
    reason = why_plain(cell)
    fits = reason is None
    parting = _untied_by(lifting)
    if implementation in ("hoisted", "fused"):
        if not fits:
            raise ValueError(
                f"implementation={implementation!r} {reason}; use implementation='scan' (or 'auto')"
            )
        if parting is not None:
            raise ValueError(
                f"implementation={implementation!r} needs the same params in all steps, got "
                f"{parting}={getattr(lifting, parting)!r}; use implementation='scan' (or 'auto')"
            )
        fault = None
        assert isinstance(cell, RelationalMemoryCell)
        if implementation == "fused":
            fault = unfusable(cell)
            if not _has_pallas_triton():
                fault = "needs jax.experimental.pallas.triton, which this JAX does not have"
        if fault is not None:
            raise ValueError(
                f"implementation='fused' {fault}; use implementation='hoisted' (or 'auto')"
            )
        # Of no numbers at all there is nothing to compute, and nothing to cut into pieces.
        return implementation if batch_size * steps > 0 else "scan"
    if (
        implementation == "auto"
        and fits
        and isinstance(cell, RelationalMemoryCell)
        and parting is None
        and not explicit
    ):
        # Of a single step there is nothing to hoist.
        pays = steps > 1 and batch_size * cell.mem_slots >= _least_rows()
        measured = not flags and lifting.unroll == 1 and unfusable(cell) is None
        if pays and measured and _on_one_nvidia_gpu() and _has_pallas_triton():
            return "fused"
        return "hoisted" if pays or _large_kernels(cell, batch_size, steps) else "scan"
    return "scan"


def _on_one_nvidia_gpu() -> bool:
    """Whether what is traced now is likely to run on the only device, of that kind.

    XLA does not divide a kernel among devices that share a batch.
    """
    device: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    if platform not in ("gpu", "cuda") or jax.device_count() > 1:
        return False
    # AMD's are "gpu", too.
    return platform == "cuda" or "cuda" in jax.devices()[0].client.platform_version.lower()


@cache
def _has_pallas_triton() -> bool:
    """Whether this JAX can compile the kernels; 0.11 says that a later one will not."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None


def unfusable(cell: RelationalMemoryCell) -> str | None:
    """What the kernels of `fused.py` want that this cell does not have; None if it has all."""
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
    if pairs > FUSED_PAIRS:
        return f"needs at most {FUSED_PAIRS} for mem_slots**2 * num_heads * head_size, got {pairs}"
    return None


def has_explicit_axes(inputs: jax.Array) -> bool:
    """Whether inputs lie on a mesh with axes that are explicit."""
    mesh = getattr(getattr(jax.typeof(inputs), "sharding", None), "mesh", None)
    return jax.sharding.AxisType.Explicit in getattr(mesh, "axis_types", ())


def _untied_by(lifting: Lifting) -> str | None:
    """The argument by which steps have parameters of their own; None if they share them."""
    if any(in_filter(collections, "params") for collections in lifting.variable_axes):
        return "variable_axes"
    if in_filter(lifting.variable_carry, "params"):
        return "variable_carry"
    return None if in_filter(lifting.variable_broadcast, "params") else "variable_broadcast"


def _least_rows() -> int:
    """Memory rows B*S from which on the hoisted scan is not the slower one.

    Measured forward on two cores of an AMD EPYC, before this rule: 0.87 times as fast as the plain
    scan with 4 rows of 256 numbers, 1.05 times with 8.
    """
    return 8 if jax.default_backend() == "cpu" else 1


def _large_kernels(cell: RelationalMemoryCell, batch_size: int, steps: int) -> bool:
    """Whether there are a few rows a step, and kernels that have to be read for them each time."""
    if jax.default_backend() != "cpu":
        return False
    width, (least, most) = cell.mem_size, FEW_ROWS
    packed = sum(query_key_sizes(cell))
    gates = 3 if cell.output_gate else 2
    gates *= 0 if cell.gate_style is None else gate_width(cell.gate_style, width)
    outputs = cell.num_blocks * packed + cell.attention_mlp_layers * width + gates
    fits = least <= batch_size * cell.mem_slots <= most and steps >= TURNED_STEPS
    return fits and width * outputs >= LARGE_KERNELS


def _turns_kernels(cell: RelationalMemoryCell, batch_size: int, steps: int) -> bool:
    """Whether products with turned kernels are the faster ones; see above."""
    enough = TURNED_STEPS_AVX512 if _has_avx512() else TURNED_STEPS
    return steps >= enough and _large_kernels(cell, batch_size, steps)


@cache
def _has_avx512() -> bool:
    """Whether the processor has AVX-512; False where the system does not say so."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def hoisted_plan(
    cell: RelationalMemoryCell, unroll: int, batch_size: int, steps: int, fused: bool = False
) -> Plan:
    """How the hoisted scan runs on the default backend.

    Args:
      cell: the cell to run.
      unroll: steps per iteration of a loop over time.
      batch_size: B, the product of all batch axes.
      steps: T.
      fused: whether the kernels for GPUs are to run it.

    Returns:
      The plan; `time_axis`, `dtype` and `save` are for the caller to fill in.
    """
    from rrnn_jax.scan.plan import Plan

    on_cpu = jax.default_backend() == "cpu"
    return Plan(
        cell=cell.clone(parent=None),
        dtype=None,
        time_axis=1,
        save=True,
        rows_per_product=ROWS_PER_PRODUCT,
        prefetch=on_cpu,
        transpose=on_cpu,
        for_cpu=on_cpu,
        turned=_turns_kernels(cell, batch_size, steps),
        unroll=unroll,
        fused=fused,
    )
