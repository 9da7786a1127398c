"""Which implementation runs a sequence: decided here and nowhere else.

Every way to run a cell but the plain scan is a `Backend`. A cell with faster ways than that
registers them (`register`), by the names of modules that are imported once they may run: they are a
third of what importing the package costs. ``"auto"`` takes the first of them that can run a request
and pays, else the plain scan; a name takes that one or says why not.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from flax import linen as nn
from flax.core.scope import in_filter
from flax.linen import module as linen_module

from rrnn_jax.scan.plain import Lifting, plain_scan
from rrnn_jax.scan.sequence import SequenceInputs, SequenceOutputs, without_unused
from rrnn_jax.typing import Array, Carry, Remat

REMATS = ("none", "full", "save_products", "chunked")
IMPLEMENTATIONS = ("auto", "scan", "hoisted", "fused", "cuda")


class Request(NamedTuple):
    """A sequence to be run, as far as the choice depends on it.

    Attributes:
      cell: the cell.
      sequence: what is run over.
      carry: before the first step.
      fresh: what a reset puts in its place, or None.
      time_axis: the time axis of the sequence.
      lifting: what steps share.
      remat: what the backward pass recomputes, see `rrnn_jax.RNN`.
      all_carries: whether the carries after every step are wanted.
      capture: whether what the cell sows is wanted.
      kept: for a cell with dropout what each step keeps, ``[T, *B, S, F]`` bool; drawn once the
        choice is made.
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
        """T; an expression where `jax.export` does not know it."""
        return self.sequence.inputs.shape[self.time_axis]

    @property
    def batch(self) -> tuple[Any, ...]:
        """The batch axes."""
        shape = list(self.sequence.inputs.shape[: -self.cell.num_feature_axes])
        del shape[self.time_axis]
        return tuple(shape)


class Backend(Protocol):
    """A way to run a cell over a sequence; a module with these functions."""

    NAME: str

    def why_not(self, request: Request) -> str | None:
        """Why it cannot run that, to follow its name in a sentence; None if it can."""
        ...

    def why_slow(self, request: Request) -> str | None:
        """Why ``"auto"`` would not take it though it can run that; None if it would."""
        ...

    def run(
        self, request: Request, params: Mapping[str, Any]
    ) -> tuple[SequenceOutputs, dict[str, Any]]:
        """Outputs, and what the cell sows of every step, by name (empty if not asked for).

        Every array of the request may have any number of batch axes; `params` are the cell's. The
        result is differentiable in the arrays of both.
        """
        ...


class Choice(NamedTuple):
    """What runs, and why.

    Attributes:
      implementation: the name of what runs.
      reasons: of every other implementation that was asked, why it does not.
    """

    implementation: str
    reasons: dict[str, str]


_REGISTERED: dict[type, tuple[str, ...]] = {}


def register(cell_type: type[nn.RNNCellBase], *modules: str) -> None:
    """Tells of faster ways to run a cell.

    Args:
      cell_type: the class; its subclasses ask the same backends.
      *modules: names of modules, each a `Backend`; ``"auto"`` asks them in this order.
    """
    _REGISTERED[cell_type] = modules


def backends_of(cell: nn.RNNCellBase) -> list[Backend]:
    """The backends that a cell's class, or the next of its ancestors, has registered."""
    for ancestor in type(cell).__mro__:
        if ancestor in _REGISTERED:
            modules: list[Any] = [importlib.import_module(name) for name in _REGISTERED[ancestor]]
            return modules
    return []


def choose(implementation: str, request: Request) -> Choice:
    """Picks what runs a request.

    Args:
      implementation: what the user asked for.
      request: what is to be run.

    Returns:
      The choice.

    Raises:
      ValueError: an implementation other than ``"auto"`` and ``"scan"`` that cannot run it.
    """
    if implementation == "scan":
        return Choice("scan", {})
    reasons: dict[str, str] = {}
    backends = {backend.NAME: backend for backend in backends_of(request.cell)}
    if implementation != "auto" and implementation not in backends:
        reasons[implementation] = why_other(request.cell)
    for name, backend in backends.items():
        if implementation not in ("auto", name):
            continue
        reason = _why_steps_differ(request) or backend.why_not(request)
        if reason is None and implementation == "auto":
            reason = backend.why_slow(request)
        if reason is None:
            # Of no numbers at all there is nothing to compute, and nothing to cut into pieces.
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
    """What runs a request, and why nothing faster does, in a sentence or two.

    Args:
      implementation: what the user asked for.
      request: what is to be run.
    """
    try:
        name, reasons = choose(implementation, request)
    except ValueError as error:
        return str(error)
    return "; ".join([f"{name!r} runs", *(f"{other!r} {why}" for other, why in reasons.items())])


def why_other(cell: nn.RNNCellBase) -> str:
    """Why no fast path runs a cell whose class has none."""
    return f"runs a RelationalMemoryCell only, got {type(cell).__name__}"


def _why_steps_differ(request: Request) -> str | None:
    """Why a step is not what the cell's configuration and one set of parameters say."""
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
    """The argument by which steps have parameters of their own; None if they share them."""
    if any(in_filter(collections, "params") for collections in lifting.variable_axes):
        return "variable_axes"
    if in_filter(lifting.variable_carry, "params"):
        return "variable_carry"
    return None if in_filter(lifting.variable_broadcast, "params") else "variable_broadcast"


def run(implementation: str, request: Request) -> SequenceOutputs:
    """Runs a cell that is bound to a module over a sequence.

    Args:
      implementation: what the user asked for.
      request: what is to be run; its cell is bound.

    Returns:
      `SequenceOutputs`; what the cell sows is in its intermediates.
    """
    cell = request.cell
    clean = without_unused(request.sequence, request.time_axis, repeat=not backends_of(cell))
    request = request._replace(sequence=clean)
    choice = choose(implementation, request)
    if choice.implementation == "scan" or cell.is_initializing():
        remat = "none" if cell.is_initializing() else request.remat
        if request.capture and remat == "chunked":
            remat = "full"  # What is captured of every step is stored in any case.
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
        cell.sow("intermediates", name, value)
    return outputs


def _kept(request: Request) -> Array | None:
    """What every step of a cell with dropout keeps: the very numbers that the plain scan draws."""
    cell: Any = request.cell
    if getattr(cell, "dropout_rate", 0.0) == 0.0 or cell.deterministic:
        return None
    shape = (*request.batch, cell.mem_slots, cell.mem_size)

    def draw(cell: Any, carry: None, _: Array) -> tuple[None, Array]:
        return carry, cell.kept(shape)

    # Steps are counted by an array: their number may be a symbol of `jax.export`.
    scan: Any = nn.scan(
        draw,
        variable_broadcast=request.lifting.variable_broadcast,
        split_rngs=request.lifting.split_rngs,
    )
    return scan(cell, None, jnp.zeros((request.steps,), jnp.int8))[1]
