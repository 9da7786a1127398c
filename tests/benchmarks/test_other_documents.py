"""The documents quote what was measured of the rest: environments, devices, text, programs."""

from tests.benchmarks.test_cpu_documents import SAID, TEXT, kept, listed


def three_digits(value):
    return f"{float(f'{value:.3g}'):,.0f}"


def test_environments_and_their_share_of_an_update():
    rates = {one["program"]: three_digits(one["steps_per_second"]) for one in kept("environments")}
    for name, rate in rates.items():
        if not name.endswith(("rollout", "update", "environment")):
            title = name.replace("gymnax ", "gymnax's ")
            assert f"| {title} | {rate} |" in TEXT

    def both(preset, part):
        games = ("BoxWorld", "Mini-Pacman")
        return " and ".join(rates[f"{game} {preset}, {part}"] for game in games)

    assert f"the environment alone makes {both('quick', 'environment')} steps per second" in SAID
    acting, learning = both("quick", "rollout"), both("quick", "update")
    assert f"a rollout {acting}, a whole update {learning}: the environment takes" in SAID
    acting, learning = both("paper", "rollout"), both("paper", "update")
    assert f"a rollout makes {acting} steps per second, a whole update {learning}." in SAID
    seconds = {one["program"]: one["seconds"]["median"] for one in kept("environments")}
    stepping, acting = [], []
    for game in ("BoxWorld", "Mini-Pacman"):
        step, rollout, update = (
            seconds[f"{game} quick, {part}"] for part in ("environment", "rollout", "update")
        )
        stepping.append(f"{100 * step / update:.1f}")
        acting.append(f"{100 * (rollout - step) / update:.0f}")
    assert f"takes {listed(stepping)} % of an update, acting {listed(acting)} %," in SAID


def test_devices():
    alone = kept("scaling")[0]["updates_per_second"]
    for one in kept("scaling"):
        if one["kind"] == "measured":
            rate = one["updates_per_second"]
            cells = [one["devices"], one["processes"], f"{rate:.1f}", f"{rate / alone:.2f}"]
            assert f"| {' | '.join(map(str, cells))} |" in TEXT
        else:
            assert [each["kind"] for each in one["collectives"]] == ["all-reduce"]
            chips = "of" if "gpus" in one else "on TPUs one of"
            assert f" {chips} {one['bytes'] / 2**20:.1f} MiB" in SAID
            if "gpus" in one:
                shares = [f"{100 * one['efficiency'][n]:.1f} %" for n in ("8", "64", "1024")]
                said = "efficiency is {} on 8 GPUs, {} on 64, and {} on 1,024.".format(*shares)
                assert said in SAID


def test_language_models():
    titles = {"torch_lstm": "PyTorch's LSTM", "torch_transformer": "transformer in PyTorch"}
    titles |= {"rmc": "Relational Memory Core", "lstm": "LSTM"}
    written = {
        one["program"]: three_digits(one["tokens_per_second"])
        for one in kept("language_model")
        if one["part"] == "write"
    }
    calls = {n: written[f"1 rows, {n} tokens per call"] for n in (512, 1)}
    several = written["32 rows, 512 tokens per call"]
    said = f"{calls[512]} characters per second in calls of 512, {calls[1]} in calls of one, and"
    assert f"The core writes {said} {several} in 32 rows at once." in SAID
    written["rmc"] = calls[512]
    for one in kept("language_model"):
        if one["part"] == "train":
            rate = three_digits(one["tokens_per_second"])
            cells = [titles[one["model"]], f"{one['parameters']:,}", rate]
            assert f"| {' | '.join(cells)} | {written.get(one['model'], '')}".rstrip() in TEXT
        if one["part"] == "softmax":
            cells = [f"{one['seconds'][name]:.2f} s" for name in ("full", "adaptive")]
            cells += [f"{one['times_as_fast']:.1f}"]
            cells += [f"{one[name]['temporary_mib']:,.0f} MiB" for name in ("full", "adaptive")]
            assert f"| {one['words']:,} | {' | '.join(cells)} |" in TEXT
        if one["part"] == "prompt":
            cells = [f"{one['tokens']:,}", f"{one['carry_bytes']} bytes"]
            cells += [f"{one['peak_memory_mib']} MiB"]
            cells += [f"{one[f'microseconds_per_token_{x}']:.1f} µs" for x in ("read", "written")]
            assert f"| {' | '.join(cells)} |" in TEXT
        if one["part"] == "paper":
            assert f"{one['parameters']:,} parameters with {one['words']:,} words" in SAID
            assert f"{one['seconds_per_update']:.1f} s of one processor" in SAID
            assert f"({one['tokens_per_second']:.0f} words/s" in SAID
            assert f"{one['state_mib']:,} MiB of state and {one['temporary_mib']:,} MiB" in SAID
            assert f"the process had {one['peak_memory_mib']:,} MiB at most" in SAID


def test_generated_programs():
    rates = [one["programs_per_second"]["median"] for one in kept("tasks") if "share" not in one]
    jitted, python = rates[::2], rates[1::2]
    ratios = [one / other for one, other in zip(jitted, python, strict=True)]
    said = f"generates {three_digits(min(jitted))} to {three_digits(max(jitted))} programs per"
    assert f"{said} second on one core for task program" in SAID
    assert f", {min(ratios):.0f} to {max(ratios):.0f} times as many as plain Python" in SAID
    shares = [f"{100 * one['share']:.2f} %" for one in kept("tasks") if "share" in one]
    assert {f"batch takes {share} of a training step" in SAID for share in shares} == {True}
