"""Checks the results of a device: ``python -m benchmarks.correctness --help``.

1. ``golden``: `flax.linen.RNN` and `rrnn_jax.RNN` against arrays recorded from the authors' module,
   in float32 with products at highest precision: outputs and all gradients.
2. ``agreement``: `rrnn_jax.RNN` against `flax.linen.RNN` at the sizes of the benchmarks, float32 at
   highest precision: outputs, loss and all gradients.
3. ``short``: both in bfloat16 and TF32 against `flax.linen.RNN` in float32.
4. ``flags``: the kernels with resets and a mask against the plain scan, in float32.

Limits are those of the tests and of the benchmarks: the tolerances of a golden case (share 1 of
them), `agreement.TOLERANCE` in float32, and in shorter dtypes `agreement.FACTOR` times the error of
`flax.linen.RNN`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import agreement, variants
from benchmarks.jax_programs import matmul_precision, named_leaves
from benchmarks.measure import float32_results
from benchmarks.options import REQUIRED, add_shared
from benchmarks.problem import make_cell, make_problem
from benchmarks.program import UnavailableError
from benchmarks.records import read_finished
from benchmarks.settings import SETTINGS, Setting
from benchmarks.timing import time_limit
from experiments.common.environment import describe_environment
from experiments.common.records import append_rows
from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan.pallas import unfusable
from rrnn_jax.typing import Implementation

FAST = ("hoisted", "fused")
"""The checked variants of `rrnn_jax.RNN`, if they can run."""

Check = dict[str, Any]
"""A row: ``name``, ``error`` (the largest), ``limit``, ``where`` and ``ok``; or ``skipped``."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.correctness",
        description="Compares the fast paths with recorded cases and with flax.linen.RNN; skips "
        "what --out has.",
        epilog="Exit codes: 0 success, 1 an error exceeds its limit, 2 invalid request, 130 "
        "interrupted or out of time (run the same command to resume).",
    )
    add = result.add_argument
    add("--setting", nargs="+", choices=SETTINGS, default=["nth_farthest", "rl", "language"],
        metavar="NAME", help="sizes (default: nth_farthest rl language)")  # fmt: skip
    add("--golden-cases", type=int, help="how many of the recorded cases (default: all)")
    add_shared(add, minutes=None, out=REQUIRED)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    given = parser().parse_args(args)
    environment = describe_environment()
    place = {name: environment[name] for name in ("device", "platform", "packages", "git_commit")}
    try:
        with time_limit(given.minutes):
            rows = make_checks(given.setting, given.golden_cases, given.out, place)
    except (UnavailableError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; run the same command to resume.", file=sys.stderr)
        return 130
    faults = [row["name"] for row in rows if not row.get("ok", True)]
    print(f"{len(rows)} checks, {len(faults)} over their limits: {', '.join(faults) or 'none'}")
    return 1 if faults else 0


def make_checks(
    settings: Sequence[str], golden_cases: int | None, out: Path, place: dict[str, Any]
) -> list[Check]:
    """Runs the checks that a file does not contain yet, and appends them.

    Args:
      settings: names of sizes.
      golden_cases: number of recorded cases (default: all).
      out: the file.
      place: device, versions and commit; checks with others are not used.

    Returns:
      The checks of these sizes and cases in this place.

    Raises:
      UnavailableError: the recorded cases do not exist.
      ValueError: the file is of another command.
    """
    kept = read_finished(out, lambda row: (row["name"], row["environment"]["device"]), here=True)
    done: list[Check] = []
    for name, check in _checks(settings, golden_cases):
        if (row := kept.get((name, place["device"]))) is not None:
            done.append(row)
            continue
        try:
            found = check()
        except UnavailableError as error:
            found = {"skipped": str(error)}
        done.append({"name": name, **found, "environment": place})
        append_rows(out, done[-1:])
        print(describe(done[-1]), flush=True)
    return done


def describe(check: Check) -> str:
    """A check in one line.

    >>> describe({"name": "a", "error": 2e-5, "limit": 1e-3, "where": "outputs", "ok": True})
    'a: largest error 2.00e-05 (outputs), at most 1.00e-03: ok'
    """
    if "skipped" in check:
        return f"{check['name']}: skipped, {check['skipped']}"
    verdict = "ok" if check["ok"] else "TOO LARGE"
    # JSON has no infinity, so None represents values that are not finite.
    error = float("inf") if check["error"] is None else check["error"]
    text = f"{check['name']}: largest error {error:.2e} "
    if "absolute_error_of_outputs" in check:
        absolute = check["absolute_error_of_outputs"]
        absolute = float("inf") if absolute is None else absolute
        text += f"of the tolerance ({check['where']}; outputs off by {absolute:.1e})"
    else:
        text += f"({check['where']})"
    return f"{text}, at most {check['limit']:.2e}: {verdict}"


def _checks(
    settings: Sequence[str], golden_cases: int | None
) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Name and function of every check, the most important first."""
    golden = _load_golden()
    names = golden.NAMES[:golden_cases]

    def of_golden(case: str, runner: str) -> tuple[str, Callable[[], Check]]:
        return f"golden {case} {runner}", lambda: golden_check(golden, case, runner)

    def of_setting(
        setting: str, dtype: str, mode: str, runner: str
    ) -> tuple[str, Callable[[], Check]]:
        name = f"{setting} {mode} {dtype} {runner}"
        return name, lambda: setting_check(setting, dtype, mode, runner)

    def of_flags(setting: str) -> tuple[str, Callable[[], Check]]:
        return f"{setting} flags", lambda: flags_check(SETTINGS[setting])

    cells = {setting: make_cell(SETTINGS[setting]) for setting in settings}
    fused = [setting for setting, cell in cells.items() if "fused" in runners(cell)]
    for case in names:
        for runner in runners(golden.load(case).cell):
            yield of_golden(case, runner)
    for dtype in ("float32", "bfloat16", "tf32"):
        for setting, cell in cells.items():
            for runner in runners(cell):
                yield of_setting(setting, dtype, "train", runner)
    for setting in fused:
        yield of_flags(setting)
    for case in names:
        yield of_golden(case, variants.REFERENCE)
    for dtype in ("float32", "bfloat16", "tf32"):
        for setting, cell in cells.items():
            for runner in runners(cell):
                yield of_setting(setting, dtype, "forward", runner)


def runners(cell: RelationalMemoryCell) -> tuple[str, ...]:
    """The variants of `FAST` that can run a cell on this device."""
    kernels = jax.default_backend() == "gpu" and unfusable(cell) is None
    return FAST if kernels else FAST[:1]


def golden_check(golden: Any, name: str, runner: str) -> Check:
    """A recorded case: the largest error as a share of its tolerance.

    Args:
      golden: the module `tests.core.golden`.
      name: name of the case.
      runner: "plain" or one of `FAST`.
    """
    case = golden.load(name)
    return judge_golden(golden, case, *golden_results(case, runner))


def golden_results(case: Any, runner: str) -> tuple[jax.Array, Any]:
    """Outputs of a recorded case and the gradients of its parameters, inputs and memory."""
    if runner == variants.REFERENCE:
        rnn: Any = nn.RNN(case.cell, time_major=True)
    else:
        rnn = RNN(case.cell, time_major=True, implementation=cast(Implementation, runner))

    def loss(params: Any, inputs: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = rnn.apply({"params": {"cell": params}}, inputs, initial_carry=memory)
        return jnp.mean(outputs * case.loss_weights), outputs

    with matmul_precision("float32"):
        value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (_, outputs), gradients = value_and_grad(case.params, case.inputs, case.initial_memory)
    return outputs, gradients


def judge_golden(golden: Any, case: Any, outputs: jax.Array, gradients: Any) -> Check:
    """The errors of results against the recorded ones."""
    wanted_outputs = case.arrays["outputs"]
    shares = {"outputs": _share(outputs, wanted_outputs, golden.OUTPUT_ATOL, 0.0)}
    found = jax.tree.leaves_with_path(gradients)
    for (path, leaf), wanted in zip(found, jax.tree.leaves(case.gradients), strict=True):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        shares[f"gradient {where}"] = _share(
            leaf, wanted, golden.GRADIENT_ATOL, golden.GRADIENT_RTOL
        )
    where, error = agreement.worst(shares)
    absolute = float(np.max(np.abs(np.asarray(outputs) - wanted_outputs)))
    return {
        "error": error,
        "where": where,
        "limit": 1.0,
        "ok": error <= 1.0,
        "absolute_error_of_outputs": absolute,
    }


def setting_check(name: str, dtype: str, mode: str, runner: str) -> Check:
    """Checks a fast variant of a setting in the same way as before timing.

    Raises:
      UnavailableError: the device has no such products.
    """
    problem = make_problem(SETTINGS[name].replace(dtype=dtype))
    with matmul_precision(dtype):
        pass  # Raises here, before anything is compiled.
    plain = variants.build(variants.REFERENCE, problem, mode).results()
    fast = variants.build(runner, problem, mode).results()
    if dtype == "float32":
        where, error = agreement.worst(agreement.errors(fast, plain))
        return _judged(error, where, agreement.TOLERANCE)
    exact = float32_results(problem, mode)
    _, own = agreement.worst(agreement.errors(plain, exact))
    where, error = agreement.worst(agreement.errors(fast, exact))
    limit = max(agreement.TOLERANCE, agreement.FACTOR * own)
    return _judged(error, where, limit) | {"error_of_reference": own}


def flags_check(setting: Setting, implementation: Implementation = "fused") -> Check:
    """Outputs and gradients with a tenth of all steps reset, and a tenth masked."""
    problem = make_problem(setting.replace(dtype="float32"))
    rng = np.random.default_rng(0)
    resets, left_out = jnp.asarray(rng.random((2, *problem.inputs.shape[:2])) < 0.1)

    def results(implementation: Implementation) -> dict[str, np.ndarray]:
        rnn = RNN(problem.cell, implementation=implementation)

        def loss(params: Any, inputs: jax.Array) -> tuple[jax.Array, Any]:
            outputs: Any = rnn.apply({"params": params}, inputs, resets=resets, mask=~left_out)
            return jnp.mean(outputs * problem.loss_weights), outputs

        with matmul_precision("float32"):
            gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
            (_, outputs), gradients = gradient(problem.params, problem.inputs)
        return named_leaves({"outputs": outputs, "gradients": gradients})

    errors = agreement.errors(results(implementation), results("scan"))
    where, error = agreement.worst(errors)
    return _judged(error, where, agreement.TOLERANCE)


def _judged(error: float, where: str, limit: float) -> Check:
    return {"error": error, "where": where, "limit": limit, "ok": bool(error <= limit < np.inf)}


def _share(found: jax.Array, wanted: np.ndarray, atol: float, rtol: float) -> float:
    """The largest error as a share of the tolerance."""
    exact = np.asarray(wanted, np.float64)
    difference = np.abs(np.asarray(found, np.float64) - exact)
    return float(np.max(difference / (atol + rtol * np.abs(exact))))


def _load_golden() -> Any:
    try:
        from tests.core import golden
    except ImportError as error:
        raise UnavailableError(
            "the recorded cases are read by tests/core/golden.py of a clone of the repository: run "
            f"from its root ({error})"
        ) from error
    if not golden.NAMES:
        raise UnavailableError("there are no recorded cases in tests/golden of the repository")
    return golden


if __name__ == "__main__":
    sys.exit(main())
