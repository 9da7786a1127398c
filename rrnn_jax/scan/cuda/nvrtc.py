"""Compiling the kernels when they are traced, by NVRTC, which comes with ``jax[cuda]``.

The result is PTX for compute capability 8.0, with clusters for 9.0, which later GPUs accept too, or
for 9.0 alone (`Layout.wgmma`): the driver compiles it to machine code when XLA loads it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from rrnn_jax.scan.cuda.layout import Layout

# NVRTC emits its newest PTX version, which older drivers reject. The kernels use nothing newer than
# these versions, which drivers since 525 (CUDA 12.0) accept; for clusters, since 530 (CUDA 12.1).
PTX_VERSIONS = {"compute_80": "8.0", "compute_90": "8.1", "compute_90a": "8.0"}
OPTIONS = ("-std=c++17", "-default-device", "-ftz=true", "-prec-div=false", "-prec-sqrt=false")
SOURCES = Path(__file__).parent
MISSING = (
    "needs NVRTC (libnvrtc), which comes with jax[cuda12] and jax[cuda13] as "
    "nvidia-cuda-nvrtc-cu12 and nvidia-cuda-nvrtc; none was found"
)


class CompileError(RuntimeError):
    """A kernel could not be compiled."""


@lru_cache(maxsize=64)
def kernel_ptx(kernel: str, layout: Layout, save: bool) -> str:
    """The PTX of a kernel for a layout; compiled once per process, which takes some seconds.

    Args:
      kernel: "forward" or "backward".
      layout: the layout to compile for.
      save: whether a forward pass saves values for the backward pass.

    Raises:
      CompileError: there is no NVRTC, or it rejects the source.
    """
    source = (SOURCES / f"{kernel}.cu").read_text()
    macros = [f"-D{name}={value}" for name, value in layout.macros(save).items()]
    return compile_ptx(source, f"{kernel}.cu", macros, layout.architecture)


def compile_ptx(
    source: str, name: str, options: Sequence[str] = (), architecture: str = "compute_80"
) -> str:
    """Compiles CUDA C++ to PTX.

    Args:
      source: the source text.
      name: its name in messages.
      options: additional compiler options.
      architecture: a key of `PTX_VERSIONS`.

    Raises:
      CompileError: there is no NVRTC, or it rejects the source; contains the compiler's messages.
    """
    library = _library()
    if library is None:
        raise CompileError(MISSING)
    program = ctypes.c_void_p()
    text, label = source.encode(), name.encode()
    status = library.nvrtcCreateProgram(ctypes.byref(program), text, label, 0, None, None)
    if status != 0:
        raise CompileError(f"NVRTC fails with status {status} before it compiles {name}")
    try:
        given = [f"--gpu-architecture={architecture}", *OPTIONS, f"-I{SOURCES}", *options]
        array = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        status = library.nvrtcCompileProgram(program, len(given), array)
        if status != 0:
            messages = _text(library, "ProgramLog", program)
            raise CompileError(f"NVRTC refuses {name} (status {status}):\n{messages[:4000]}")
        ptx = _text(library, "PTX", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    version = f".version {PTX_VERSIONS[architecture]}"
    return re.sub(r"\.version \d+\.\d+", version, ptx, count=1)


def nvrtc_missing() -> bool:
    """Whether NVRTC is missing."""
    return _library() is None


def _text(library: ctypes.CDLL, kind: str, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{kind}")(program, text)
    return text.value.decode(errors="replace")


@cache
def _library() -> ctypes.CDLL | None:
    """NVRTC from NVIDIA's wheels or a CUDA installation."""
    for path in [*_of_wheels(), ctypes.util.find_library("nvrtc"), *_of_cuda()]:
        if path is None:
            continue
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def _of_wheels() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for place in places for path in Path(place).glob("*/lib/libnvrtc.so.1[0-9]")]
    return sorted(found, reverse=True)


def _of_cuda() -> list[Path]:
    found = Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.1[0-9]")
    return sorted(found, reverse=True)
