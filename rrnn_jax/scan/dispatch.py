"""Which implementation runs a sequence, and how: decided here and nowhere else."""

import jax
from flax import linen as nn

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.plan import Plan

REMATS = ("none", "full", "save_products", "chunked")
IMPLEMENTATIONS = ("auto", "scan", "hoisted")

# A weight gradient of fewer rows than this is bound by reading and writing the accumulator.
ROWS_PER_PRODUCT = 512


def resolve_implementation(implementation: str, cell: nn.RNNCellBase) -> str:
    """The implementation that runs `cell`.

    Args:
      implementation: what the user asked for.
      cell: the cell to run.

    Returns:
      ``"scan"`` or ``"hoisted"``.

    Raises:
      ValueError: ``"hoisted"`` for a cell that is not a plain `RelationalMemoryCell`.
    """
    # A subclass, or a class made by a Flax transform, may compute something else.
    fits = type(cell) is RelationalMemoryCell
    if implementation == "auto":
        return "hoisted" if fits else "scan"
    if implementation == "hoisted" and not fits:
        raise ValueError(
            "implementation='hoisted' runs a RelationalMemoryCell only, got "
            f"{type(cell).__name__}; use implementation='scan' (or 'auto')"
        )
    return implementation


def hoisted_plan(cell: RelationalMemoryCell) -> Plan:
    """How the hoisted scan runs on the default backend."""
    on_cpu = jax.default_backend() == "cpu"
    return Plan(
        cell=cell.clone(parent=None),
        dtype=None,
        time_axis=1,
        save=True,
        rows_per_product=ROWS_PER_PRODUCT,
        prefetch=("ahead", "apart") if on_cpu else (None, None),
        transpose=on_cpu,
    )
