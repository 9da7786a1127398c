"""Weights from and to the authors' module (Sonnet v1 `RelationalMemory`).

Sonnet's arrays go by these names, each with or without a leading ``params/``; linear layers compute
``x @ w + b``:

======================================  ====================================================
array                                   shape
======================================  ====================================================
``input_projection/{w,b}``              ``[I, F]``, ``[F]``
``block{k}/qkv/{w,b}``                  ``[F, H*(2K+D)]``, ``[H*(2K+D)]``
``block{k}/qkv_norm/{scale,offset}``    ``[H*(2K+D)]``
``block{k}/attention_norm/...``         ``scale`` and ``offset``, ``[F]``
``block{k}/mlp_norm/...``               the same
``mlp/layer{j}/{w,b}``                  ``[F, F]``, ``[F]``
``gate_input/{w,b}``                    ``[R*F, 2*g]``, ``[2*g]``; g = F ('unit') or 1 ('memory')
``gate_memory/{w,b}``                   ``[F, 2*g]``, ``[2*g]``; no gate arrays without gates
======================================  ====================================================

`dnc_from_reference` and `load_dnc_reference` do the same for the Differentiable Neural Computer,
see `rrnn_jax.interop_dnc`.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from numpy.typing import ArrayLike

from rrnn_jax import interop_arrays
from rrnn_jax.interop_dnc import dnc_from_reference as dnc_from_reference
from rrnn_jax.interop_dnc import load_dnc_reference as load_dnc_reference

_LINEAR = (("w", "kernel"), ("b", "bias"))
_NORM = (("scale", "scale"), ("offset", "bias"))
_AXES = {"I": "I", "F": "F", "P": "H*(2K+D)", "Q": "R*F", "G": "2*g"}


class _Names(NamedTuple):
    """One array: its name in Sonnet, its path in Flax, and its axes (keys of `_AXES`)."""

    sonnet: str
    flax: str
    axes: str


def from_sonnet(arrays: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Parameters of a `RelationalMemoryCell` from the arrays of Sonnet's module.

    The cell must have the module's sizes, `gate_style` and biases: they are not among the weights.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RelationalMemoryCell
    >>> cell = RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2, gate_style=None)
    >>> carry = cell.initialize_carry(jax.random.key(0), (1, 3))
    >>> arrays = to_sonnet(cell.init(jax.random.key(0), carry, jnp.ones((1, 3))))
    >>> params = from_sonnet(arrays)
    >>> cell.apply({"params": params}, carry, jnp.ones((1, 3)))[1].shape
    (1, 64)

    Within an `RNN` the parameters belong to its cell: ``{"params": {"cell": params}}``.

    Args:
      arrays: named as in the table at the head of this module.

    Returns:
      Nested dictionaries of NumPy arrays, values and dtypes as they came (copies).

    Raises:
      ValueError: an array is missing, unknown, given twice or of the wrong shape; numbers of
        blocks or layers with a gap.
      TypeError: `arrays` is not a mapping, or an array is not floating-point.
    """
    named = interop_arrays.by_name(arrays)
    table = _table(list(named), "sonnet", r"block(\d+)/", r"mlp/layer(\d+)/", "gate_")
    _check(named, {names.sonnet: names.axes for names in table})
    paths = {tuple(names.flax.split("/")): named[names.sonnet] for names in table}
    return unflatten_dict(paths)


