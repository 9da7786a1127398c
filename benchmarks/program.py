"""A program ready to be timed, whatever made it."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.flops import Work
from benchmarks.timing import Run

MODES = ("forward", "train", "streaming")
"""Forward over a sequence; loss and gradients over a sequence; one step with the carry kept."""

Results = Mapping[str, np.ndarray]
"""The results of a program, by name: ``outputs`` (and ``carry``), or ``loss`` and gradients."""


class UnavailableError(Exception):
    """The variant cannot run here: wrong device, missing library, or unsupported mode."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of a program other than its running time; None if unknown.

    Attributes:
      trace_seconds: tracing and lowering.
      compile_seconds: compiling.
      temporary_bytes: working memory planned by the compiler.
      program: digest of the compiler's input; programs with the same digest are equal.
    """

    trace_seconds: float | None = None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    program: str | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """One variant in one mode.

    Attributes:
      run: runs it once and returns when it has finished.
      results: runs it once and returns its results.
      comparable: whether it computes the same function as the relational memory.
      parameters: number of weights.
      width: width of its output.
      work: its least work in this mode.
      costs: compile time and memory.
    """

    run: Run
    results: Callable[[], Results]
    comparable: bool
    parameters: int
    width: int
    work: Work
    costs: Costs
