"""`import rrnn_jax` is light: no training libraries, and little time beyond flax and optax."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, sys, time
import flax.linen, optax
before = set(sys.modules)
start = time.process_time()
import rrnn_jax
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "new": sorted(set(sys.modules) - before)}))
"""
LIMIT = 0.050  # seconds
ATTEMPTS = 5
FORBIDDEN = {"matplotlib", "orbax", "tyro", "tqdm", "tensorboardX", "experiments", "pytest"}


def measure() -> dict:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def measured() -> dict:
    return measure()


def test_no_training_library_is_imported(measured):
    new = {name.split(".")[0] for name in measured["new"]}
    assert "rrnn_jax" in new
    # Flax itself may import some of these; what counts is what comes on top.
    assert not new & FORBIDDEN


def test_figures_without_matplotlib_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install matplotlib .*'\.\[experiments\]'"):
        runpy.run_path(str(Path(__file__).parents[1] / "rrnn_jax" / "visualize" / "__init__.py"))


def test_import_costs_little(measured):
    seconds = [measured["seconds"]]
    # The fastest of a few: other processes can only make it slower, even in processor time.
    while min(seconds) > LIMIT and len(seconds) < ATTEMPTS:
        seconds.append(measure()["seconds"])
    assert min(seconds) <= LIMIT, seconds
