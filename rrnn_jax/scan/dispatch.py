"""Which implementation runs a sequence, and how: decided here and nowhere else."""

import jax
from flax import linen as nn

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.plan import Plan

REMATS = ("none", "full", "save_products", "chunked")
IMPLEMENTATIONS = ("auto", "scan", "hoisted")

# A weight gradient of fewer rows than this is bound by reading and writing the accumulator.
ROWS_PER_PRODUCT = 512


def resolve_implementation(
    implementation: str, cell: nn.RNNCellBase, batch_size: int, steps: int
) -> str:
    """The implementation that runs `cell`.

    Args:
      implementation: what the user asked for.
      cell: the cell to run.
      batch_size: B, the product of all batch axes.
      steps: T.

    Returns:
      ``"scan"`` or ``"hoisted"``.

    Raises:
      ValueError: ``"hoisted"`` for a cell that is not a plain `RelationalMemoryCell`.
    """
    # A subclass, or a class made by a Flax transform, may compute something else.
    fits = type(cell) is RelationalMemoryCell
    if implementation == "auto":
        # Of a single step there is nothing to hoist.
        pays = fits and steps > 1 and batch_size * cell.mem_slots >= _least_rows()
        return "hoisted" if pays else "scan"
    if implementation == "hoisted" and not fits:
        raise ValueError(
            "implementation='hoisted' runs a RelationalMemoryCell only, got "
            f"{type(cell).__name__}; use implementation='scan' (or 'auto')"
        )
    return implementation


def _least_rows() -> int:
    """Memory rows B*S from which on the hoisted scan is not the slower one.

    Measured forward on a CPU (`benchmarks/results/cpu_sweep.jsonl`): 0.87 times as fast as the
    plain scan with 4 rows of 256 numbers, 1.05 times with 8.
    """
    return 8 if jax.default_backend() == "cpu" else 1


def hoisted_plan(cell: RelationalMemoryCell, unroll: int) -> Plan:
    """How the hoisted scan runs on the default backend, with so many steps per iteration."""
    on_cpu = jax.default_backend() == "cpu"
    return Plan(
        cell=cell.clone(parent=None),
        dtype=None,
        time_axis=1,
        save=True,
        rows_per_product=ROWS_PER_PRODUCT,
        prefetch=("ahead", "apart") if on_cpu else (None, None),
        transpose=on_cpu,
        unroll=unroll,
    )
