"""From a sequence as `RNN` sees it to the hoisted scan and back: batch axes, lengths, remat."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.chunked import chunked_scan
from rrnn_jax.scan.hoisted import hoisted_scan
from rrnn_jax.scan.plan import Arguments, Plan, Timewise
from rrnn_jax.scan.sequence import SequenceInputs, SequenceOutputs, select
from rrnn_jax.typing import Array, Carry, Remat


def relational_scan(
    cell: RelationalMemoryCell,
    params: Mapping[str, Any],
    sequence: SequenceInputs,
    carry: Carry,
    reset_carry: Carry | None,
    *,
    time_axis: int,
    plan: Plan,
    remat: Remat,
    all_carries: bool,
) -> SequenceOutputs:
    """Runs a relational memory over a sequence on the hoisted path.

    Args:
      cell: the cell, for its configuration.
      params: its parameters.
      sequence: inputs, and optionally resets, mask and valid steps.
      carry: the carry before the first step.
      reset_carry: what a reset puts in its place.
      time_axis: the time axis of the sequence.
      plan: how to run it; `time_axis` and `save` are filled in here.
      remat: ``"none"`` and ``"save_products"`` keep what the backward pass wants of every step,
        ``"full"`` the memories only, ``"chunked"`` one memory every sqrt(T) steps.
      all_carries: whether to return the carry after every step.

    Returns:
      `SequenceOutputs`.
    """
    inputs, resets, mask, valid = sequence
    batch = inputs.shape[1 : inputs.ndim - cell.num_feature_axes]
    if time_axis > 0:
        batch = inputs.shape[:time_axis]
    size = math.prod(batch)
    steps = inputs.shape[time_axis]
    rows = inputs.shape[-2:] if cell.matrix_inputs else (1, inputs.shape[-1])
    axis = 0 if time_axis == 0 and len(batch) > 0 else 1
    lead = (steps, size) if axis == 0 else (size, steps)

    def merge(flags: Array | None) -> Array | None:
        return None if flags is None else flags.reshape(lead)

    def merge_carry(carry: Carry) -> Carry:
        return jax.tree.map(lambda m: m.reshape(size, *m.shape[-2:]), carry)

    plan = plan._replace(time_axis=axis, save=remat in ("none", "save_products"))
    run = chunked_scan if remat == "chunked" else hoisted_scan
    final, carries = run(
        plan,
        Arguments(
            params,
            merge_carry(carry),
            None if reset_carry is None else merge_carry(reset_carry),
        ),
        Timewise(inputs.reshape(*lead, *rows), merge(resets), merge(mask)),
    )
    if valid is not None:
        final = _last_valid(carries, valid.reshape(lead), merge_carry(carry), axis)

    time_shape = (steps, *batch) if time_axis == 0 else (*batch, steps)
    final = jax.tree.map(lambda m: m.reshape(*batch, *m.shape[-2:]), final)
    carries = jax.tree.map(lambda m: m.reshape(*time_shape, *m.shape[-2:]), carries)
    outputs = cell.output_from_carry(carries)
    return SequenceOutputs(final, outputs, carries if all_carries else None)


def _last_valid(carries: Carry, valid: Array, first: Carry, axis: int) -> Carry:
    """The carry of each sequence's last valid step; the first carry where there is none."""
    length = jnp.sum(valid, axis=axis, dtype=jnp.int32)
    index = jnp.expand_dims(jnp.maximum(length - 1, 0), axis)[..., None, None]
    last = jax.tree.map(
        lambda m: jnp.squeeze(jnp.take_along_axis(m, index, axis=axis), axis), carries
    )
    return select(length > 0, last, first)
