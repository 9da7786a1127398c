"""Names and shapes of the arrays of the authors' module, in three naming schemes."""

import re
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

Dialect = Literal["sonnet", "tensorflow", "flax"]

_LEAVES = {
    "linear": (("w", "w", "kernel"), ("b", "b", "bias")),
    "norm": (("scale", "gamma", "scale"), ("offset", "beta", "bias")),
}
_AXES = {"I": "I", "F": "F", "P": "H*(2K+D)", "Q": "R*F", "G": "2*g"}
# How each dialect numbers blocks and layers, and how an error names them.
_BLOCK = {
    "sonnet": (r"block(\d+)/", "block0/..."),
    "flax": (r"memory/block_(\d+)/", "block_0/..."),
}
_LAYER = {
    "sonnet": (r"mlp/layer(\d+)/", "layer0/..."),
    "flax": (r"memory/mlp/layer_(\d+)/", "layer_0/..."),
    "tensorflow": (r"mlp/linear_(\d+)/", "mlp/linear_0/..."),
}
_GATES = {"sonnet": "gate_", "flax": "gates/"}
# Arrays by which a module of a TensorFlow checkpoint is found.
_MARK, _NORM = "mlp/linear_0/w", "layer_norm"
_PYTORCH = ("qkv_projector.weight", "attended_memory_layernorm.weight")


class Names(NamedTuple):
    """One array: its name in each dialect, and its axes (keys of `_AXES`)."""

    sonnet: str
    tensorflow: str
    flax: str
    axes: str

    def of(self, dialect: Dialect) -> str:
        """The name in a dialect."""
        return getattr(self, dialect)


def refuse_pytorch(names: Collection[str]) -> None:
    """Raises for the weights of a PyTorch port, which computes a different function."""
    found = [name for name in names if name.endswith(_PYTORCH)]
    if found:
        raise ValueError(
            f"array {found[0]!r} belongs to a PyTorch port of the module, which computes another "
            "function: its norms span all rows, its MLP repeats one layer and ends in a ReLU, its "
            "blocks share their weights, its gate biases are learned; its weights cannot be read"
        )


def in_scope(arrays: Mapping[str, np.ndarray], scope: str | None) -> dict[str, np.ndarray] | None:
    """The module's arrays of a TensorFlow checkpoint, by their names within its scope.

    >>> arrays = dict.fromkeys(["a/mlp/linear_0/w:0", "a/layer_norm/beta:0"], np.ones(1))
    >>> in_scope(arrays | {"a/mlp/linear_0/w/Adam": np.ones(1)}, None)
    {'mlp/linear_0/w': array([1.]), 'layer_norm/beta': array([1.])}

    Args:
      arrays: by name, with or without ``:0``.
      scope: the scope; None to find it.

    Returns:
      The arrays without optimiser slots; None if they are not from TensorFlow.

    Raises:
      ValueError: `scope` contains no module, there are several and no `scope` is given, or an
        array is given twice.
    """
    plain = {}
    for name, value in arrays.items():
        short = re.sub(r":\d+$", "", name)
        if short in plain:
            raise ValueError(f"arrays must hold {short} once, got {name!r} besides")
        plain[short] = value
    scopes = [
        name.removesuffix(_MARK).rstrip("/")
        for name in plain
        # A read-out may be an MLP, too, without norms.
        if re.search(rf"(^|/){_MARK}$", name)
        and any(other.startswith(f"{name.removesuffix(_MARK)}{_NORM}") for other in plain)
    ]
    if scope is not None and scope.rstrip("/") not in scopes:
        raise ValueError(
            f"scope must be one of {scopes or 'none (no TensorFlow names)'}, got {scope!r}"
        )
    if not scopes:
        return None
    if scope is None and len(scopes) > 1:
        named = ", ".join(map(repr, scopes))
        raise ValueError(f"arrays hold several modules, name one as scope: {named}")
    found = scopes[0] if scope is None else scope.rstrip("/")
    prefix = f"{found}/" if found else ""
    within = {name.removeprefix(prefix): x for name, x in plain.items() if name.startswith(prefix)}
    # Without a scope the module's arrays are mixed with all others.
    own = re.compile(r"(linear|layer_norm)(_\d+)?/|mlp/linear_\d+/")
    slot = re.compile(r".*/(w|b|gamma|beta)/.+")
    return {
        name: x for name, x in within.items() if not slot.match(name) and (found or own.match(name))
    }


