"""Launching a kernel through XLA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from rrnn_jax.scan.cuda.layout import Layout, Shape
from rrnn_jax.scan.cuda.nvrtc import kernel_ptx
from rrnn_jax.typing import Array

# XLA's custom call for a PTX kernel; it becomes a thunk like those of XLA's fusions.
TARGET = "__gpu$xla.gpu.ptx"


def launch(
    kernel: str,
    layout: Layout,
    save: bool,
    blocks: int,
    arguments: Sequence[Array],
    results: Sequence[Shape],
) -> list[Array]:
    """Runs a kernel on the GPU that the surrounding program is compiled for.

    Args:
      kernel: "forward" or "backward".
      layout: the layout to compile for.
      save: whether a forward pass saves values for the backward pass.
      blocks: number of blocks; each is as many of the GPU's as the layout's clusters have.
      arguments: arrays in the order of its parameters.
      results: shapes of its outputs, which are the parameters after the arguments.

    Returns:
      The results.

    Raises:
      rrnn_jax.scan.cuda.nvrtc.CompileError: the kernel cannot be compiled.
    """
    ptx = kernel_ptx(kernel, layout, save)
    shared = layout.forward_bytes if kernel == "forward" else layout.backward_bytes
    blocks *= layout.cluster
    call = ptx_call(f"rrnn_{kernel}", ptx, blocks, layout.threads, shared, results)
    return call(*arguments)


def ptx_call(
    name: str, ptx: str, blocks: int, threads: int, shared_bytes: int, results: Sequence[Shape]
) -> Callable[..., list[Array]]:
    """A function of arrays that runs a PTX kernel on `blocks` blocks of `threads` threads.

    `jax.vmap` of it, as for several seeds, runs the kernel once for each.
    """
    sizes = dict.fromkeys(("grid_y", "grid_z", "block_y", "block_z"), 1)
    sizes |= {"grid_x": blocks, "block_x": threads, "shared_mem_bytes": shared_bytes}
    attributes = {key: np.int32(value) for key, value in sizes.items()}
    call = jax.ffi.ffi_call(TARGET, list(results), vmap_method="sequential")

    def run(*arguments: Array) -> list[Array]:
        found = call(*arguments, name=name, kernel_type="ptx", kernel_data=ptx, **attributes)
        return list(found)

    return run
