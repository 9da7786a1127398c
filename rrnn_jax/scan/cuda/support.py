"""Whether the kernels can run: their requirements on the cell and the GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.cuda import nvrtc
from rrnn_jax.scan.cuda.launch import ptx_call
from rrnn_jax.scan.cuda.layout import (
    GATE_STYLES,
    MOST_WARPS,
    SLOTS,
    Gpu,
    Shape,
    layout_of,
    warps_of,
)
from rrnn_jax.scan.eligible import why_not_step
from rrnn_jax.typing import Dtype

# Maximum shared memory of a block (CUDA C++ Programming Guide, technical specifications by compute
# capability), and the least of any GPU from 8.0 on.
SHARED_KIB = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227, (10, 3): 227, (11, 0): 227}
LEAST_KIB = 99
LEAST_CAPABILITY = (8, 0)  # The first with products of bfloat16 numbers.
CLUSTER_CAPABILITY = (9, 0)


def why_not(
    cell: RelationalMemoryCell,
    dtype: Dtype,
    batch: int = 1,
    input_rows: int = 1,
    gpu: Gpu | None = None,
    cluster: int | None = None,
) -> str | None:
    """Why the kernels cannot run a cell, as the end of a sentence; None if they can.

    >>> import jax.numpy as jnp
    >>> why_not(RelationalMemoryCell(mem_slots=3), jnp.dtype(jnp.bfloat16))
    'needs mem_slots 1, 2, 4, 8 or 16, got 3'

    Args:
      cell: the cell.
      dtype: dtype of the products.
      batch: B.
      input_rows: R.
      gpu: the GPU to run on (default: an H100).
      cluster: multiprocessors for a block, as in `layout.layout_of`.
    """
    reason = unfit(cell, input_rows, dtype)
    if reason is not None:
        return reason
    try:
        layout_of(cell, batch, input_rows, True, gpu, cluster=cluster)
    except ValueError as error:
        return f"does not fit: {error}"
    return None


def unfit(
    cell: RelationalMemoryCell, input_rows: int = 1, dtype: Dtype = jnp.bfloat16
) -> str | None:
    """The requirement on a cell, whatever the GPU, that it does not meet; None if it meets all."""
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"needs products in bfloat16 (dtype=jnp.bfloat16), got {jnp.dtype(dtype).name}"
    if reason := why_not_step(cell, GATE_STYLES):
        return reason
    if cell.mem_slots not in SLOTS:
        return f"needs mem_slots 1, 2, 4, 8 or 16, got {cell.mem_slots}"
    if cell.head_size % 16:
        return f"needs a multiple of 16 for head_size, got {cell.head_size}"
    if cell.mem_size % 64:
        return f"needs a multiple of 64 for num_heads * head_size, got {cell.mem_size}"
    most = min(cell.mem_slots, 8)
    if input_rows > most:
        return f"needs at most {most} input rows, got {input_rows}"
    if not warps_of(cell.mem_size, cell.head_size):
        return (
            f"needs a memory that divides among at most {MOST_WARPS} warps with whole heads, got "
            f"num_heads={cell.num_heads}, head_size={cell.head_size}"
        )
    return None


def why_not_here() -> str | None:
    """Why the kernels cannot run on JAX's default device; None if they can.

    Once per process a small kernel is compiled and run in the same way as the others.
    """
    return _why_not_on(_default_device())


def default_gpu() -> Gpu:
    """The properties of JAX's default device; those of an H100 if it is not a GPU."""
    device = _default_device()
    if device.platform != "gpu":
        return Gpu()
    kib = SHARED_KIB.get(_capability(device), LEAST_KIB)
    multiprocessors = int(getattr(device, "core_count", Gpu.multiprocessors))
    return Gpu(multiprocessors, 1024 * kib, _has_clusters(device))


def capability_here() -> tuple[int, int]:
    """The compute capability of JAX's default device; (0, 0) if it is not an NVIDIA GPU."""
    device = _default_device()
    return _capability(device) if hasattr(device, "compute_capability") else (0, 0)


def _default_device() -> Any:
    default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None or isinstance(default, str):
        return jax.local_devices(backend=default)[0]  # Of `jax.devices` another process may own it.
    return default


@cache
def _why_not_on(device: Any) -> str | None:
    if device.platform != "gpu" or not hasattr(device, "compute_capability"):
        return f"needs an NVIDIA GPU, got {device.platform}"
    found = _capability(device)
    if found < LEAST_CAPABILITY:
        text = ".".join(map(str, found))
        return f"needs a GPU of compute capability 8.0 or later, got {text}"
    if nvrtc.nvrtc_missing():
        return nvrtc.MISSING
    try:
        with jax.ensure_compile_time_eval(), jax.default_device(device):
            _probe()
    # Any error of XLA or the driver: another implementation can run the cell.
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        return f"cannot run a kernel on this GPU: {first[0][:300]}"
    return None


def _capability(device: Any) -> tuple[int, int]:
    """For example (9, 0) for an H100; AMD's GPUs have names instead of numbers."""
    try:
        major, minor = str(device.compute_capability).split(".")
        return int(major), int(minor)
    except ValueError:
        return (0, 0)


@cache
def _has_clusters(device: Any) -> bool:
    """Whether a small kernel with a cluster runs; older drivers reject it."""
    if _capability(device) < CLUSTER_CAPABILITY:
        return False
    try:
        with jax.ensure_compile_time_eval(), jax.default_device(device):
            _probe(cluster=2)
    except Exception:  # As above; without clusters the kernels run, too.
        return False
    return True


def _probe(cluster: int = 1) -> None:
    """Runs a small kernel with the unusual instructions and checks its result."""
    source = (nvrtc.SOURCES / "probe.cu").read_text()
    architecture = "compute_80" if cluster == 1 else "compute_90"
    ptx = nvrtc.compile_ptx(source, "probe.cu", [f"-DCLUSTER={cluster}"], architecture)
    shape = Shape((32 * cluster,), jnp.uint32)
    call = ptx_call("rrnn_probe", ptx, cluster, 32, 0, [shape])
    numbers = np.arange(1, 33, dtype=np.uint32)
    (found,) = jax.jit(call)(numbers)
    # In a cluster, both blocks add the numbers of block r times r + 1.
    factor = 1 if cluster == 1 else cluster * (cluster + 1) // 2
    if not np.array_equal(np.asarray(found), np.tile(factor * numbers, cluster)):
        raise RuntimeError("the kernel that is tried first gives wrong numbers")
