"""Selects the implementation that runs a sequence.

Every implementation but the plain scan is a `Backend`, one of the modules of `RELATIONAL`. They are
imported when needed: they would be a third of the import time of the package. ``"auto"`` selects
the first of them that can run a request (`why_not`) and is faster (`why_slow`), else the plain
scan. A name selects that backend, or raises with the reason why it cannot run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, get_args

import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import in_filter
from flax.linen import module as linen_module

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.eligible import why_not_cell
from rrnn_jax.scan.plain import Lifting, plain_scan
from rrnn_jax.scan.sequence import SequenceInputs, SequenceOutputs, without_unused
from rrnn_jax.typing import Array, Carry, Implementation, Remat

REMATS = get_args(Remat)
IMPLEMENTATIONS = get_args(Implementation)
# The backends of a `RelationalMemoryCell`, in the order in which ``"auto"`` tries them.
RELATIONAL = ("rrnn_jax.scan.cuda", "rrnn_jax.scan.pallas", "rrnn_jax.scan.relational")


class Request(NamedTuple):
    """A sequence to run, with the settings that the choice depends on.

    Attributes:
      cell: the cell.
      sequence: inputs and flags.
      carry: the carry before the first step.
      fresh: the carry after a reset, or None.
      time_axis: the time axis of the sequence.
      lifting: the arguments of `flax.linen.scan`.
      remat: what the backward pass recomputes, see `rrnn_jax.RNN`.
      all_carries: whether to return the carries after every step.
      capture: whether to return what the cell sows.
      kept: for a cell with dropout the units that each step keeps, ``[T, *B, S, F]`` bool; drawn
        after the choice.
    """

    cell: nn.RNNCellBase
    sequence: SequenceInputs
    carry: Carry
    fresh: Carry | None
    time_axis: int
    lifting: Lifting
    remat: Remat = "none"
    all_carries: bool = False
    capture: bool = False
    kept: Array | None = None

    @property
    def steps(self) -> Any:
        """T; a symbolic expression if `jax.export` does not know it."""
        return self.sequence.inputs.shape[self.time_axis]

    @property
    def batch(self) -> tuple[Any, ...]:
        """The batch axes."""
        shape = list(self.sequence.inputs.shape[: -self.cell.num_feature_axes])
        del shape[self.time_axis]
        return tuple(shape)


class Backend(Protocol):
    """An implementation: a module with these functions."""

    NAME: str

    def why_not(self, request: Request) -> str | None:
        """Why it cannot run the request, to follow its name in a sentence; None if it can."""
        ...

    def why_slow(self, request: Request) -> str | None:
        """Why ``"auto"`` would not select it though it can run the request; None if it would."""
        ...

    def run(
        self, request: Request, variables: Mapping[str, Any]
    ) -> tuple[SequenceOutputs, dict[str, Any]]:
        """Returns outputs, and what the cell sows at every step, by name (empty without capture).

        Every array of the request may have any number of batch axes; `variables` are the cell's.
        The result is differentiable in the arrays of both.
        """
        ...


class Choice(NamedTuple):
    """The selected implementation, and why the others were not selected.

    Attributes:
      implementation: its name.
      reasons: the reasons against the others, by name.
    """

    implementation: str
    reasons: dict[str, str]


def backends_of(cell: nn.RNNCellBase) -> list[Backend]:
    """The backends of a `RelationalMemoryCell`; none for any other cell."""
    names = RELATIONAL if isinstance(cell, RelationalMemoryCell) else ()
    modules: list[Any] = [importlib.import_module(name) for name in names]
    return modules


def choose(implementation: str, request: Request) -> Choice:
    """Selects the implementation for a request.

    Args:
      implementation: the requested implementation.
      request: the request.

    Returns:
      The choice.

    Raises:
      ValueError: the requested backend cannot run it.
    """
    if implementation == "scan":
        return Choice("scan", {})
    reasons: dict[str, str] = {}
    backends = {backend.NAME: backend for backend in backends_of(request.cell)}
    if implementation != "auto" and implementation not in backends:
        reasons[implementation] = (
            f"runs a RelationalMemoryCell only, got {type(request.cell).__name__}"
        )
    for name, backend in backends.items():
        if implementation not in ("auto", name):
            continue
        reason = _why_steps_differ(request) or backend.why_not(request)
        if reason is None and implementation == "auto":
            reason = backend.why_slow(request)
        if reason is None:
            # An empty sequence cannot be cut into chunks.
            if 0 in (*request.batch, request.steps):
                return Choice("scan", {name: "has nothing to compute"})
            return Choice(name, reasons)
        reasons[name] = reason
    if implementation != "auto":
        raise ValueError(
            f"implementation={implementation!r} {reasons[implementation]}; use "
            "implementation='scan' (or 'auto')"
        )
    return Choice("scan", reasons)


def explain(implementation: str, request: Request) -> str:
    """Describes which implementation runs a request, and why no faster one does.

    Args:
      implementation: the requested implementation.
      request: the request.
    """
    try:
        name, reasons = choose(implementation, request)
    except ValueError as error:
        return str(error)
    return "; ".join([f"{name!r} runs", *(f"{other!r} {why}" for other, why in reasons.items())])


def _why_steps_differ(request: Request) -> str | None:
    """Why configuration and parameters of the cell do not determine a step; None if they do."""
    parting = untied_by(request.lifting)
    if parting is not None:
        return (
            f"needs the same params in all steps, got {parting}="
            f"{getattr(request.lifting, parting)!r}"
        )
    if getattr(linen_module, "_global_interceptor_stack", ()):
        return "calls no method of the cell, but flax.linen.intercept_methods is active"
    capturing = getattr(linen_module._context, "capture_stack", ())
    if request.capture and capturing and capturing[-1]:
        return "calls no method of the cell, but capture_intermediates is given"
    return None


def untied_by(lifting: Lifting) -> str | None:
    """The argument that gives each step its own parameters; None if steps share them."""
    if any(in_filter(collections, "params") for collections in lifting.variable_axes):
        return "variable_axes"
    if in_filter(lifting.variable_carry, "params"):
        return "variable_carry"
    return None if in_filter(lifting.variable_broadcast, "params") else "variable_broadcast"


def run(implementation: str, request: Request) -> SequenceOutputs:
    """Runs a bound cell over a sequence.

    Args:
      implementation: the requested implementation.
      request: the request; its cell is bound.

    Returns:
      `SequenceOutputs`; what the cell sows is in its intermediates.
    """
    cell = request.cell
    repeat = why_not_cell(cell) is not None  # A cell with steps of its own.
    clean = without_unused(request.sequence, request.time_axis, repeat)
    request = request._replace(sequence=clean)
    choice = choose(implementation, request)
    _check_dropout(request)
    if choice.implementation == "scan" or cell.is_initializing():
        remat = "none" if cell.is_initializing() else request.remat
        if request.capture and remat == "chunked":
            remat = "full"  # Captured values of every step are stored in any case.
        return plain_scan(
            cell,
            request.sequence,
            request.carry,
            request.fresh,
            time_axis=request.time_axis,
            lifting=request.lifting,
            remat=remat,
            all_carries=request.all_carries,
        )
    backend = next(b for b in backends_of(cell) if choice.implementation == b.NAME)
    request = request._replace(kept=_kept(request))
    outputs, sown = backend.run(request, cell.variables)
    for name, value in sown.items():
        value = jnp.moveaxis(value, request.time_axis, _axis_of_captured(request))
        cell.sow("intermediates", name, value)
    return outputs


def _axis_of_captured(request: Request) -> int:
    """The time axis of what is sown."""
    for collections, axis in request.lifting.variable_axes.items():
        if in_filter(collections, "intermediates"):
            return getattr(axis, "axis", axis)  # It may be in `flax.core.lift.Out`.
    return request.time_axis


def _drops(cell: Any) -> bool:
    """Whether the cell has recurrent dropout."""
    return (
        isinstance(cell, RelationalMemoryCell) and cell.dropout_rate > 0 and not cell.deterministic
    )


def _check_dropout(request: Request) -> None:
    """Raises where the scan would hide the rng of dropout; Flax would say that there is none."""
    cell, streams = request.cell, request.lifting.split_rngs
    if not _drops(cell) or cell.is_initializing():
        return
    # Flax draws from "params" where there is no "dropout".
    names = ("dropout", "params") if cell.has_rng("params") else ("dropout",)
    if not any(in_filter(stream, name) for stream in streams for name in names):
        raise ValueError(
            'dropout needs split_rngs={"params": False, "dropout": True} (drawn at each step) or '
            f'"dropout": False (once per sequence), got {dict(streams)}'
        )


def _kept(request: Request) -> Array | None:
    """The units that dropout keeps at every step, drawn exactly as in the plain scan."""
    cell: Any = request.cell
    if not _drops(cell):
        return None
    shape = (*request.batch, cell.mem_slots, cell.mem_size)

    def draw(cell: Any, carry: None, _: Array) -> tuple[None, Array]:
        return carry, cell.kept(shape)

    # An array counts the steps, because T may be a symbol of `jax.export`.
    scan: Any = nn.scan(
        draw,
        variable_broadcast=request.lifting.variable_broadcast,
        split_rngs=request.lifting.split_rngs,
    )
    return scan(cell, None, jnp.zeros((request.steps,), jnp.int8))[1]
