"""Experiments are tested as they are run, with jax's defaults."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def jax_defaults() -> Iterator[None]:
    """Optax promotes dtypes on its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
