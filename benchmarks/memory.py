"""Working memory of training on long sequences: ``python -m benchmarks.memory --help``.

The memory that the compiler reserves for a training step, without arguments and results; nothing is
run. It always includes the outputs of the core and their cotangents.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import jax_programs
from benchmarks.options import add_shared
from benchmarks.problem import make_problem
from benchmarks.records import about
from benchmarks.settings import SETTINGS, Setting
from experiments.common import markdown
from experiments.common.records import append_rows
from rrnn_jax.scan.dispatch import REMATS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.memory",
        description="Prints the working memory of a training step by length and remat.",
    )
    add = result.add_argument
    add("--setting", choices=sorted(SETTINGS), default="rl", help="sizes (default: rl)")
    add("--batch", type=int, default=2, help="sequences (default: 2)")
    add("--steps", nargs="+", type=int, default=[256, 1024, 4096], help="lengths of a sequence")
    add_shared(add, out=None)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    arguments = parser()
    given = arguments.parse_args(args)
    try:
        settings = [
            SETTINGS[given.setting].replace(batch=given.batch, steps=steps) for steps in given.steps
        ]
    except ValueError as error:
        arguments.error(str(error))
    rows = [row for setting in settings for row in measure(setting)]
    print(table(rows))
    if given.out is not None:
        common = about("memory")
        append_rows(given.out, [common | row for row in rows])
    return 0


def measure(setting: Setting) -> list[dict[str, Any]]:
    """A row for `flax.linen.RNN`, and one for each `remat` of `rrnn_jax.RNN`."""
    problem = make_problem(setting)
    models = {"plain": jax_programs.plain(problem)}
    models |= {f"remat={remat}": jax_programs.ours(problem, "auto", remat) for remat in REMATS}
    rows = []
    for name, model in models.items():
        costs = jax_programs.build(model, problem, "train").costs
        rows.append(
            {
                "setting": setting.describe(),
                "steps": setting.steps,
                "variant": name,
                "temporary_bytes": costs.temporary_bytes,
                "outputs_bytes": problem.loss_weights.nbytes,
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Megabytes by variant and length, as Markdown."""
    lengths = sorted({row["steps"] for row in rows})
    found = {(row["variant"], row["steps"]): row["temporary_bytes"] for row in rows}
    found |= {("the outputs", row["steps"]): row["outputs_bytes"] for row in rows}
    lines = [
        [name, *(f"{found[name, length] / 1e6:,.1f}" for length in lengths)]
        for name in dict.fromkeys(name for name, _ in found)
    ]
    return markdown.table(["MB", *(f"T {length:,}" for length in lengths)], lines)


if __name__ == "__main__":
    sys.exit(main())
