"""The variants by name, with their builders."""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from benchmarks import jax_programs
from benchmarks.gated_models import cudnn_lstm, gated
from benchmarks.problem import Problem
from benchmarks.program import Program, UnavailableError
from rrnn_jax.scan.cuda import support
from rrnn_jax.scan.dispatch import IMPLEMENTATIONS, REMATS
from rrnn_jax.scan.pallas import unfusable
from rrnn_jax.typing import Remat

REFERENCE = "plain"
"""`flax.linen.RNN` of the relational memory, the reference for comparisons and checks."""

Build = Callable[[Problem, str], Program]


def _torch(**options: object) -> Build:
    def build(problem: Problem, mode: str) -> Program:
        try:
            from benchmarks import torch_programs
        except ImportError as error:
            raise UnavailableError("PyTorch is not installed") from error
        return torch_programs.build(problem, mode, **options)  # type: ignore[arg-type]

    return build


def _jax(make: Callable[..., jax_programs.Model], *args: str) -> Build:
    return lambda problem, mode: jax_programs.build(make(problem, *args), problem, mode)


OTHERS: dict[str, Build] = {
    REFERENCE: _jax(jax_programs.plain),
    "lstm_width": _jax(gated, "lstm", "width"),
    "lstm_params": _jax(gated, "lstm", "params"),
    "gru_width": _jax(gated, "gru", "width"),
    "gru_params": _jax(gated, "gru", "params"),
    "cudnn_lstm_width": _jax(cudnn_lstm, "width"),
    "cudnn_lstm_params": _jax(cudnn_lstm, "params"),
    "torch": _torch(),
    "torch_bmm": _torch(attention="bmm"),
    "torch_port": _torch(attention="bmm", skip_input_row=False),
    "torch_compile": _torch(compiled=True),
}
"""Variants other than `rrnn_jax.RNN`'s."""

NAMES = (REFERENCE, *IMPLEMENTATIONS, *(name for name in OTHERS if name != REFERENCE))
"""All variants; an implementation takes a remat choice after a colon, as in ``hoisted:full``."""

DEFAULT = (REFERENCE, "auto", "scan", "hoisted", "torch")
"""The default variants."""


def check_name(name: str) -> str:
    """Returns the name of a variant if it is one.

    Raises:
      ValueError: it is not.
    """
    implementation, colon, remat = name.partition(":")
    if name in OTHERS or (implementation in IMPLEMENTATIONS and (not colon or remat in REMATS)):
        return name
    raise ValueError(
        f"variant must be one of {', '.join(NAMES)} "
        f"(or IMPLEMENTATION:REMAT with one of {', '.join(REMATS)}), got {name!r}"
    )


def _check_fused(problem: Problem) -> None:
    if jax.default_backend() != "gpu":
        raise UnavailableError(f"its kernels need a GPU, got {jax.default_backend()}")
    fault = unfusable(problem.cell)
    if fault is not None:
        raise UnavailableError(f"it {fault}")


def _check_cuda(problem: Problem) -> None:
    dtype = problem.cell.dtype or jnp.float32
    fault = support.why_not(problem.cell, dtype, problem.setting.batch) or support.why_not_here()
    if fault is not None:
        raise UnavailableError(f"it {fault}")


def build(name: str, problem: Problem, mode: str) -> Program:
    """Builds a variant by name.

    Raises:
      UnavailableError: it cannot run here.
    """
    if name in OTHERS:
        return OTHERS[name](problem, mode)
    implementation, _, remat = check_name(name).partition(":")
    if implementation == "cuda":
        _check_cuda(problem)
    if implementation == "fused":
        _check_fused(problem)
        if remat in ("full", "chunked"):
            raise UnavailableError(f"with remat={remat!r} it is hoisted")
    model = jax_programs.ours(problem, implementation, cast(Remat, remat or "none"))
    return jax_programs.build(model, problem, mode)
