"""Measures the variants of one point: builds, checks and times them, and makes rows."""

import dataclasses
import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import agreement, variants
from benchmarks.problem import Problem, make_cell, make_problem
from benchmarks.program import Program, Results, UnavailableError
from benchmarks.records import SCHEMA, Row
from benchmarks.roofline import Limits, measure_limits, roofline
from benchmarks.settings import Setting
from benchmarks.timing import interleave, summarise


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
      rounds: samples per variant.
      warmup: calls before the first sample.
      min_seconds: shortest duration of a sample.
      seed: seed of the arrays and of the order in the rounds.
      slope: also time a sequence of another length, for the time of one more step.
    """

    rounds: int = 10
    warmup: int = 3
    min_seconds: float = 0.2
    seed: int = 0
    slope: bool = False


_OTHER_LENGTH = "other length: "


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the rows finished so far."""

    def __init__(self, rows: list[Row]) -> None:
        super().__init__()
        self.rows = rows


def measure(
    setting: Setting,
    mode: str,
    names: Sequence[str],
    options: Options,
    common: Row,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Row]:
    """One row for each variant of a point.

    Args:
      setting: the sizes.
      mode: one of `program.MODES`.
      names: the variants; the reference is always measured too.
      options: how to measure.
      common: fields of every row.
      progress: wraps the rounds, to draw a bar.

    Returns:
      The rows in the order of `names`, the reference first.

    Raises:
      Interrupted: by Ctrl-C; contains rows with fewer rounds.
    """
    names = list(dict.fromkeys((variants.REFERENCE, *names)))
    problem = make_problem(setting, options.seed)
    rows = {name: _row(setting, mode, name, options, common) for name in names}
    programs = _build_all(problem, mode, names, rows)
    _check_all(problem, mode, programs, rows)
    if not programs:
        return list(rows.values())
    limits_of(setting.dtype)
    other = setting.replace(steps=setting.steps // 2 if setting.steps > 1 else 2)
    lengths = _build_other_length(other, mode, programs) if options.slope else {}
    rounds = interleave(
        {name: program.run for name, program in programs.items()}
        | {_OTHER_LENGTH + name: program.run for name, program in lengths.items()},
        rounds=options.rounds,
        warmup=options.warmup,
        min_seconds=options.min_seconds,
        seed=options.seed,
        progress=progress,
    )
    limits = limits_of(setting.dtype)
    reference = rounds.samples.get(variants.REFERENCE, [])
    for name, program in programs.items():
        samples = rounds.samples[name]
        if samples:
            rows[name] |= _timed(setting, program, limits, samples, reference)
            others = rounds.samples.get(_OTHER_LENGTH + name)
            if others:
                rows[name]["slope"] = slope(setting.steps, samples, other.steps, others)
    programs.clear()
    lengths.clear()
    gc.collect()
    if rounds.interrupted:
        raise Interrupted([row for row in rows.values() if row["status"] != "pending"])
    return list(rows.values())


def slope(
    steps: int, samples: Sequence[float], other_steps: int, others: Sequence[float]
) -> dict[str, Any]:
    """Seconds per additional step, and seconds independent of the steps, by rounds.

    >>> result = slope(4, [9.0, 9.0], 2, [5.0, 5.0])
    >>> result["seconds_per_step"]["median"], result["fixed_seconds"]["median"]
    (2.0, 1.0)
    """
    pairs = list(zip(samples, others, strict=False))
    slopes = [(a - b) / (steps - other_steps) for a, b in pairs]
    fixed = [a - steps * each for (a, _), each in zip(pairs, slopes, strict=True)]
    return {
        "steps": [other_steps, steps],
        "seconds_per_step": dataclasses.asdict(summarise(slopes)),
        "fixed_seconds": dataclasses.asdict(summarise(fixed)),
    }


def _row(setting: Setting, mode: str, name: str, options: Options, common: Row) -> Row:
    return {
        "schema": SCHEMA,
        "status": "pending",
        "reason": None,
        "setting": dataclasses.asdict(setting) | {"width": setting.width},
        "mode": mode,
        "variant": name,
        "reference": variants.REFERENCE,
        "slope": None,
        "options": dataclasses.asdict(options),
    } | common


def _build_all(
    problem: Problem, mode: str, names: Sequence[str], rows: dict[str, Row]
) -> dict[str, Program]:
    """Builds the variants; rows of those that fail contain the reason."""
    programs = {}
    for name in names:
        try:
            programs[name] = program = variants.build(name, problem, mode)
        except UnavailableError as error:
            rows[name] |= {"status": "skipped", "reason": str(error)}
        except Exception as error:  # A failing variant must not end the measurement of the others.
            rows[name] |= {"status": "failed", "reason": _describe(error)}
        else:
            rows[name] |= {
                "parameters": program.parameters,
                "width": program.width,
                "costs": dataclasses.asdict(program.costs),
            }
    return programs


def _build_other_length(
    setting: Setting, mode: str, programs: Mapping[str, Program]
) -> dict[str, Program]:
    """The same variants for a sequence of another length; a failing one has no slope."""
    problem = make_problem(setting)
    built = {}
    for name in programs:
        try:
            built[name] = variants.build(name, problem, mode)
        except Exception as error:
            print(f"{name} of {setting.steps} steps: {_describe(error)}", file=sys.stderr)
    return built


_best_limits: dict[str, Limits] = {}


def limits_of(dtype: str) -> Limits:
    """The machine's limits: measures them again and returns the best values of this process.

    On a shared processor a single measurement may be too slow.
    """
    found = measure_limits(dtype)
    best = _best_limits.get(dtype, found)
    _best_limits[dtype] = best.or_better(found)
    return _best_limits[dtype]


def _check_all(
    problem: Problem, mode: str, programs: dict[str, Program], rows: dict[str, Row]
) -> None:
    """Removes programs that fail, or whose results differ from the reference."""
    results: dict[str, Results] = {}
    for name, program in list(programs.items()):
        try:
            found = program.results()
        except Exception as error:
            rows[name] |= {"status": "failed", "reason": _describe(error)}
            del programs[name]
        else:
            if program.comparable:
                results[name] = found
    if variants.REFERENCE not in results:
        for name in results:
            del programs[name]
            rows[name] |= {"status": "failed", "reason": "the reference to check it with failed"}
        return
    wanted, tolerance = results[variants.REFERENCE], agreement.TOLERANCE
    if problem.setting.dtype != "float32":
        wanted = float32_results(problem, mode)
        name, error = agreement.worst(agreement.errors(results[variants.REFERENCE], wanted))
        tolerance = max(tolerance, agreement.FACTOR * error)
    for name, found in results.items():
        try:
            array, error = agreement.worst(agreement.errors(found, wanted))
        except ValueError as mismatch:
            rows[name] |= {"status": "failed", "reason": _describe(mismatch)}
            del programs[name]
            continue
        rows[name]["agreement"] = {"error": error, "array": array, "tolerance": tolerance}
        if not error <= tolerance:
            reason = f"{array} is off by {error:.2e} of its size (at most {tolerance:.2e})"
            rows[name] |= {"status": "disagrees", "reason": reason}
            del programs[name]


def float32_results(problem: Problem, mode: str) -> Results:
    """What the reference computes from the same arrays in float32."""
    setting = problem.setting.replace(dtype="float32")
    inputs = problem.inputs.astype(setting.array_dtype)
    exact = dataclasses.replace(problem, setting=setting, cell=make_cell(setting), inputs=inputs)
    return variants.build(variants.REFERENCE, exact, mode).results()


def _timed(
    setting: Setting,
    program: Program,
    limits: Limits,
    samples: list[float],
    reference: list[float],
) -> Row:
    seconds = summarise(samples)
    speedups = [theirs / own for theirs, own in zip(reference, samples, strict=False)]
    return {
        "status": "ok",
        "seconds": dataclasses.asdict(seconds),
        "samples": samples,
        "speedup": dataclasses.asdict(summarise(speedups)) if speedups else None,
        "sequences_per_second": setting.batch / seconds.median,
        "steps_per_second": setting.batch * setting.steps / seconds.median,
        "roofline": roofline(program.work, limits, seconds.median),
    }


def _describe(error: Exception) -> str:
    lines = traceback.format_exception_only(error)
    return "".join(lines).strip()[:500]


def describe_row(row: Row) -> str:
    """A row in one line.

    >>> describe_row({"variant": "torch", "status": "skipped", "reason": "no PyTorch"})
    'torch              skipped: no PyTorch'
    """
    head = f"{row['variant']:<18} "
    if row["status"] != "ok":
        return f"{head}{row['status']}: {row['reason']}"
    seconds: Any = row["seconds"]
    text = f"{head}{1e3 * seconds['median']:10.3f} ms (quartiles {1e3 * seconds['q1']:.3f}-"
    text += f"{1e3 * seconds['q3']:.3f}, min {1e3 * seconds['min']:.3f}, n {seconds['n']})"
    if row["speedup"]:
        speedup = row["speedup"]
        text += f"  x{speedup['median']:.2f} ({speedup['q1']:.2f}-{speedup['q3']:.2f})"
    return text
