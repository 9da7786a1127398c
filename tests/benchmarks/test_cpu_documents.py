"""The documents quote what was measured on CPUs."""

import statistics
from functools import cache

from benchmarks import check
from benchmarks.check import is_the_reference
from experiments.common.records import read_rows
from tests.benchmarks.test_reports import README

TEXT = README.read_text()
SAID = " ".join(TEXT.split())
SIZES = {
    "cpu": "B 64, T 32, S 8, F 256",
    "nth_farthest_cpu": "Nth Farthest: B 128, T 8, S 8, F 256",
    "rl_cpu": "RL: B 32, T 40, S 4, F 256, gates per slot",
    "language_cpu": "language: B 4, T 20, S 1, F 2500, 5 MLP layers",
}
FIRST = tuple(SIZES)[:3]
TORCH = ("torch", "torch_bmm", "torch_port")


@cache
def kept(name):
    return list(read_rows(README.parent / "results" / f"{name}.jsonl"))


@cache
def by_key(name):
    """Rows by setting, mode, threads, variant and dtype."""
    return {
        (s["name"], row["mode"], row["threads"], row["variant"], s["dtype"]): row
        for row in kept(name)
        for s in [row["setting"]]
        if row["status"] == "ok"
    }


def rows_of(name, variant, mode="train", threads=2, settings=FIRST, dtype="float32"):
    return [by_key(name)[setting, mode, threads, variant, dtype] for setting in settings]


def times_as_fast(row, other):
    """The median over rounds of the other's time, divided by the row's."""
    return statistics.median(a / b for a, b in zip(other["samples"], row["samples"], strict=True))


def over_pytorch(name, setting, mode, threads, variants=TORCH):
    """The speedup over the fastest of PyTorch's variants."""
    found = by_key(name)
    auto = found[setting, mode, threads, "auto", "float32"]
    keys = [(setting, mode, threads, variant, "float32") for variant in variants]
    return min(times_as_fast(auto, found[key]) for key in keys if key in found)


def speedup(row):
    return row["speedup"]["median"]


def two(values):
    return [f"{value:.2f}" for value in values]


def listed(values, unit=""):
    *most, last = values
    return f"{', '.join(most)} and {last}{unit}"


def span(values, digits=0):
    values = list(values)
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def test_the_tables_of_speedups():
    for name, variants in (("cpu", TORCH), ("avx512/cpu", TORCH[:1])):
        for setting, sizes in SIZES.items():
            for mode in ("train", "forward"):
                cells = [
                    speedup(rows_of(name, "auto", mode, threads, [setting])[0])
                    for threads in (1, 2)
                ]
                cells += [
                    over_pytorch(name, setting, mode, threads, variants) for threads in (1, 2)
                ]
                assert f"| {sizes} | {mode} | {' | '.join(two(cells))} |" in TEXT
    name = "cpu_small_heaps"
    for setting in FIRST:
        cells = [speedup(rows_of(name, "auto", "train", n, [setting])[0]) for n in (1, 2)]
        cells += [over_pytorch(name, setting, "train", n) for n in (1, 2)]
        assert f"| {SIZES[setting]} | {' | '.join(two(cells))} |" in TEXT


def test_what_is_said_of_speedups():
    attention = [
        times_as_fast(bmm, fused)
        for n in (1, 2)
        for bmm, fused in zip(
            rows_of("cpu", "torch_bmm", threads=n), rows_of("cpu", "torch", threads=n), strict=True
        )
    ]
    assert f"PyTorch trains up to {max(attention):.1f} times as fast with attention as" in SAID
    again, first = (
        speedup(rows_of(name, "auto", settings=["cpu"])[0]) for name in ("cpu_remat", "cpu")
    )
    assert f"training was {again:.2f} times as fast as the plain scan on two threads" in SAID
    assert f"that measured `remat`, {first:.2f} in the other." in SAID
    compiled = two(map(speedup, rows_of("cpu", "torch_compile")))
    assert f"`torch.compile` trains at {listed(compiled)} times its speed at the first" in SAID
    width, weights = (
        span(map(speedup, rows_of("cpu", f"lstm_{kind}")), digits)
        for kind, digits in (("width", 2), ("params", 0))
    )
    assert f"as many outputs trains at {width} of its speed, one with as many weights at" in SAID
    assert f"weights at {weights} times." in SAID
    pages = two(map(speedup, rows_of("avx512/cpu_large_pages", "auto", settings=SIZES)))
    assert f"training was {listed(pages)} times as fast as the plain scan, both with it" in SAID


