"""Weights from the authors' module of the Differentiable Neural Computer (Graves et al. 2016).

The module's arrays have these names, with or without a leading ``params/``; linear layers
compute ``x @ w + b``. Letters are those of `rrnn_jax.baselines.dnc_addressing`, with C, I and O the
widths of controller, input and output:

==================================  ============================================================
array                               shape
==================================  ============================================================
``controller/{w,b}``                ``[I + R*W + C, 4*C]``, ``[4*C]``: one LSTM layer on input,
                                    read words and hidden state; gates in the order input,
                                    candidate, forget (+1 within the cell), output
``interface/{part}/{w,b}``          ``[C, n]``, ``[n]`` for each part of the interface
``output/{w,b}``                    ``[C + R*W, O]``, ``[O]``, on controller output and read words
==================================  ============================================================

with n = P*W for ``write_vectors``, ``erase_vectors`` and ``write_keys``, R*W for ``read_keys``, R
for ``free_gate`` and ``read_strengths``, P for ``allocation_gate``, ``write_gate`` and
``write_strengths``, R*(2*P + 1) for ``read_mode``.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from rrnn_jax.baselines.dnc_memory import Interface, interface_shapes
from rrnn_jax.interop.arrays import by_name, read

_PARTS = {name: f"interface/{name}" for name in Interface._fields}
_MODULES = ("controller", *_PARTS.values(), "output")


def dnc_from_reference(arrays: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Parameters of a `DNCCell` from the arrays of the authors' module.

    The cell must have the module's sizes and `clip_value`, one LSTM layer, and the default
    `forget_bias`, which the weights do not contain.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax.baselines import DNCCell
    >>> from rrnn_jax.baselines.dnc_memory import interface_shapes
    >>> shapes = {"controller": (3 + 8 + 6, 24), "output": (6 + 8, 5)}
    >>> for name, shape in interface_shapes(word_size=4, num_reads=2, num_writes=1).items():
    ...     shapes[f"interface/{name}"] = (6, int(np.prod(shape)))
    >>> arrays = {f"{name}/w": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    >>> arrays |= {f"{name}/b": np.zeros(shape[1], np.float32) for name, shape in shapes.items()}
    >>> params = dnc_from_reference(arrays)
    >>> cell = DNCCell(
    ...     memory_size=8, word_size=4, num_reads=2, num_writes=1, controller_size=6, output_size=5
    ... )
    >>> carry = cell.initialize_carry(None, (1, 3))
    >>> jax.jit(cell.apply)({"params": params}, carry, jnp.ones((1, 3)))[1].shape
    (1, 5)

    The same from a file:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/dnc.npz", **arrays)
    ...     sorted(load_dnc_reference(f"{folder}/dnc.npz"))
    ['controller_0', 'interface', 'output']

    Within an `RNN` the parameters belong to its cell: ``{"params": {"cell": params}}``.

    Args:
      arrays: named as in the table at the head of this module.

    Returns:
      Nested dictionaries of NumPy arrays (copies), with unchanged values and dtypes; the parts of
      the interface are concatenated into one dense layer.

    Raises:
      ValueError: an array is missing, unknown, given twice or of the wrong shape.
      TypeError: `arrays` is not a mapping, or an array is not floating-point.
    """
    named = by_name(arrays)
    _check_names(named)
    _check_shapes(named)

    def dense(*modules: str) -> dict[str, np.ndarray]:
        return {
            leaf: np.concatenate([named[f"{module}/{letter}"] for module in modules], axis=-1)
            for letter, leaf in (("w", "kernel"), ("b", "bias"))
        }

    return {
        "controller_0": dense("controller"),
        "interface": dense(*_PARTS.values()),
        "output": dense("output"),
    }


def load_dnc_reference(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parameters of a `DNCCell` from an ``.npz`` of the authors' arrays.

    The arrays of a module are written by ``np.savez("dnc.npz", **arrays)``, see the example of
    `dnc_from_reference`.

    Args:
      path: a file written by `numpy.savez`. If it has a group ``params/``, everything else is
        ignored.

    Returns:
      The same as `dnc_from_reference`.

    Raises:
      ValueError: not an ``.npz``, and as `dnc_from_reference`.
      TypeError: as `dnc_from_reference`.
    """
    return dnc_from_reference(read(path))


def _check_names(named: Mapping[str, np.ndarray]) -> None:
    """Raises unless these are the module's arrays, with as many axes as they must have."""
    expected = [f"{module}/{letter}" for module in _MODULES for letter in "wb"]
    if missing := [name for name in expected if name not in named]:
        raise ValueError(f"array {missing[0]!r} is missing; got {', '.join(sorted(named))}")
    if unknown := [name for name in named if name not in expected]:
        raise ValueError(f"array {unknown[0]!r} is unknown; expected {', '.join(expected)}")
    for name, array in named.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"array {name!r} must be floating-point, got {array.dtype}")
        axes = 2 if name.endswith("/w") else 1
        if array.ndim != axes or array.size == 0:
            raise ValueError(f"array {name!r} must have {axes} axes, got shape {array.shape}")


def _check_shapes(named: Mapping[str, np.ndarray]) -> None:
    """Raises unless the shapes are consistent."""
    hidden = named["controller/b"].shape[0] // 4
    reads = named["interface/free_gate/b"].shape[0]
    writes = named["interface/allocation_gate/b"].shape[0]
    words = named["interface/write_vectors/b"].shape[0] // writes
    sizes = f"W={words}, R={reads}, P={writes}, C={hidden}"

    def check(name: str, shape: tuple[int, ...]) -> None:
        if named[name].shape != shape:
            raise ValueError(
                f"array {name!r} must have shape {shape} ({sizes}), got {named[name].shape}"
            )

    for part, shape in interface_shapes(words, reads, writes).items():
        check(f"{_PARTS[part]}/w", (hidden, math.prod(shape)))
        check(f"{_PARTS[part]}/b", (math.prod(shape),))
    rows = named["controller/w"].shape[0]
    if rows <= reads * words + hidden:
        raise ValueError(
            f"array 'controller/w' must have I + R*W + C > {reads * words + hidden} rows "
            f"({sizes}), got {rows}"
        )
    check("controller/w", (rows, 4 * hidden))
    check("controller/b", (4 * hidden,))
    outputs = named["output/b"].shape[0]
    check("output/w", (hidden + reads * words, outputs))
