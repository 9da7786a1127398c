"""The attention of a memory core while it reads.

``python -m experiments.language_model.attention RUN --text TEXT`` writes ``attention.html``, a
self-contained page, and ``attention.png``. For each token they show, from 0 to 1:

- for each head, and with several slots each slot, the share of its attention to the current token
  instead of the memory;
- the input gate (how much is written) and the forget gate (how much is kept) of each slot, means
  over units.
"""

import argparse
import html
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.cli import exit_code
from experiments.common.records import write_text
from experiments.common.refused import RefusedError
from experiments.language_model.data.corpus import read_text
from experiments.language_model.saved import Saved, load

TEXT = """KING RICHARD III:
Now is the winter of our discontent
Made glorious summer by this sun of York;
"""
PER_LINE = 60
MOST = 5000


class Insides(NamedTuple):
    """Captured values at each of T tokens.

    Attributes:
      tokens: their texts.
      rows: values ``[T]`` from 0 to 1, by name (a head or a gate, and a slot if there are several).
      nats: ``[T]``, the loss of each token.
    """

    tokens: list[str]
    rows: dict[str, np.ndarray]
    nats: np.ndarray


def look_inside(saved: Saved, text: str) -> Insides:
    """Reads a text, and captures attention and gates.

    Raises:
      RefusedError: the model has no memory core, or the text is empty or longer than 5,000 tokens.
    """
    from rrnn_jax.visualize import captured_array

    if saved.config.model != "rmc":
        raise RefusedError(
            f"only the memory core has attention; this model is {saved.config.model}"
        )
    try:
        tokens = saved.vocabulary.encode(text)
    except RefusedError as error:
        raise RefusedError(f"--text, for which there is an English example: {error}") from None
    if not 0 < len(tokens) <= MOST:
        raise RefusedError(f"--text must have 1 to {MOST} tokens, got {len(tokens)}")
    before = np.concatenate([[saved.vocabulary.start], tokens[:-1]]).astype(np.int32)
    # Each token is the input of its own step.
    inputs = tokens[None]
    run: Any = jax.jit(partial(saved.model.apply, mutable=["intermediates"]))
    carry = saved.model.initial_carry(1)
    found, _ = run(saved.params, before[None], inputs, carry)
    _, captured = run(saved.params, inputs, inputs, carry)
    weights = captured_array(captured["intermediates"], "attention_weights")[0]
    slots = weights.shape[-2]
    names = [f"slot {s + 1}, " if slots > 1 else "" for s in range(slots)]
    # [T, blocks, H, S, S + 1]: the slots' attention to the input in the last block.
    to_input = weights[:, -1, :, :, slots:].sum(-1)
    rows = {
        f"{name}head {h + 1} to the input": to_input[:, h, s]
        for s, name in enumerate(names)
        for h in range(to_input.shape[1])
    }
    if saved.config.rmc.gate_style != "none":
        for gate, title in (("input_gate", "written"), ("forget_gate", "kept")):
            found_gate = captured_array(captured["intermediates"], gate)[0]
            means = found_gate.reshape(len(tokens), slots, -1).mean(-1)
            rows |= {f"{name}{title}": means[:, s] for s, name in enumerate(names)}
    shown = [saved.vocabulary.decode([token]).decode(errors="replace") for token in tokens]
    return Insides(shown, rows, -np.asarray(found.likelihood)[0])


def page(insides: Insides, title: str) -> str:
    """The page: a button for each row, and the text coloured by it."""
    values = {**insides.rows, "surprise (up to 8 nats)": np.clip(insides.nats / 8, 0, 1)}
    cells = []
    for t, token in enumerate(insides.tokens):
        tip = "; ".join(f"{name} {row[t]:.2f}" for name, row in insides.rows.items())
        tip += f"; {insides.nats[t]:.2f} nats"
        shown = html.escape(token).replace("\n", "\u23ce\n")
        levels = ",".join(f"{row[t]:.3f}" for row in values.values())
        cells.append(f'<span title="{html.escape(tip)}" data-v="{levels}">{shown}</span>')
    buttons = "".join(
        f'<button onclick="show({i})">{html.escape(name)}</button>' for i, name in enumerate(values)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>
body {{ font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
pre {{ font-size: 1.1em; line-height: 1.7; white-space: pre-wrap }}
button[aria-pressed=true] {{ font-weight: bold }}
</style></head><body>
<h1>{html.escape(title)}</h1>
<p>The darker a token, the higher the value, from the lowest in the text to the highest. Point at
one to see all of them.</p>
<p>{buttons}</p>
<pre>{"".join(cells)}</pre>
<script>
const spans = [...document.querySelectorAll("span")], buttons = document.querySelectorAll("button");
const rows = spans.map(s => s.dataset.v.split(",").map(Number));
function show(i) {{
  const column = rows.map(r => r[i]), low = Math.min(...column), high = Math.max(...column);
  spans.forEach((s, t) => {{
    const share = (column[t] - low) / (high - low || 1);
    s.style.background = `rgba(0, 114, 178, ${{share.toFixed(3)}})`;
    s.style.color = share > 0.6 ? "white" : "black";
  }});
  buttons.forEach((b, j) => b.setAttribute("aria-pressed", j === i));
}}
show(0);
</script></body></html>
"""


def figure(insides: Insides, title: str) -> Any:
    """A Matplotlib figure with rows of cells under the first lines of the text."""
    from rrnn_jax.visualize.style import AMOUNTS, SMALL, WIDTH, add_colour_bar, new_figure

    names = list(insides.rows)
    count = min(len(insides.tokens), 3 * PER_LINE)
    lines = -(-count // PER_LINE)
    drawing = new_figure(2 * WIDTH, 0.6 + lines * (0.25 + 0.17 * len(names)))
    axes: Any = drawing.subplots(lines, 1, squeeze=False)[:, 0]
    image = None
    for line in range(lines):
        places = range(line * PER_LINE, min((line + 1) * PER_LINE, count))
        grid = np.full((len(names), PER_LINE), np.nan)
        for row, name in enumerate(names):
            grid[row, : len(places)] = insides.rows[name][places]
        image = axes[line].imshow(grid, aspect="auto", cmap=AMOUNTS, vmin=0, vmax=1)
        labels = [insides.tokens[t].replace("\n", "\u21b5").replace(" ", "\u00b7") for t in places]
        axes[line].set_xticks(range(len(places)), labels, fontsize=SMALL, family="monospace")
        axes[line].set_yticks(range(len(names)), names, fontsize=SMALL)
        axes[line].tick_params(length=0)
    add_colour_bar(drawing, image, list(axes), "share", shrink=0.8)
    drawing.suptitle(title, fontsize=SMALL + 2)
    return drawing


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.language_model.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory, of one model")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", default=TEXT, help="what is read")
    text.add_argument("--text-file", type=Path, help="file that holds it")
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("runs/language_model/attention"),
        help="where the page and the figure go (default: %(default)s)",
    )
    parser.add_argument("--run-seed", type=int, help="which seed (default: the first)")
    options = parser.parse_args(args)

    def action() -> None:
        saved = load(options.run_dir, options.run_seed)
        text = read_text(options.text_file) if options.text_file else options.text
        insides = look_inside(saved, text)
        title = "What a Relational Memory Core attends to while it reads"
        options.out_dir.mkdir(parents=True, exist_ok=True)
        write_text(options.out_dir / "attention.html", page(insides, title))
        figure(insides, title).savefig(options.out_dir / "attention.png", dpi=150)
        print(options.out_dir / "attention.html")
        print(options.out_dir / "attention.png")

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
