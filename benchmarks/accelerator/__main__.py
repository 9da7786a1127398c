"""Command line: ``python -m benchmarks.accelerator --help``."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator import correctness, profiling, search, throughput, training
from benchmarks.accelerator.candidates import CANDIDATES, TOY, change, make_config, parse_change
from benchmarks.accelerator.deadline import Deadline
from benchmarks.accelerator.files import TooLargeError, bring, check_fits
from benchmarks.program import UnavailableError
from benchmarks.settings import DTYPES, SETTINGS
from experiments.common.loop import Interrupted, NonFiniteError
from experiments.common.run_directory import ConfigMismatchError
from experiments.nth_farthest.config import Config

PARTS = ("correctness", "throughput", "profile", "search", "train_rmc", "train_lstm")
FILES = {"correctness": 1, "throughput": 2, "profile": 1, "search": 1}
"""Files that a part leaves; a training part leaves one, and its archive."""

EPILOG = """All results are in --out, few and small. The same command goes on from them; on another
machine, or with another --out, --resume-from does. Exit codes: 0 all well, 1 an error is over its
limit, 2 refused, 3 NaN or infinity, 130 stopped by Ctrl-C. A part that ran out of time is well."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.accelerator",
        description="Correctness, throughput and training on a device, bounded in time.",
        epilog=EPILOG,
    )
    add = result.add_argument
    add("--parts", nargs="+", choices=PARTS, required=True, metavar="PART",
        help=f"what to do, in order, of {', '.join(PARTS)}; what is left of the time is shared "
        "equally by the parts that are left")  # fmt: skip
    add("--out", type=Path, required=True, help="directory of all results")
    add("--resume-from", type=Path,
        help="directory that another call left: copied to --out, which must be empty")  # fmt: skip
    add("--minutes", type=_positive, default=9.0,
        help="wall time of the whole call, compiling included (default: 9)")  # fmt: skip
    add("--toy", action="store_true", help="small sizes, to see whether it runs")
    add("--no-progress", action="store_true", help="no progress bars")
    _measuring(result.add_argument_group("correctness, throughput and profile").add_argument)
    _training(result.add_argument_group("search and training").add_argument)
    return result


def _measuring(add: Callable[..., Any]) -> None:
    add("--settings", nargs="+", choices=SETTINGS, metavar="NAME",
        help="sizes (default: nth_farthest rl language)")  # fmt: skip
    add("--dtype", nargs="+", choices=DTYPES, default=["float32", "bfloat16", "tf32"],
        help="of products in throughput and profile (default: all)")  # fmt: skip
    add("--rounds", type=int, default=10, help="samples of each variant (default: 10)")
    add("--profile-variants", nargs="+", default=["auto"], metavar="VARIANT",
        help="what profile runs (default: auto)")  # fmt: skip


def _training(add: Callable[..., Any]) -> None:
    names = ", ".join(CANDIDATES)
    add("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME",
        help=f"what search tries, in order, of {names}")  # fmt: skip
    add("--search-model", choices=("rmc", "lstm"), default="rmc", help="(default: rmc)")
    add("--seconds-each", type=_positive, default=40.0,
        help="training time of each candidate, compiling not included (default: 40)")  # fmt: skip
    add("--candidate", choices=CANDIDATES, default="fast", metavar="NAME",
        help="what training parts train (default: fast)")  # fmt: skip
    add("--set", nargs="+", type=parse_change, default=[], metavar="OPTION=VALUE",
        help="changes of a candidate, such as train.learning_rate=1e-3 dtype=bfloat16")  # fmt: skip
    add("--num-seeds", type=int, help="seeds side by side (default: 3; in search 1)")
    add("--target", type=float, default=0.91,
        help="accuracy of every seed on fresh data that ends it (default: 0.91)")  # fmt: skip
    add("--schedule-minutes", type=_positive,
        help="training time, all calls together, over which a cosine takes the rate to zero; its "
        "updates follow from the rate measured first (default: the rate stays)")  # fmt: skip
    add("--steps-per-second", type=_positive,
        help="updates a second for --schedule-minutes, in place of measuring")  # fmt: skip
    add("--reserve-seconds", type=float, default=training.RESERVE_SECONDS,
        help="kept for the end of a training (default: 15)")  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    arguments = parser()
    given = arguments.parse_args(args)
    deadline = Deadline(60 * given.minutes)
    if "throughput" in given.parts:
        # PyTorch, and processes with flags of their own, want memory of the device as well.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    given.settings = given.settings or (
        ["toy"] if given.toy else ["nth_farthest", "rl", "language"]
    )
    try:
        if given.resume_from is not None:
            bring(given.resume_from, given.out)
        given.out.mkdir(parents=True, exist_ok=True)
        configs = {name: train_config(given, name) for name in given.parts if "train_" in name}
        sizes = {name: training.training_state_bytes(config) for name, config in configs.items()}
        check_fits(sizes, len(configs) + sum(FILES.get(part, 0) for part in given.parts))
        good = True
        for number, part in enumerate(given.parts):
            print(f"--- {part}: {deadline.left():.0f} s left of all", flush=True)
            share = deadline.share(len(given.parts) - number)
            good &= run_part(part, given, share, configs)
    except (ValueError, OSError, UnavailableError, TooLargeError, ConfigMismatchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"interrupted {stop}", file=sys.stderr)
        return 130
    return 0 if good else 1


