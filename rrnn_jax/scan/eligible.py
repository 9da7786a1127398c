"""Which cells the fast paths can run: the relational memory with any initial memory."""

import numpy as np
from flax import linen as nn

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import GateStyle

# What a subclass may override: the layer, not the step, uses the initial memory.
_ITS_OWN = frozenset({"initialize_carry", "setup", "from_features"})


def why_not_cell(cell: nn.RNNCellBase) -> str | None:
    """Why only the plain scan can run `cell`; None if the fast paths can, too.

    >>> from flax import linen as nn
    >>> from rrnn_jax import RelationalMemoryCell
    >>> why_not_cell(RelationalMemoryCell()), why_not_cell(nn.GRUCell(4))
    (None, 'runs a RelationalMemoryCell only, got GRUCell')
    """
    name = type(cell).__name__
    if not isinstance(cell, RelationalMemoryCell):
        return f"runs a RelationalMemoryCell only, got {name}"
    if changed := _redefined(type(cell)):
        return (
            f"runs a RelationalMemoryCell only, got {name}, which overrides {', '.join(changed)} "
            f"(a subclass may override only {', '.join(sorted(_ITS_OWN))})"
        )
    if cell.dot_general is not None:
        return "computes products by jax.lax.dot_general, got another dot_general"
    for bias in ("forget_bias", "input_bias"):  # Compiled into the fast paths.
        value = getattr(cell, bias)
        if not isinstance(value, int | float | np.number):
            return f"needs a Python or NumPy number for {bias}, got an array of {value.dtype}"
    return None


def why_not_step(cell: RelationalMemoryCell, known: tuple[GateStyle | None, ...]) -> str | None:
    """Why kernels of one kind of step, with the `known` gate styles, cannot run `cell`; else None.

    >>> from rrnn_jax import RelationalMemoryCell
    >>> why_not_step(RelationalMemoryCell(gate_style=None), ("unit", "memory"))
    "needs gate_style 'unit' or 'memory', got None"
    """
    wanted = {
        "num_blocks": (cell.num_blocks, 1),
        "qkv_norm": (cell.qkv_norm, True),
        "output_gate": (cell.output_gate, False),
        "key_size": (cell.key_size or cell.head_size, cell.head_size),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            return f"needs {name}={needed!r}, got {found!r}"
    if cell.gate_style in known:
        return None
    return f"needs gate_style {' or '.join(map(repr, known))}, got {cell.gate_style!r}"


def _redefined(cls: type) -> list[str]:
    """The methods that a subclass, or a class made by a Flax transform, overrides."""
    ancestors = cls.__mro__[: cls.__mro__.index(RelationalMemoryCell)]
    known = set(dir(RelationalMemoryCell)) - set(RelationalMemoryCell.__dataclass_fields__)
    own = {name for ancestor in ancestors for name in vars(ancestor) if name in known}
    public = {name for name in own if not name.startswith("_") or name == "__call__"}
    private = {name for name in own if name in ("_gate", "__post_init__", "__getattr__")}
    return sorted((public | private) - _ITS_OWN - {"scope"})
