"""`import rrnn_jax` is light: no training libraries, and little time beyond flax and optax."""

import json
import subprocess
import sys

import pytest

MEASURE = """
import json, sys, time
times = [time.process_time()]
import flax.linen, optax
before = set(sys.modules)
times.append(time.process_time())
import rrnn_jax
times.append(time.process_time())
share = (times[2] - times[1]) / (times[1] - times[0])
print(json.dumps({"share": share, "new": sorted(set(sys.modules) - before)}))
"""
LIMIT = 0.04  # Of the time of flax and optax: 50 ms where they take 1.25 s.
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


def test_import_costs_little(measured):
    shares = [measured["share"]]
    # The fastest of a few: other processes can only make it slower, even in processor time.
    while min(shares) > LIMIT and len(shares) < ATTEMPTS:
        shares.append(measure()["share"])
    assert min(shares) <= LIMIT, shares
