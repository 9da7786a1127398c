"""The machine that is measured: its threads, and what a row says of it."""

import os
from typing import Any

import jax

from experiments.common.environment import describe_environment


def limit_threads(threads: int) -> None:
    """Keeps this process to that many processors; to be called before JAX makes its backends.

    XLA and PyTorch make as many threads as there are processors they may run on.

    Args:
      threads: how many.

    Raises:
      ValueError: there are not that many, or the system cannot be asked for it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("threads can only be limited on Linux; leave the option out")
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(available):
        raise ValueError(f"threads must be from 1 to {len(available)}, got {threads}")
    os.sched_setaffinity(0, available[:threads])


def count_threads() -> int:
    """Threads that XLA's CPU backend and PyTorch are given: one for each processor."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """Versions, device, processor, flags, commit and command, for every row."""
    return describe_environment() | {
        "torch": _torch_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "device_memory_bytes": (jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
    }


def _torch_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
