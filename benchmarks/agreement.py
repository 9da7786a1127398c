"""The check before timing: variants whose results differ from the reference are not timed."""

from collections.abc import Mapping

import numpy as np

from benchmarks.program import Results

TOLERANCE = 1e-3
"""Largest error in float32. Rounding alone causes 1e-7 to 1e-4; up to 7e-4 occurred in single
draws, for example if a value before a ReLU changes its sign."""

FACTOR = 2.0
"""In shorter dtypes the error against float32 may be this many times that of the reference."""


def errors(found: Results, wanted: Results) -> dict[str, float]:
    """The relative error of each array.

    ``|found - wanted| / max(|wanted|, largest / 1000)`` in root mean squares; `largest` is that of
    the largest wanted array, so that a gradient of pure rounding errors does not count.

    >>> errors({"a": np.array([1.0, 2.0])}, {"a": np.array([1.0, 1.0])})["a"].round(3).item()
    0.707

    Raises:
      ValueError: names or shapes differ.
    """
    if set(found) != set(wanted):
        raise ValueError(f"results must have the names {sorted(wanted)}, got {sorted(found)}")
    scales = {name: _size(array) for name, array in wanted.items()}
    least = max(scales.values()) / 1000
    result = {}
    for name, array in wanted.items():
        if found[name].shape != array.shape:
            raise ValueError(f"{name} must have shape {array.shape}, got {found[name].shape}")
        difference = _size(found[name].astype(np.float64) - array)
        result[name] = difference / max(scales[name], least, np.finfo(np.float64).tiny)
    return result


def worst(named: Mapping[str, float]) -> tuple[str, float]:
    """The name and value of the largest error; infinite for NaN."""
    finite = {name: error if np.isfinite(error) else np.inf for name, error in named.items()}
    name = max(finite, key=lambda key: finite[key])
    return name, float(finite[name])


def _size(array: np.ndarray) -> np.float64:
    return np.sqrt(np.mean(np.square(array.astype(np.float64))))