def to_sonnet(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of Sonnet's module from the parameters of a `RelationalMemoryCell`.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, RelationalMemoryCell
    >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2))
    >>> arrays = to_sonnet(rnn.init(jax.random.key(0), jnp.ones((1, 6, 3))))
    >>> arrays["block0/qkv/w"].shape
    (16, 48)

    Args:
      params: the cell's parameters; they may be wrapped in ``{"params": ...}`` as `init` returns
        them, and in ``{"cell": ...}`` as in an `RNN`.

    Returns:
      Arrays named as in the table at the head of this module, without ``params/``; values and
      dtypes as they came (copies).

    Raises:
      ValueError: a parameter is missing, unknown or of the wrong shape, or there is an output gate,
        which Sonnet's module does not have.
      TypeError: `params` is not a mapping, or a parameter is not floating-point.
    """
    while isinstance(params, Mapping) and set(params) in ({"params"}, {"cell"}):
        params = next(iter(params.values()))
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a mapping, got {type(params).__name__}")
    named = _flatten(params)
    table = _table(
        list(named), "flax", r"memory/block_(\d+)/", r"memory/mlp/layer_(\d+)/", "gates/"
    )
    _check(named, {names.flax: names.axes for names in table})
    return {names.sonnet: named[names.flax] for names in table}


def load_sonnet(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Parameters of a `RelationalMemoryCell` from an ``.npz`` of Sonnet arrays.

    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, RelationalMemoryCell
    >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2))
    >>> variables = rnn.init(jax.random.key(0), jnp.ones((1, 6, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "core.npz")
    ...     np.savez(path, **to_sonnet(variables))
    ...     params = load_sonnet(path)
    >>> sorted(params)
    ['gates', 'input_projection', 'memory']

    Args:
      path: a file as `numpy.savez` writes it. Where it has a group ``params/``, everything else in
        it is passed over.

    Returns:
      The same as `from_sonnet`.

    Raises:
      ValueError: not an ``.npz``; what `from_sonnet` raises.
      TypeError: what `from_sonnet` raises.
    """
    return from_sonnet(interop_arrays.read(path))


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays by their path."""
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = np.array(value)
    return flat


def _table(present: list[str], dialect: str, block: str, layer: str, gates: str) -> list[_Names]:
    """All arrays of a module with as many blocks and layers, and gates or not, as are present.

    Raises unless these very names are present.
    """
    num_blocks = _count(present, block, "block{}/..." if dialect == "sonnet" else "block_{}/...")
    num_layers = _count(present, layer, "layer{}/..." if dialect == "sonnet" else "layer_{}/...")
    modules = [("input_projection", "input_projection", _LINEAR, "IF")]
    for k in range(num_blocks):
        sonnet, flax = f"block{k}", f"memory/block_{k}"
        modules += [
            (f"{sonnet}/qkv", f"{flax}/attention/qkv", _LINEAR, "FP"),
            (f"{sonnet}/qkv_norm", f"{flax}/attention/qkv_norm", _NORM, "P"),
            (f"{sonnet}/attention_norm", f"{flax}/attention_norm", _NORM, "F"),
            (f"{sonnet}/mlp_norm", f"{flax}/mlp_norm", _NORM, "F"),
        ]
    modules += [
        (f"mlp/layer{j}", f"memory/mlp/layer_{j}", _LINEAR, "FF") for j in range(num_layers)
    ]
    if any(name.startswith(gates) for name in present):
        modules += [("gate_input", "gates/input", _LINEAR, "QG")]
        modules += [("gate_memory", "gates/memory", _LINEAR, "FG")]
    table = [
        _Names(f"{sonnet}/{leaf}", f"{flax}/{flax_leaf}", axes if leaf == "w" else axes[-1])
        for sonnet, flax, leaves, axes in modules
        for leaf, flax_leaf in leaves
    ]
    expected = [getattr(names, dialect) for names in table]
    if missing := [name for name in expected if name not in present]:
        raise ValueError(f"array {missing[0]!r} is missing; got {', '.join(sorted(present))}")
    if unknown := [name for name in present if name not in expected]:
        raise ValueError(f"array {unknown[0]!r} is unknown; expected {', '.join(expected)}")
    return table


def _count(present: list[str], pattern: str, form: str) -> int:
    """How many blocks or layers there are; raises unless they are numbered 0, 1, 2, ..."""
    found = {match[1] for name in present if (match := re.match(pattern, name))}
    numbers = sorted(map(int, found))
    first = form.format(0)
    if not numbers:
        raise ValueError(f"there must be arrays {first!r}, got none")
    if numbers != list(range(len(found))):
        raise ValueError(f"arrays {first!r} must be numbered from 0 without gaps, got {numbers}")
    return len(numbers)


def _check(arrays: dict[str, np.ndarray], axes: dict[str, str]) -> None:
    """Raises unless all arrays are floating-point and their shapes fit each other."""
    widths: dict[str, tuple[int, str]] = {}
    for name, letters in axes.items():
        array = arrays[name]
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"array {name!r} must be floating-point, got {array.dtype}")
        layout = f"[{', '.join(_AXES[letter] for letter in letters)}]"
        if array.ndim != len(letters) or array.size == 0:
            raise ValueError(f"array {name!r} must have shape {layout}, got {array.shape}")
        for letter, size in zip(letters, array.shape, strict=True):
            width, origin = widths.setdefault(letter, (size, name))
            if size != width:
                raise ValueError(
                    f"array {name!r} must have shape {layout} with {_AXES[letter]} = {width} as in "
                    f"{origin!r}, got {array.shape}"
                )
    features, (packed, qkv) = widths["F"][0], widths["P"]
    if packed <= features or (packed - features) % 2:
        raise ValueError(
            f"array {qkv!r} must be H*(2K+D) wide, which exceeds F = H*D = {features} by an even "
            f"number, got {packed}"
        )
    if "Q" in widths:
        _check_gates(features, widths["Q"], widths["G"])


def _check_gates(features: int, inputs: tuple[int, str], gates: tuple[int, str]) -> None:
    """Raises unless the gates are as wide as a module of width F = `features` has them."""
    if inputs[0] % features or inputs[0] == 0:
        raise ValueError(
            f"array {inputs[1]!r} must have R*F rows, a multiple of F = {features}, got {inputs[0]}"
        )
    if gates[0] in (3, 3 * features):
        raise ValueError(
            f"array {gates[1]!r} must be 2*F = {2 * features} or 2 wide, got {gates[0]}: three "
            "gates, but Sonnet's module has no output gate"
        )
    if gates[0] not in (2, 2 * features):
        raise ValueError(
            f"array {gates[1]!r} must be 2*F = {2 * features} ('unit') or 2 ('memory') wide, "
            f"got {gates[0]}"
        )
