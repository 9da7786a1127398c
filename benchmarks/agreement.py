"""The gate before timing: a variant that computes something else is not timed."""

from collections.abc import Mapping

import numpy as np

from benchmarks.program import Results

TOLERANCE = 1e-3
"""Largest error in float32. Rounding alone makes 1e-7 to 1e-4 of it; up to 7e-4 was seen, in single
draws, as when a number before a ReLU comes to have the other sign."""

FACTOR = 2.0
"""In shorter dtypes a variant may be this many times as far from float32 as the reference is."""


def errors(found: Results, wanted: Results) -> dict[str, float]:
    """How far each array is from the wanted one, as a share of the wanted one's size.

    ``|found - wanted| / max(|wanted|, largest / 1000)`` in root mean squares; `largest` is that of
    the largest wanted array: a gradient that is nothing but rounding is not compared with itself.

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
    """The name with the largest error, and that error; infinite for NaN."""
    finite = {name: error if np.isfinite(error) else np.inf for name, error in named.items()}
    name = max(finite, key=lambda key: finite[key])
    return name, float(finite[name])


def _size(array: np.ndarray) -> np.float64:
    return np.sqrt(np.mean(np.square(array.astype(np.float64))))
