"""Throughput of recurrent scans: ``python -m benchmarks.scan_throughput --help``."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from benchmarks import variants
from benchmarks.jax_programs import matmul_precision
from benchmarks.measure import Interrupted, Options, describe_row, measure
from benchmarks.options import add_shared, limit_threads_or_exit, positive
from benchmarks.program import MODES, UnavailableError
from benchmarks.records import Row, is_finished, key, read_finished
from benchmarks.settings import AXES, DTYPES, SETTINGS, Setting, sweep
from benchmarks.timing import time_limit
from experiments.common.environment import count_cores, describe_environment
from experiments.common.records import append_rows

EPILOG = """The variants of a point are timed in interleaved rounds within one process, after a
check against the reference. With an existing --out, finished rows are skipped, and so are those of
variants that were not available; Ctrl-C keeps finished rows."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.scan_throughput",
        description="Times recurrent scans: forward, and forward with backward.",
        epilog=EPILOG,
    )
    _what_options(result.add_argument_group("what to measure").add_argument)
    _how_options(result.add_argument_group("how to measure").add_argument)
    return result


def _what_options(add: Callable[..., Any]) -> None:
    names = ", ".join(SETTINGS)
    add("--setting", nargs="+", choices=SETTINGS, default=["cpu"], metavar="NAME",
        help=f"named sizes, of {names}")  # fmt: skip
    add("--sweep", action="store_true", help="also change one size at a time around the setting")
    letters = list(AXES.values())
    add(
        "--axes", nargs="+", choices=letters, default=letters, help="the sizes that --sweep changes"
    )
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"],
        help="what products are computed in; tf32 needs a GPU")  # fmt: skip
    add("--mode", nargs="+", choices=MODES[:2], default=list(MODES[:2]),
        help="outputs alone, or loss and gradients")  # fmt: skip
    add("--streaming", action="store_true",
        help="instead: one step of one sequence at a time, the carry kept")  # fmt: skip
    others = f"{', '.join(variants.NAMES)}, or IMPLEMENTATION:REMAT"
    add("--slope", action="store_true",
        help="also time half the steps, for the time that one more step takes")  # fmt: skip
    add("--variants", nargs="+", default=list(variants.DEFAULT), metavar="VARIANT",
        help=f"of {others}; {variants.REFERENCE} is always among them")  # fmt: skip
    add("--remat", nargs="+", choices=variants.REMATS[1:], default=[],
        help="also each implementation among the variants with these")  # fmt: skip


def _how_options(add: Callable[..., Any]) -> None:
    add_shared(add, rounds=10, min_seconds=0.2, threads=0, minutes=None, out=None)
    add("--warmup", type=positive, default=3, help="calls before the first sample")
    add("--seed", type=int, default=0, help="of arrays and order")


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    arguments = parser()
    given = arguments.parse_args(args)
    if given.slope and given.streaming:
        arguments.error("--slope has no meaning with --streaming, which takes one step at a time")
    limit_threads_or_exit(arguments, given.threads)
    try:
        names = variant_names(given.variants, given.remat)
        # Before JAX creates its backends. Compile time is measured; PyTorch needs some memory too.
        jax.config.update("jax_enable_compilation_cache", False)
        if any(name.startswith("torch") for name in names):
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        for dtype in given.dtype:
            matmul_precision(dtype)
        points = list(plan(given))
        kept = read_finished(given.out, key)
    except (ValueError, UnavailableError) as error:
        arguments.error(str(error))
    common = {"threads": count_cores(), "environment": describe_environment()}
    options = Options(given.rounds, given.warmup, given.min_seconds, given.seed, given.slope)
    finished = {name for name, row in kept.items() if is_finished(row, given.rounds, given.slope)}
    print(f"{jax.devices()[0].device_kind}, {common['threads']} threads", file=sys.stderr)
    complete = True
    try:
        with time_limit(given.minutes):
            for number, (setting, mode) in enumerate(points, 1):
                left = [
                    name for name in names if _probe(setting, mode, name, common) not in finished
                ]
                title = f"[{number}/{len(points)}] {setting.name}: {setting.describe()}, {mode}"
                print(f"{title}{'' if left else ': already measured'}", file=sys.stderr)
                if left:
                    rows = measure(setting, mode, left, options, common, _rounds_bar)
                    _keep(rows, left, given.out)
                    complete &= all(row["status"] in ("ok", "skipped") for row in rows)
    except KeyboardInterrupt as interruption:
        if isinstance(interruption, Interrupted):
            _keep(interruption.rows, left, given.out)
        print("Interrupted; run the same command to resume.", file=sys.stderr)
        return 130
    return 0 if complete else 1


def plan(given: argparse.Namespace) -> Iterator[tuple[Setting, str]]:
    """The points to measure: sizes and mode, each once."""
    axes = tuple(size for size, letter in AXES.items() if letter in given.axes)
    seen = set()
    for name in given.setting:
        base = SETTINGS[name]
        settings = [base]
        if given.sweep:
            settings += [setting for _, setting in sweep(base, axes)]
        for dtype in given.dtype:
            for mode in ["streaming"] if given.streaming else given.mode:
                for setting in settings:
                    chosen = setting.replace(dtype=dtype)
                    if given.streaming:
                        chosen = chosen.replace(batch=1, steps=1)
                    if (chosen, mode) not in seen:
                        seen.add((chosen, mode))
                        yield chosen, mode


def variant_names(given: Sequence[str], remats: Sequence[str]) -> list[str]:
    """The reference, the given variants, and their implementations with each remat choice.

    Raises:
      ValueError: a variant is unknown.
    """
    names = [variants.REFERENCE, *(variants.check_name(name) for name in given)]
    implementations = [name for name in names if name in variants.IMPLEMENTATIONS]
    names += [f"{name}:{remat}" for name in implementations for remat in remats]
    return list(dict.fromkeys(names))


def _probe(setting: Setting, mode: str, name: str, common: Row) -> str:
    """The key that a row would have."""
    sizes = dataclasses.asdict(setting) | {"width": setting.width}
    return key({"setting": sizes, "mode": mode, "variant": name} | common)


def _keep(rows: Iterable[Row], wanted: Iterable[str], path: Path | None) -> None:
    """Prints rows, and writes the requested ones (the reference may exist already)."""
    rows = list(rows)
    for row in rows:
        print("  " + describe_row(row), flush=True)
    if path is not None:
        wanted = set(wanted)
        append_rows(path, [row for row in rows if row["variant"] in wanted])


def _rounds_bar(rounds: Iterable[int]) -> Any:
    return tqdm(rounds, desc="rounds", leave=False, disable=None)


if __name__ == "__main__":
    sys.exit(main())
