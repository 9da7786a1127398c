"""Arrays by name, from a mapping or a file, for weights of other frameworks."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

GROUP = "params/"
"""An optional prefix of the names of weights."""


def by_name(arrays: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """Copies of the arrays, by their names without `GROUP`.

    >>> by_name({"params/w": [1.0]})
    {'w': array([1.])}

    Args:
      arrays: named with or without `GROUP`.

    Returns:
      NumPy arrays by name. Two bytes of no known dtype are bfloat16, as `numpy.savez` stores it.

    Raises:
      ValueError: an array is given twice, with and without `GROUP`.
      TypeError: `arrays` is not a mapping from strings, or contains bytes of another dtype that
        NumPy lost.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(
            f"arrays must be a mapping from names to arrays, got {type(arrays).__name__}"
        )
    named: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays must have strings as names, got {name!r}")
        short = name.removeprefix(GROUP)
        if short in named:
            raise ValueError(f"array {short!r} is given twice, with and without {GROUP!r}")
        named[short] = _known_dtype(short, np.array(value))
    return named


def _known_dtype(name: str, array: np.ndarray) -> np.ndarray:
    """Restores bfloat16, which NumPy's files store as two bytes."""
    if array.dtype.kind != "V" or array.dtype.names is not None:
        return array
    if array.dtype.itemsize != 2:
        raise TypeError(
            f"array {name!r} must be floating-point, got {array.dtype}: bytes of a dtype that "
            "NumPy does not know; view it as its own before"
        )
    return array.view(jnp.bfloat16)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``.

    Args:
      path: a file written by `numpy.savez`. If it has a group ``params/``, everything else is
        ignored.

    Returns:
      Arrays by name.

    Raises:
      ValueError: not an ``.npz``.
    """
    with Path(path).open("rb") as file:
        try:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with loaded:
                names = list(loaded.files)
                grouped = [name for name in names if name.startswith(GROUP)]
                return {name: loaded[name] for name in grouped or names}
        except (EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            what = f"path must name an .npz of named arrays, got {path!r}: {error}"
            raise ValueError(what) from None
