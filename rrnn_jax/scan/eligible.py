"""Which cells the fast paths compute: the relational memory as it is, whatever it starts from."""

from flax import linen as nn

from rrnn_jax.cell import RelationalMemoryCell

# What a subclass may define anew: where sequences start is the layer's affair, not the step's.
_ITS_OWN = frozenset({"initialize_carry", "setup", "from_features"})


def why_plain(cell: nn.RNNCellBase) -> str | None:
    """Why only the plain scan computes what `cell` does; None if the fast paths do, too.

    >>> from flax import linen as nn
    >>> from rrnn_jax import RelationalMemoryCell
    >>> why_plain(RelationalMemoryCell()), why_plain(nn.GRUCell(4))
    (None, 'runs a RelationalMemoryCell only, got GRUCell')
    """
    name = type(cell).__name__
    if not isinstance(cell, RelationalMemoryCell):
        return f"runs a RelationalMemoryCell only, got {name}"
    if changed := _redefined(type(cell)):
        return (
            f"runs a RelationalMemoryCell only, got {name}, which defines {', '.join(changed)} "
            "anew (only initialize_carry may be another)"
        )
    if cell.dot_general is not None:
        return "computes products by jax.lax.dot_general, got another dot_general"
    return None


def _redefined(cls: type) -> list[str]:
    """What a subclass, or a class made by a Flax transform, computes in its own way."""
    ancestors = cls.__mro__[: cls.__mro__.index(RelationalMemoryCell)]
    known = set(dir(RelationalMemoryCell)) - set(RelationalMemoryCell.__dataclass_fields__)
    own = {name for ancestor in ancestors for name in vars(ancestor) if name in known}
    public = {name for name in own if not name.startswith("_") or name == "__call__"}
    private = {name for name in own if name in ("_gate", "__post_init__", "__getattr__")}
    return sorted((public | private) - _ITS_OWN - {"scope"})
