"""Strict flags for every test: no silent promotion, no silent broadcasting, exact products."""

import gc
from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def standard_promotion():
    """For third-party cells that strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True, scope="module")
def release_programs() -> Iterator[None]:
    """Frees the compiled programs of a file: later garbage collections would walk through them."""
    yield
    jax.clear_caches()
    gc.collect()