def test_what_is_said_of_bfloat16():
    settings = ("cpu", "rl_cpu")
    half = {
        (variant, mode): rows_of("cpu", variant, mode, settings=settings, dtype="bfloat16")
        for variant in ("auto", "torch")
        for mode in ("train", "forward")
    }
    train, forward = (two(map(speedup, half["auto", mode])) for mode in ("train", "forward"))
    assert f"size and at that of RL is {listed(train)} times as fast as the plain scan" in SAID
    assert f"forward {listed(forward)}, and" in SAID
    pairs = zip(half["auto", "train"], half["torch", "train"], strict=True)
    faster = span(times_as_fast(*pair) for pair in pairs)
    assert f", and {faster} times as fast as PyTorch" in SAID
    pairs = zip(half["auto", "train"], rows_of("cpu", "auto", settings=settings), strict=True)
    longer = span((a["seconds"]["median"] / b["seconds"]["median"] for a, b in pairs), 1)
    assert f"a training step takes {longer} times as long as in float32" in SAID


def test_what_is_said_of_the_products():
    def shares(variant, threads=1, name="cpu"):
        rows = rows_of(name, variant, threads=threads)
        return [100 * row["roofline"]["share"] for row in rows]

    def rates(name, threads):
        limits = [
            row["roofline"]["limits"]["flops_per_second"] / 1e9
            for row in rows_of(name, "auto", threads=threads)
        ]
        return span(limits)

    one, both = rates("cpu", 1), rates("cpu", 2)
    assert f"({one} GFLOP/s on one thread, {both} on two)" in SAID
    torch = [max(values) for values in zip(*map(shares, TORCH), strict=True)]
    auto, plain, fastest = (
        listed([f"{x:.0f}" for x in values], " %")
        for values in (shares("auto"), shares("plain"), torch)
    )
    assert f"would take {auto} of a training step's time on one thread at the first three" in SAID
    assert f"three sizes, {plain} of the plain scan's, and {fastest} of PyTorch's." in SAID
    (limit,) = {f"{100 / share:.2f}" for share in torch[:2]}
    assert f"the speedup over PyTorch on one thread would be {limit} at the first two" in SAID
    on_two = listed([f"{x:.0f}" for x in shares("auto", 2)], " %")
    assert f"On two threads the products are {on_two}." in SAID
    for_one, for_two = (
        listed([f"{x:.0f}" for x in shares("auto", n, "avx512/cpu")], " %") for n in (1, 2)
    )
    assert f"are {for_one} of a training step's time on one thread" in SAID
    assert f"first three sizes, {for_two} on two." in SAID
    one, both = rates("avx512/cpu", 1), rates("avx512/cpu", 2)
    assert f"at {one} GFLOP/s on one thread and {both} on two, are" in SAID


def points(*names):
    """Rows of `auto` beside the plain scan's, and whether both ran the same program."""
    place = {
        (str(row["setting"]), row["mode"], row["threads"], row["variant"]): row
        for name in names
        for row in kept(name)
    }
    for (*point, variant), row in place.items():
        if variant == "auto" and row["mode"] != "streaming":
            plain = place[*point, "plain"]
            yield row, plain, is_the_reference(row, [plain])