def run_part(
    part: str, given: argparse.Namespace, deadline: Deadline, configs: dict[str, Config]
) -> bool:
    """Runs one part and prints what it found; whether all is within its limits."""
    out: Path = given.out
    toy = given.toy
    progress = not given.no_progress
    if part == "correctness":
        checks, complete = correctness.correctness_part(
            given.settings,
            out,
            deadline,
            golden_cases=1 if toy else None,
            first_guess=0.0 if toy else 40.0,
        )
        faults = [check for check in checks if not check.get("ok", True)]
        print(f"{len(checks)} checks{'' if complete else ' before time was over'}:")
        print("\n".join(f"  {correctness.describe(check)}" for check in faults or checks))
        return not faults
    if part == "throughput":
        points = list(throughput.plan(given.settings, given.dtype))
        done, number = throughput.throughput_part(
            points,
            out,
            deadline,
            rounds=given.rounds,
            min_seconds=0.0 if toy else 0.2,
            first_guess=0.0 if toy else 45.0,
        )
        print(throughput.describe(out))
        print(f"{done} of {number} points")
    elif part == "profile":
        rows = profiling.profile_part(
            given.settings,
            given.dtype,
            given.profile_variants,
            out,
            deadline,
            first_guess=0.0 if toy else 30.0,
        )
        print("\n".join(map(profiling.describe, rows)))
    elif part == "search":
        rows = search.search_part(
            given.candidates,
            lambda name: new_config(given, given.search_model, name, given.num_seeds or 1),
            out,
            deadline,
            seconds_each=given.seconds_each,
            reserve=given.reserve_seconds,
            overhead=0.0 if toy else 30.0,
            progress=progress,
        )
        print(search.search_table(rows))
    elif deadline.left() < given.reserve_seconds:
        print("no time left")
    else:
        stop = training.Stop(deadline, given.target, given.reserve_seconds)
        result = training.train_part(configs[part], out, part, stop, progress=progress)
        print(training.describe(part, result))
    return True


def train_config(given: argparse.Namespace, part: str) -> Config:
    """What a training part trains: the run that is in --out, else a new one.

    Raises:
      ConfigMismatchError: the run there has other options than those given with --set.
    """
    there = training.config_there(given.out, part)
    if there is None:
        model = part.removeprefix("train_")
        config = new_config(given, model, given.candidate, given.num_seeds or 3)
        if any(name == "train.steps" for name, _ in given.set):
            return config
        return training.scheduled(config, given.schedule_minutes, given.steps_per_second)
    seeds = [("train.num_seeds", given.num_seeds)] if given.num_seeds else []
    training.check_same(given.out, there, change(there, [*given.set, *seeds]))
    return there


def new_config(given: argparse.Namespace, model: str, candidate: str, num_seeds: int) -> Config:
    """A candidate with the changes given."""
    changes = [*(TOY.items() if given.toy else ()), ("train.num_seeds", num_seeds), *given.set]
    config = training.paced(change(make_config(model, candidate), changes))
    return change(config, given.set)


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
