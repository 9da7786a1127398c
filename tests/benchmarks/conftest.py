"""Benchmarks are tested as they are run, with jax's defaults; their measurements are made small."""

import gc
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import pytest

from benchmarks import measure, roofline, timing


@pytest.fixture(autouse=True, scope="package")
def jax_defaults() -> Iterator[None]:
    """A command that measures sets the cache aside for the rest of its process."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(autouse=True, scope="package")
def quick_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "SIZES", {"cpu": (64, 4096)})
        # Collecting garbage takes long in a process that ran other tests.
        quick = {"collect": lambda: 0, "isenabled": gc.isenabled}
        patch.setattr(timing, "gc", SimpleNamespace(**quick, enable=gc.enable, disable=gc.disable))
        measure._best_limits.clear()
        yield
    measure._best_limits.clear()