def test_what_is_said_of_the_sweep():
    found = list(points("cpu", "cpu_sweep"))
    single = [row for row in kept("cpu") if row["mode"] == "streaming"]
    count = len(found) + sum(row["variant"] == "auto" for row in single)
    assert f"finds none among the {count} points" in SAID
    files = [str(README.parent / "results" / name) for name in ("cpu.jsonl", "cpu_sweep.jsonl")]
    assert check.main(files) == 0
    same = [speedup(row) for row, _, is_same in found if is_same]
    assert f"at {len(same)} points both compile the same program" in SAID
    assert f"ratios ({span(same, 2)}) are chance" in SAID
    by_mode = {
        mode: [(row["setting"]["name"], speedup(row)) for row, _, is_same in found if not is_same
               and row["mode"] == mode]
        for mode in ("train", "forward")
    }  # fmt: skip
    train, forward = ([ratio for _, ratio in by_mode[mode]] for mode in ("train", "forward"))
    language = [ratio for name, ratio in by_mode["train"] if name == "language_cpu"]
    others = [ratio for name, ratio in by_mode["train"] if name != "language_cpu"]
    assert f"At the others training is {span(train, 1)} times as fast" in SAID
    assert f"as fast, {statistics.median(others):.2f} in the median around the first" in SAID
    assert f"and {statistics.median(language):.2f} around the language model's" in SAID
    assert f"forward {span(forward, 1)}, {statistics.median(forward):.2f} in the median" in SAID
    base = by_key("cpu")["rl_cpu", "train", 2, "auto", "float32"]["setting"]
    of_steps = [
        row
        for row, _, _ in points("cpu_sweep")
        if row["mode"] == "train" and row["setting"] | {"steps": base["steps"]} == base
    ]
    first, *_, last = sorted(row["setting"]["steps"] for row in of_steps)
    assert f"From {first} to {last} steps at the size of RL" in SAID
    assert f"training is {span(map(speedup, of_steps), 1)} times as fast." in SAID
    with_avx512 = list(points("avx512/cpu", "avx512/cpu_sweep"))
    slow = [row for row, *_ in with_avx512 if speedup(row) < 0.98 and row["speedup"]["q3"] < 1]
    (slowest,) = slow
    assert f"was slower: {speedup(slowest):.2f} at F 32, B 64, T 32, S 8, forward" in SAID
    assert f"one of [{len(with_avx512)} points]" in SAID


def test_what_is_said_of_compiling_and_agreement():
    found = [
        (row, plain)
        for row, plain, _ in points("cpu", "cpu_sweep")
        if row["setting"]["dtype"] == "float32"
    ]

    def seconds(row):
        return row["costs"]["trace_seconds"] + row["costs"]["compile_seconds"]

    def longer(mode):
        return [seconds(row) / seconds(plain) for row, plain in found if row["mode"] == mode]

    train, forward = longer("train"), longer("forward")
    assert f"Tracing and compiling a training step takes {span(train, 1)} times as long" in SAID
    assert f"as long, {statistics.median(train):.1f} in the median of {len(train)} poi" in SAID
    assert f"a forward pass {span(forward, 1)}, {statistics.median(forward):.1f} in the" in SAID
    one = [
        f"{seconds(rows_of('cpu', variant, 'forward', settings=['cpu'])[0]):.1f}"
        for variant in ("auto", "plain")
    ]
    assert f"({one[0]} s against {one[1]} at the first size, two threads)" in SAID
    errors = sorted(row["agreement"]["error"] for row, _ in found if row["mode"] == "train")
    large = [error for error in errors if error > 5e-5]
    others = [error for error in errors if error <= 5e-5]
    said = (
        f" is {one_digit(statistics.median(errors))} in the median, up to {one_digit(others[-1])}"
        f" at most points, {one_digit(large[0])} to {one_digit(large[-1])} at {len(large)} of"
        f" {len(errors)}."
    )
    assert said in SAID


def one_digit(value):
    """2e-4 of 0.00021."""
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def test_what_is_said_of_single_steps():
    def cells(setting):
        found = {
            variant: by_key("cpu")[setting, "streaming", 2, variant, "float32"]
            for variant in ("auto", "torch", "lstm_width", "gru_width")
        }
        return {name: 1e3 * row["seconds"]["median"] for name, row in found.items()}, found

    (first, rows), (second, of_rl) = cells("cpu"), cells("rl_cpu")
    rates = [f"{round(each['auto']['steps_per_second'], -2):,.0f}" for each in (rows, of_rl)]
    assert f"It takes {first['auto']:.2f} ms at the first size ({rates[0]} steps per" in SAID
    assert f"and {second['auto']:.2f} at that of RL ({rates[1]})" in SAID
    shares = [f"{each['auto'] / each['torch']:.2f}" for each in (first, second)]
    assert f"({rates[1]}), {shares[0]} and {shares[1]} of PyTorch's time" in SAID
    gates = [f"{each[f'{name}_width']:.2g}" for each in (first, second) for name in ("lstm", "gru")]
    assert f"take {gates[0]} and {gates[1]} ms at the first size, {gates[2]} and" in SAID
    assert f"{gates[2]} and {gates[3]} at the second" in SAID


