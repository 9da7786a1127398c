"""The CUDA kernels compiled for a CPU, and JAX programs that run them there."""

import ctypes
import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from rrnn_jax.scan.cuda import recurrence
from rrnn_jax.scan.cuda.layout import Layout, Shape
from rrnn_jax.scan.cuda.nvrtc import SOURCES

HERE = Path(__file__).parent
has_compiler = shutil.which("g++") is not None


@cache
def library(layout: Layout, save: bool, edits: tuple[tuple[str, str], ...] = ()) -> ctypes.CDLL:
    """Both kernels for a layout; `edits` replace pieces of their sources, to break them."""
    macros = [f"-D{name}={value}" for name, value in layout.macros(save).items()]
    with TemporaryDirectory() as folder:
        sources = Path(folder)
        for path in [*SOURCES.glob("*.h"), *SOURCES.glob("*.cu"), *HERE.glob("emul*")]:
            text = path.read_text()
            for old, new in edits:
                text = text.replace(old, new)
            (sources / path.name).write_text(text)
        options = ["-O1", "-std=c++17", "-w", "-DEMULATED", "-shared", "-fPIC"]
        command = ["g++", *options, *macros, "emulated.cpp", "-o", "emulated.so"]
        subprocess.run(command, cwd=sources, check=True)
        return ctypes.CDLL(str(sources / "emulated.so"))


class Emulator:
    """Stands in for `launch`: the same arguments, the kernels of `library`.

    Attributes:
      order: seed of the order in which threads run; 0 has them take turns.
      edits: as in `library`.
      changes: fields of the layout to run with instead.
      runs: how often each kernel ran.
    """

    def __init__(self, order: int = 0, edits: tuple[tuple[str, str], ...] = (), **changes: Any):
        self.order, self.edits, self.changes = order, edits, changes
        self.runs = {"forward": 0, "backward": 0}

    def launch(
        self,
        kernel: str,
        layout: Layout,
        save: bool,
        blocks: int,
        arguments: Sequence[jax.Array],
        results: Sequence[Shape],
    ) -> list[jax.Array]:
        layout = dataclasses.replace(layout, **self.changes)
        function = getattr(library(layout, save, self.edits), kernel)
        function.restype = ctypes.c_char_p

        def run(*arrays: Any) -> list[np.ndarray]:
            self.runs[kernel] += 1
            buffers = [_aligned(np.asarray(x)) for x in arrays]
            found = [_aligned(_poison(x)) for x in results]
            pointers = [x.ctypes.data for x in [*buffers, *found]]
            array = (ctypes.c_void_p * len(pointers))(*pointers)
            failure = function(array, blocks, ctypes.c_uint64(self.order))
            if failure is not None:
                raise RuntimeError(failure.decode())
            return found

        # As `launch.ptx_call`: under `jax.vmap` one run for each.
        return list(jax.pure_callback(run, list(results), *arguments, vmap_method="sequential"))

    def use(self, monkeypatch: Any) -> "Emulator":
        """Has all runs of the kernels emulated."""
        monkeypatch.setattr(recurrence, "launch", self.launch)
        return self


def _aligned(x: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 64 bytes."""
    space = np.empty(x.nbytes + 64, np.uint8)
    start = -space.ctypes.data % 64
    copy = space[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def _poison(shape: Shape) -> np.ndarray:
    """NaN, or words of nothing but ones: what was not written shows."""
    if np.issubdtype(shape.dtype, np.unsignedinteger):
        return np.full(shape.shape, np.iinfo(shape.dtype).max, shape.dtype)
    return np.full(shape.shape, np.nan, shape.dtype)
