"""Experiments are tested with jax's defaults for users, in processes that share a cache."""

import os
from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache as cache


@pytest.fixture(autouse=True, scope="package")
def jax_defaults() -> Iterator[None]:
    """Optax promotes dtypes on its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True, scope="package")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiles once what several processes run, and quickly: these tests mostly compile."""
    base = tmp_path_factory.getbasetemp()
    # Workers have directories of their own, side by side.
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    options = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_disable_most_optimizations": True,  # Compiles in half of the time.
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))
            before = getattr(jax.config, name, False)  # The last one is no attribute.
            jax.config.update(name, value)
            options[name] = before
        cache.reset_cache()  # What has been compiled before now has settled that there is none.
        yield
    for name, value in options.items():
        jax.config.update(name, value)
    cache.reset_cache()
