"""The environment of a run or a measurement."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("rrnn_jax", "jax", "jaxlib", "flax", "optax", "chex", "numpy", "orbax-checkpoint")
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}
_NO_RESULTS = (":(exclude)benchmarks/results", ":(exclude)experiments/results")


def describe_environment() -> dict[str, Any]:
    """Command, versions, device, flags and commit, for runs and rows of measurements."""
    device = jax.local_devices()[0]  # Others have no statistics of memory.
    return {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "processor": _processor(),
        "cpu_cores": count_cores(),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "torch": _version("torch"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "device_memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` appended if files differ; None outside git.

    Results are ignored, because measurements write them.
    """
    root = Path(__file__).parents[2]
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(
            root, "status", "--porcelain", "--untracked-files=no", "--", ".", *_NO_RESULTS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("-dirty" if changed else "")


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=root, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def count_cores() -> int:
    """Processors available to this process: the number of threads of XLA (CPU) and PyTorch."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Limits this process to a number of processors; call it before JAX creates its backends.

    XLA and PyTorch create as many threads as there are available processors.

    Args:
      threads: the number of processors.

    Raises:
      ValueError: there are fewer processors, or the system does not support it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("threads can only be limited on Linux; leave the option out")
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(available):
        raise ValueError(f"threads must be from 1 to {len(available)}, got {threads}")
    os.sched_setaffinity(0, available[:threads])


def _processor() -> str:
    try:
        return describe_processor(Path("/proc/cpuinfo").read_text()) or platform.processor()
    except OSError:
        return platform.processor()


def describe_processor(cpuinfo: str) -> str:
    r"""Name and widest vector instructions of a processor; empty if the name is unknown.

    Different processors can have the same name; their vector instructions distinguish them.

    Args:
      cpuinfo: Linux's description.

    >>> describe_processor("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2 avx512f\n")
    'AMD EPYC, AVX-512'
    """
    parts = (line.partition(":") for line in cpuinfo.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in parts}
    name, flags = fields.get("model name", ""), fields.get("flags", "").split()
    widest = next((shown for flag, shown in _VECTORS.items() if flag in flags), None)
    return f"{name}, {widest}" if name and widest else name
