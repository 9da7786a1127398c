"""The documents quote what was measured on GPUs."""

import re

from experiments.common.records import read_rows
from rrnn_jax import RelationalMemoryCell
from rrnn_jax.scan.cuda.layout import layout_of
from tests.benchmarks.test_reports import README


def _cells(rows, variants):
    """The cells of a row of a table: the time of the plain scan, and times with speedups."""
    found = {row["variant"]: row for row in rows}
    for variant in variants:
        row = found[variant]
        cell = f"{1e3 * row['seconds']['median']:.3g} ms"
        yield cell + ("" if variant == "plain" else f" ({row['speedup']['median']:.2f})")


def test_the_documents_quote_the_rows_of_gpus():
    text, results = README.read_text(), README.parent / "results"
    sizes = {
        "rl": "RL: B 32, T 40, S 4, F 256",
        "nth_farthest": "Nth Farthest: B 1600, T 8, S 8, F 256",
        "language": "language: B 64, T 100, S 1, F 2500",
    }
    h100 = read_rows(results / "nvidia_h100_80gb_hbm3" / "throughput_bfloat16.jsonl")
    h200 = read_rows(results / "nvidia_h200" / "throughput.jsonl")
    front = (README.parents[1] / "README.md").read_text()
    on_h100, on_h200 = (
        ("plain", "cuda", "fused", "hoisted", "torch"),
        ("plain", "hoisted", "fused", "cuda"),
    )
    for name, rows, variants, on_front in (
        ("rl", h100, on_h100, True),
        ("nth_farthest", h100, on_h100, True),
        ("rl", h200, on_h200, False),
        ("nth_farthest", h200, on_h200, False),
        ("language", h200, on_h200[:2], True),
    ):
        own = [
            row
            for row in rows
            if row["setting"]["name"] == name and row["setting"]["dtype"] == "bfloat16"
        ]
        cells = list(_cells(own, variants))
        assert f"| {sizes[name]} | {' | '.join(cells)} |" in text
        time, speedup = cells[1].split(" (")
        assert not on_front or f" | {cells[0]} | **{speedup[:-1]}** ({time}) | " in front
    least = {
        row["setting"]["name"]: row["roofline"]["least_seconds"]["compute"]
        for row in h100
        if row["variant"] == "cuda"
    }
    for name, step in {"nth_farthest": 3.34, "rl": 1.19}.items():
        assert f" {1e3 * least[name]:.2g} ms" in text
        assert f", {1e5 * least[name] / step:.0f} % of" in " ".join(text.split())
    (lstm,) = (row for row in h100 if row["variant"] == "cudnn_lstm_width")
    assert f"float32 in JAX: {1e3 * lstm['seconds']['median']:.2f} ms at" in text


def test_the_documents_quote_the_kernels_on_an_h100():
    text = README.read_text()
    kernels = (README.parents[1] / "rrnn_jax" / "scan" / "cuda" / "README.md").read_text()
    rows = read_rows(README.parent / "results" / "nvidia_h100_80gb_hbm3" / "kernels.jsonl")
    usual = {"rl": "warps=16 ahead=4", "nth_farthest": "warps=16 tiles=7"}
    layouts = {
        ("nth_farthest", "usual"): "`nth_farthest`: 4 or 5 sequences, ring of 4 slices",
        ("nth_farthest", "ring=8"): "ring of 8",
        ("nth_farthest", "ring=2"): "ring of 2",
        ("nth_farthest", "tiles=4"): "3 or 4 sequences, four rounds",
        ("rl", "usual"): "`rl`: clusters of 4",
        ("rl", "cluster=1"): "no clusters",
    }
    cycles, times = {}, {}
    for kept in rows:
        if kept["part"] == "stages":
            total = sum(kept["cycles_a_step"].values())
            cycles[kept["setting"], kept["kernel"], kept["tree"]] = f"{total / 1000:.0f}k"
        if kept["part"] == "kernels":
            found = [f"{1e3 * kept[key]:.2f}" for key in ("step", "forward", "backward")]
            times[kept["setting"], kept["layout"], kept["tree"]] = found
        if kept["part"] in ("ncu", "sass") and kept["kernel"] == "rrnn_backward":
            assert f"{kept['instructions']:,} instructions" in " ".join(kernels.split())
        if kept["part"] == "ncu" and "no_inst" in kept["stalls"]:
            assert f"in {100 * kept['stalls']['no_inst']:.0f} % of" in " ".join(kernels.split())
        if kept["part"] == "check":
            assert kept["ok"]
            assert f"{kept['kernels']:.4f} against {kept['plain']:.4f} for" in kernels
    for (setting, layout), name in layouts.items():
        step, forward, backward = times[setting, layout, "6faa6bd"]
        assert f"| {name} | {forward} ms | {backward} ms | {step} ms |" in kernels
    for setting, title in {"rl": "RL", "nth_farthest": "Nth Farthest"}.items():
        now, before = times[setting, "usual", "6faa6bd"], times[setting, usual[setting], "af0e584"]
        cells = [f"{before[0]} ms", f"**{now[0]} ms**"]
        cells += [f"{old}, now {new} ms" for old, new in zip(before[1:], now[1:], strict=True)]
        assert f"| {title} | {' | '.join(cells)} |" in text
        names = [
            (kernel, tree) for tree in ("af0e584", "6faa6bd") for kernel in ("forward", "backward")
        ]
        cells = [cycles[setting, kernel, tree] for kernel, tree in names]
        (line,) = (
            x for x in kernels.splitlines() if x.startswith(f"| `{setting}` | ") and "k" in x
        )
        assert re.findall(r"\d+k", line) == cells


def test_traffic_that_is_quoted_follows_from_the_layout():
    layout = layout_of(RelationalMemoryCell(8, 32, 8, attention_mlp_layers=2), 1600)
    operand, weights = 2 * layout.rows * layout.width, 2 * layout.width**2
    usual, groups = (readers * operand + 2 * weights for readers in (16, 4))
    memories = 2 * 4 * layout.rows * layout.width
    backward = 16 * layout.threads * layout.record + memories
    text = " ".join((README.parents[1] / "rrnn_jax/scan/cuda/README.md").read_text().split())
    assert layout.warps == 16
    assert (
        f"moves {round(usual, -4) // 1000} kB through shared memory: X, {operand // 1000} kB,"
        in text
    )
    assert f"these are {round(usual / 128, -2):,.0f} cycles" in text
    assert f"would move {groups // 1000} kB" in text
    assert f"reads about {round(backward, -4) // 1000} kB in each step" in text