def complete_table(present: list[str], dialect: Dialect) -> list[Names]:
    """All arrays of a module with the blocks, layers and gates of the given names.

    Args:
      present: the names found.
      dialect: their dialect.

    Raises:
      ValueError: the names are not exactly those of such a module.
    """
    num_layers = _count(present, *_LAYER[dialect])
    if dialect == "tensorflow":
        num_blocks, has_gates = _tensorflow_blocks(present)
    else:
        num_blocks = _count(present, *_BLOCK[dialect])
        has_gates = any(name.startswith(_GATES[dialect]) for name in present)
    table = _table(num_blocks, num_layers, has_gates)
    expected = [names.of(dialect) for names in table]
    if missing := [name for name in expected if name not in present]:
        needs_norm = dialect == "flax" and "qkv_norm" in missing[0]
        reason = " (Sonnet's module needs qkv_norm=True)" if needs_norm else ""
        found = ", ".join(sorted(present))
        raise ValueError(f"array {missing[0]!r} is missing{reason}; got {found}")
    if unknown := [name for name in present if name not in expected]:
        reason = ""
        if unknown[0] == "initial_memory":
            reason = " (Sonnet's module has no learned initial memory)"
        raise ValueError(f"array {unknown[0]!r} is unknown{reason}; expected {', '.join(expected)}")
    return table


def _table(num_blocks: int, num_layers: int, has_gates: bool) -> list[Names]:
    """The arrays of such a module."""
    modules = [("input_projection", "linear", "input_projection", "linear", "IF")]
    for k in range(num_blocks):
        sonnet, flax = f"block{k}", f"memory/block_{k}"
        norms = [f"layer_norm_{3 * k + i}" if 3 * k + i else "layer_norm" for i in range(3)]
        modules += [
            (f"{sonnet}/qkv", f"linear_{k + 1}", f"{flax}/attention/qkv", "linear", "FP"),
            (f"{sonnet}/qkv_norm", norms[0], f"{flax}/attention/qkv_norm", "norm", "P"),
            (f"{sonnet}/attention_norm", norms[1], f"{flax}/attention_norm", "norm", "F"),
            (f"{sonnet}/mlp_norm", norms[2], f"{flax}/mlp_norm", "norm", "F"),
        ]
    modules += [
        (f"mlp/layer{j}", f"mlp/linear_{j}", f"memory/mlp/layer_{j}", "linear", "FF")
        for j in range(num_layers)
    ]
    if has_gates:
        first, second = f"linear_{num_blocks + 1}", f"linear_{num_blocks + 2}"
        modules += [("gate_input", first, "gates/input", "linear", "QG")]
        modules += [("gate_memory", second, "gates/memory", "linear", "FG")]
    return [
        Names(f"{sonnet}/{s}", f"{tensorflow}/{t}", f"{flax}/{f}", axes if s == "w" else axes[-1])
        for sonnet, tensorflow, flax, kind, axes in modules
        for s, t, f in _LEAVES[kind]
    ]


def _tensorflow_blocks(present: list[str]) -> tuple[int, bool]:
    """The number of blocks, and whether there are gates; TensorFlow's names do not tell them."""

    def numbers(kind: str) -> list[int]:
        found = (re.match(rf"{kind}(?:_(\d+))?/", name) for name in present)
        return sorted({int(match[1] or 0) for match in found if match})

    norms, linears = numbers("layer_norm"), numbers("linear")
    if not norms or norms != list(range(len(norms))) or len(norms) % 3:
        raise ValueError(
            "arrays 'layer_norm/...', 'layer_norm_1/...' must be numbered without gaps, three for "
            f"each block, got {norms}"
        )
    num_blocks = len(norms) // 3
    return num_blocks, len(linears) > num_blocks + 1


def _count(present: list[str], pattern: str, first: str) -> int:
    """The number of blocks or layers; raises unless they are numbered 0, 1, 2, ..."""
    found = {match[1] for name in present if (match := re.match(pattern, name))}
    numbers = sorted(map(int, found))
    if not numbers:
        names = ", ".join(sorted(present)) or "none"
        raise ValueError(f"there must be arrays {first!r}, got {names}")
    if numbers != list(range(len(found))):
        raise ValueError(f"arrays {first!r} must be numbered from 0 without gaps, got {numbers}")
    return len(numbers)


def check_arrays(arrays: Mapping[str, np.ndarray], axes: Mapping[str, str]) -> None:
    """Raises unless all arrays are floating-point and their shapes are consistent."""
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
    """Raises unless the gates have the widths of a module of width F = `features`."""
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