def test_the_table_of_memory():
    titles = {
        "plain": "`flax.linen.RNN`",
        "remat=none": '`remat="none"`, `"save_products"`',
        "remat=full": '`remat="full"`',
        "remat=chunked": '`remat="chunked"`',
    }
    found = {(row["setting"][:3], row["variant"], row["steps"]): row for row in kept("memory")}

    def megabytes(variant, steps, size="B 2", name="temporary_bytes", digits=1):
        return f"{found[size, variant, steps][name] / 1e6:,.{digits}f}"

    steps = (256, 1024, 4096)
    for variant, title in titles.items():
        cells = [megabytes(variant, each) for each in steps]
        assert f"| {title} | {' | '.join(cells)} |" in TEXT
    assert all(
        megabytes("remat=none", each) == megabytes("remat=save_products", each) for each in steps
    )
    cells = [megabytes("plain", each, name="outputs_bytes") for each in steps]
    assert f"| the outputs | {' | '.join(cells)} |" in TEXT
    larger = [megabytes(variant, 1024, "B 8", digits=0) for variant in titles]
    assert f"--steps 256 1024`) 1,024 steps take {larger[0]} MB, {', '.join(larger[1:])}." in SAID


def test_the_time_of_recomputing_is_quoted():
    more = {}
    for setting in ("cpu", "rl_cpu"):
        speedups = {
            row["variant"]: row["speedup"]["median"]
            for row in kept("cpu_remat")
            if row["setting"]["name"] == setting and row["variant"] != "plain"
        }
        for name in ("full", "chunked"):
            ratio = speedups["auto"] / speedups[f"auto:{name}"]
            more.setdefault(name, []).append(round(100 * (ratio - 1)))
    full, chunked = (f"{min(found)} to {max(found)} %" for found in more.values())
    compiling = []
    for setting in ("cpu", "rl_cpu"):
        own = {row["variant"]: row["costs"] for row in kept("cpu_remat")
               if row["setting"]["name"] == setting}  # fmt: skip
        costs = own["auto:chunked"], own["plain"]
        compiling.append(costs[0]["compile_seconds"] / costs[1]["compile_seconds"])
    said = f'`remat="full"` takes {full} more time, `"chunked"` {chunked} more'
    assert f"{said}, with {span(compiling, 1)} times the plain scan's compile time" in SAID
    guide = (README.parents[1] / "docs" / "guides" / "long_sequences.md").read_text()
    assert f"{full} more" in guide
    assert f"{chunked} more" in guide


def test_the_front_page_quotes_the_kept_rows():
    found = {}
    for row in kept("cpu_training"):
        if row["variant"] == "auto":
            found[row["setting"]["name"], row["threads"]] = row["speedup"]
    text = (README.parents[1] / "README.md").read_text()
    for name in SIZES:
        cells = (
            "{median:.2f} ({q1:.2f} to {q3:.2f})".format(**found[name, threads])
            for threads in (1, 2)
        )
        assert f"| {SIZES[name]} | {' | '.join(cells)} |" in text
    medians = [found[key]["median"] for key in found if key[1] == 2]
    assert f"| 1 | {min(medians):.1f} to {max(medians):.1f} |" in text


def test_both_scans_are_quoted():
    scans: dict[tuple[str, str], list[str]] = {}  # Sizes and commits.
    for one in kept("cpu_two_scans"):
        if one["variant"] == "auto":
            cell = f"{one['seconds']['median']:.3f} s ({one['speedup']['median']:.2f})"
            key = one["setting"]["name"], one["environment"]["git_commit"]
            scans.setdefault(key, []).append(cell)
    of_training = kept("cpu_training")[0]["environment"]["git_commit"]
    titles = {"nth_farthest_cpu": "the size of Nth Farthest", "cpu": "the first size"}
    for name, title in titles.items():
        present, before = (
            " and ".join(cells)
            for is_present in (True, False)
            for (setting, commit), cells in scans.items()
            if setting == name and (commit == of_training) == is_present
        )
        assert f"at {title} {present}, with the earlier scan {before}" in SAID
