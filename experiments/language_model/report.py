"""The paper's tables of trained runs: ``python -m experiments.language_model.report RUN ...``.

For each run, on the test text (or the validation text if there is none, or a file of your own with
``--read``):

- the loss with the state carried from the first token to the last, in all units;
- by frequency (the paper's Table 3): perplexity of the tokens that occur more than 1,000 times in
  the training text, 100 to 1,000 times, and less, beside that of the training text's frequencies;
- by unroll (the paper's Figure 12): the loss in windows that begin without a state, compared with
  the carried state, without new training.

Writes ``report.json``, ``report.md``, ``frequency.png`` and ``unroll.png`` into a directory.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import markdown
from experiments.common.cli import exit_code
from experiments.common.environment import describe_environment
from experiments.common.plots import looks
from experiments.common.records import write_json, write_text
from experiments.common.refused import RefusedError
from experiments.language_model.data.corpus import describe_source
from experiments.language_model.data.token_files import Split, Tokens, prepare, read_split
from experiments.language_model.problem import per_unit, unigram_losses, unit_of
from experiments.language_model.saved import Saved, load
from experiments.language_model.train import TITLES, TOKENS_DIR, check_text
from rrnn_jax.typing import Array, Carry

UNROLLS = (25, 50, 100, 200, 500)
BOUNDS = (1000, 100)
CARRIED_WINDOW = 1000
TOKENS_PER_CALL, LOGITS_PER_CALL = 1 << 15, 1 << 27
"""About how many tokens of windows are read in parallel; logits of 512 MB at most."""


def carried_nats(saved: Saved, split: Split, window: int = CARRIED_WINDOW) -> np.ndarray:
    """The loss of each token, ``[n]``, with the state carried over the whole text.

    The results do not depend on `window`, except for rounding.
    """
    return _nats(saved, split, window, rows=1, carried=True)


def windowed_nats(saved: Saved, split: Split, window: int) -> np.ndarray:
    """The loss of each token, ``[n]``, each window of the text read without a state before it."""
    window = min(window, len(split.targets))
    together = min(TOKENS_PER_CALL, LOGITS_PER_CALL // saved.vocabulary.size)
    rows = min(-(-len(split.targets) // window), max(1, together // window))
    return _nats(saved, split, window, rows, carried=False)


def _nats(saved: Saved, split: Split, window: int, rows: int, carried: bool) -> np.ndarray:
    """The loss of each token; `rows` windows are read at once."""

    @jax.jit
    def read(params: Any, inputs: Array, targets: Array, carry: Carry) -> tuple[Carry, Array]:
        found: Any = saved.model.apply(params, inputs, targets, carry)
        return found.carry, -found.likelihood

    carry = saved.model.initial_carry(rows)
    count, together = len(split.targets), rows * window
    losses = []
    for first in range(0, count, together):
        # The last windows are padded; the padding comes after all tokens that count.
        inputs, targets = (
            _filled(array[first : first + together], together).reshape(rows, window)
            for array in (split.tokens[:count], split.targets)
        )
        end, nats = read(saved.params, inputs, targets, carry)
        carry = end if carried else carry
        losses.append(np.asarray(nats).ravel())
    return np.concatenate(losses)[:count]


def by_frequency(
    nats: np.ndarray, targets: np.ndarray, counts: np.ndarray, bounds: Sequence[int] = BOUNDS
) -> dict[str, dict[str, float]]:
    """Tokens and perplexity by how often a token occurs in the training text (Table 3).

    >>> found = by_frequency(np.log([2.0, 8.0, 4.0]), np.array([0, 1, 1]), np.array([2000, 5]))
    >>> {name: (row["tokens"], round(row["perplexity"], 2)) for name, row in found.items()}
    {'>1000': (1, 2.0), '<100': (2, 5.66), 'all': (3, 4.0)}

    Args:
      nats: ``[n]``, the loss of each token.
      targets: ``[n]``, the tokens.
      counts: ``[V]``, the count of each token in the training text.
      bounds: the upper and the lower bound of the middle of three groups.

    Returns:
      For each group that has tokens, and for all: ``tokens`` and ``perplexity``.
    """
    high, low = bounds
    often = counts[targets]
    groups = {
        f">{high}": often > high,
        f"{low}-{high}": (often >= low) & (often <= high),
        f"<{low}": often < low,
        "all": np.ones(len(targets), bool),
    }
    return {
        name: {"tokens": int(found.sum()), "perplexity": float(np.exp(nats[found].mean()))}
        for name, found in groups.items()
        if found.any()
    }


def measure(saved: Saved, tokens: Tokens, split: Split, unrolls: Sequence[int]) -> dict[str, Any]:
    """All numbers of the report of one model."""
    targets = np.asarray(split.targets)
    carried = carried_nats(saved, split)
    best = float(carried.mean(dtype=np.float64))
    windows = {
        str(unroll): float(windowed_nats(saved, split, unroll).mean(dtype=np.float64))
        for unroll in unrolls
    }
    return {
        "step": saved.step,
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(saved.params)),
        "split": split.name,
        "tokens": len(targets),
        **per_unit(split, best),
        "by_frequency": by_frequency(carried, targets, tokens.counts),
        "by_unroll": windows,
    }


def report(
    run_dirs: Sequence[Path],
    out_dir: Path,
    unrolls: Sequence[int] = UNROLLS,
    tokens_dir: Path = TOKENS_DIR,
    text: Path | None = None,
    run_seed: int | None = None,
    read: Path | None = None,
) -> dict[str, Any]:
    """Measures runs on one text, and writes tables and figures; see the module.

    Args:
      run_dirs: directories of runs, of one model each.
      out_dir: where tables and figures go.
      unrolls: windows without a state.
      tokens_dir: directory of token files.
      text: where the training text is; None: where it was in training.
      run_seed: a seed of the runs; None: the first.
      read: a text to measure on; None: the test text.

    Raises:
      RefusedError: a run does not exist, the training text is not found or not that of all runs, or
        `read` has characters that the vocabulary does not have.
    """
    if min(unrolls, default=0) < 1:
        raise RefusedError(f"--eval-unroll must be windows of at least 1, got {tuple(unrolls)}")
    models = [load(run_dir, run_seed) for run_dir in run_dirs]
    data = models[0].config.data
    if text is None and data.path is None and data.format not in ("auto", "text"):
        raise RefusedError(f"--text must name the training text, of the format {data.format!r}")
    tokens = prepare(
        dataclasses.replace(data, path=data.path if text is None else str(text)), tokens_dir
    )
    for run_dir in run_dirs:
        check_text(run_dir, tokens, "--text must name that text; --read measures on another")
    split = tokens.splits.get("test") or tokens.splits.get("valid")
    if read is not None:
        split = read_split(read, tokens.vocabulary)
    if split is None:
        raise RefusedError("--read must name a text: there is no test or validation text")
    out_dir.mkdir(parents=True, exist_ok=True)
    measured = [
        (run_dir, TITLES[saved.config.model], measure(saved, tokens, split, unrolls))
        for run_dir, saved in zip(run_dirs, models, strict=True)
    ]
    targets = np.asarray(split.targets)
    frequencies = by_frequency(unigram_losses(tokens.counts)[targets], targets, tokens.counts)
    result = {
        "text": tokens.manifest["sources"] if read is None else [describe_source(read)],
        "unit": unit_of(tokens),
        "environment": describe_environment(),
        "frequencies_alone": frequencies,
        "models": _titled(measured),
    }
    write_json(out_dir / "report.json", result)
    write_text(out_dir / "report.md", tables(result))
    draw(result, out_dir)
    return result


def tables(result: dict[str, Any]) -> str:
    """The report in Markdown."""
    models, unit = result["models"], result["unit"]
    first = next(iter(models.values()))
    groups = list(first["by_frequency"])
    unrolls = list(first["by_unroll"])
    frequencies = {"frequencies alone": result["frequencies_alone"]}
    frequencies |= {name: row["by_frequency"] for name, row in models.items()}
    carried = [
        [name, f"{row['parameters']:,}", f"{row['nats']:.4f}", f"{row['bits_per_byte']:.4f}",
         f"{row['word_perplexity']:.2f}"]
        for name, row in models.items()
    ]  # fmt: skip
    by_group = [
        [name, *(f"{row[group]['perplexity']:,.2f}" for group in groups)]
        for name, row in frequencies.items()
    ]
    by_unroll = [
        [name, *(f"{row['by_unroll'][u]:.4f}" for u in unrolls), f"{row['nats']:.4f}"]
        for name, row in models.items()
    ]
    units = ("parameters", f"nats per {unit}", "bits per byte", "perplexity per word")
    return f"""\
