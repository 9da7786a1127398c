"""`import rrnn_jax` is light: no training libraries, and little time beyond flax and optax."""

import json
import os
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
ALLOWED = {"rrnn_jax", "jax", *sys.stdlib_module_names}


def measure() -> dict:
    # With compiled modules, as pip installs them; the first attempt writes those of this package.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def measured() -> dict:
    return measure()


def test_no_other_library_is_imported(measured):
    """On top of Flax and optax, which may import some themselves."""
    new = {name.split(".")[0] for name in measured["new"]}
    assert "rrnn_jax" in new
    assert new <= ALLOWED


def test_import_costs_little(measured):
    shares = [measured["share"]]
    # The fastest of a few: other processes can only make it slower, even in processor time.
    while min(shares) > LIMIT and len(shares) < ATTEMPTS:
        shares.append(measure()["share"])
    assert min(shares) <= LIMIT, shares
