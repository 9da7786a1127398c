"""Programs that compute nothing, and rows made of them."""

import numpy as np

from benchmarks.flops import core_work
from benchmarks.program import Costs, Program, UnavailableError
from benchmarks.settings import SETTINGS

TOY = SETTINGS["toy"]
ENVIRONMENT = {
    "command": "python -m benchmarks.scan_throughput --setting toy",
    "device": "cpu",
    "platform": "cpu",
    "processor": "Abacus",
    "python": "3.11",
    "packages": {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"},
    "torch": None,
    "xla_flags": "",
    "git_commit": "0123456789",
}
COMMON = {"threads": 2, "environment": ENVIRONMENT}


def program(outputs=(1.0, 2.0), run=lambda: None, comparable=True, mode="forward"):
    array = np.array(outputs)
    costs = Costs(0.1, 0.2, 1024, "abc")
    return Program(run, lambda: {"outputs": array}, comparable, 5, 16, core_work(TOY, mode), costs)


def builder(programs):
    """A stand-in for `variants.build`: programs by name; an exception is raised."""

    def build(name, problem, mode):
        found = programs.get(name, UnavailableError("not here"))
        if isinstance(found, Exception):
            raise found
        return found

    return build


def row(variant="auto", *, mode="forward", setting=TOY, seconds=1e-3, speedup=2.0, spread=0.1):
    """A row as `measure` makes it, with numbers of our choice."""
    from benchmarks.roofline import Limits, roofline

    def summary(value):
        low, high = value * (1 - spread), value * (1 + spread)
        return {"median": value, "q1": low, "q3": high, "min": low, "n": 10}

    return COMMON | {
        "schema": 1,
        "status": "ok",
        "reason": None,
        "setting": vars(setting) | {"width": setting.width},
        "mode": mode,
        "variant": variant,
        "reference": "plain",
        "slope": None,
        "options": {},
        "parameters": 5,
        "width": 16,
        "costs": {"trace_seconds": 0.5, "compile_seconds": 1.0, "temporary_bytes": 2048},
        "agreement": {"error": 1e-7, "array": "outputs", "tolerance": 1e-3},
        "seconds": summary(seconds),
        "samples": [seconds] * 10,
        "speedup": summary(speedup),
        "sequences_per_second": setting.batch / seconds,
        "steps_per_second": setting.batch * setting.steps / seconds,
        "roofline": roofline(core_work(setting, mode), Limits(1e9, 1e9, 1e-6), seconds),
    }