State carried over the whole {first["split"]} text ({first["tokens"]:,} {unit}s):

{markdown.table(["model", *units], carried)}

Perplexity by how often a {unit} occurs in the training text:

{markdown.table(["model", *groups], by_group)}

Nats per {unit} in windows that begin without a state:

{markdown.table(["model", *unrolls, "carried"], by_unroll)}
"""


def draw(result: dict[str, Any], out_dir: Path) -> list[Path]:
    """Draws ``frequency.png`` and ``unroll.png``."""
    from rrnn_jax.visualize import bars_figure
    from rrnn_jax.visualize.style import SMALL, new_figure

    models, unit = result["models"], result["unit"]
    groups = {
        f"{group} times" if group != "all" else "all": {
            name: [row["by_frequency"][group]["perplexity"]] for name, row in models.items()
        }
        for group in next(iter(models.values()))["by_frequency"]
    }
    frequency = bars_figure(
        groups,
        title=f"Perplexity by how often a {unit} occurs in the training text",
        x_label=f"perplexity per {unit}",
    )
    unroll = new_figure(height=3.0)
    axes: Any = unroll.subplots()
    found = looks(models)
    for name, row in models.items():
        windows = [int(window) for window in row["by_unroll"]]
        values = [math.exp(nats) for nats in row["by_unroll"].values()]
        axes.plot(windows, values, marker="o", markersize=3, label=name, **found[name])
        carried = {"color": found[name]["color"], "linestyle": ":"}
        axes.axhline(math.exp(row["nats"]), linewidth=0.8, **carried)
    axes.set_xscale("log")
    unrolls = next(iter(models.values()))["by_unroll"]
    axes.set_xticks([int(window) for window in unrolls], list(unrolls))
    axes.minorticks_off()
    axes.set_xlabel(f"{unit}s per window without state transfer (dotted: carried)")
    axes.set_ylabel(f"perplexity per {unit}")
    axes.tick_params(labelsize=SMALL)
    axes.legend(fontsize=SMALL + 1, frameon=False)
    paths = [out_dir / "frequency.png", out_dir / "unroll.png"]
    for figure, path in zip((frequency, unroll), paths, strict=True):
        figure.savefig(path, dpi=150)
    return paths


def _filled(array: np.ndarray, length: int) -> np.ndarray:
    """The array as int32, with zeros at the end."""
    filled = np.zeros(length, np.int32)
    filled[: len(array)] = array
    return filled


def _titled(measured: Sequence[tuple[Path, str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Numbers by the title of the model, with the run's directory where runs share a model.

    >>> list(_titled([(Path("a"), "LSTM", {}), (Path("b"), "RMC", {}), (Path("c"), "RMC", {})]))
    ['LSTM', 'RMC (b)', 'RMC (c)']
    """
    titles = [title for _, title, _ in measured]
    return {
        title if titles.count(title) == 1 else f"{title} ({run_dir})": numbers
        for run_dir, title, numbers in measured
    }


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.language_model.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dirs", metavar="RUN", nargs="+", type=Path, help="run directories")
    parser.add_argument(
        "--eval-unroll",
        default=",".join(map(str, UNROLLS)),
        help="windows, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--out-dir", type=Path, help="default: `report` in the first run")
    parser.add_argument(
        "--text", type=Path, help="where the training text is (default: as in training)"
    )
    parser.add_argument("--read", type=Path, help="file to measure on (default: the test text)")
    parser.add_argument(
        "--tokens-dir", type=Path, default=TOKENS_DIR, help="token files (default: %(default)s)"
    )
    parser.add_argument("--run-seed", type=int, help="which seed (default: the first)")
    options = parser.parse_args(args)
    out_dir = options.out_dir or options.run_dirs[0] / "report"

    def action() -> None:
        try:
            unrolls = [int(window) for window in options.eval_unroll.split(",")]
        except ValueError:
            raise RefusedError(
                f"--eval-unroll must be numbers separated by commas, got {options.eval_unroll}"
            ) from None
        result = report(
            options.run_dirs,
            out_dir,
            unrolls,
            options.tokens_dir,
            options.text,
            options.run_seed,
            options.read,
        )
        print(tables(result), end="")

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
