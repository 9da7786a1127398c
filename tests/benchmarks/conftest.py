"""Benchmarks are tested as they are run, with jax's defaults; their measurements are made small."""

from collections.abc import Iterator

import jax
import pytest

from benchmarks import measure, roofline


@pytest.fixture(autouse=True, scope="package")
def jax_defaults() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True, scope="package")
def quick_limits() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "SIZES", {"cpu": (64, 4096)})
        measure._best_limits.clear()
        yield
    measure._best_limits.clear()
