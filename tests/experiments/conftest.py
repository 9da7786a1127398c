"""Experiments are tested as they are run, with jax's defaults; their figures are saved quickly."""

from collections.abc import Iterator
from typing import Any

import jax
import pytest
from matplotlib.figure import Figure


@pytest.fixture(autouse=True, scope="package")
def jax_defaults() -> Iterator[None]:
    """Optax promotes dtypes on its own."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(autouse=True, scope="package")
def quick_figures() -> Iterator[None]:
    """In few pixels and without a layout, which `tests/visualize` checks."""
    save = Figure.savefig

    def save_quickly(figure: Figure, *args: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        if "format" not in options:  # Else of an animation, whose frames have one size.
            options |= {"dpi": 40}
        save(figure, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_quickly)
        yield
