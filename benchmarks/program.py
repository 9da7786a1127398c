"""A program ready to be timed, whatever made it."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.flops import Work
from benchmarks.timing import Run

MODES = ("forward", "train", "streaming")
"""Forward over a sequence; loss and gradients over a sequence; one step with the carry kept."""

Results = Mapping[str, np.ndarray]
"""What a program computes, by name: ``outputs`` (and ``carry``), or ``loss`` and gradients."""


class UnavailableError(Exception):
    """The variant cannot run here: another device, a missing library, a mode it does not have."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a program costs beside its running time; None where it is not known.

    Attributes:
      trace_seconds: tracing and lowering.
      compile_seconds: compiling.
      temporary_bytes: working memory that the compiler planned.
      argument_bytes: arguments.
      output_bytes: results.
      peak_bytes: the most memory that the compiler planned to hold at once.
      program: digest of what the compiler was given; programs of the same digest are the same.
    """

    trace_seconds: float | None = None
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    argument_bytes: int | None = None
    output_bytes: int | None = None
    peak_bytes: int | None = None
    program: str | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """One variant in one mode.

    Attributes:
      run: runs it once and returns when it has finished.
      results: runs it once and returns what it computed.
      comparable: whether it computes what the relational memory does.
      parameters: how many weights it has.
      width: numbers that it puts out at each step.
      work: what it cannot do without, in this mode.
      costs: compile time and memory.
    """

    run: Run
    results: Callable[[], Results]
    comparable: bool
    parameters: int
    width: int
    work: Work
    costs: Costs
