"""A batch over two devices: the same gradients, and nothing sent but those of the weights."""

import json
import os
import subprocess
import sys

import pytest

from tests.core.sharded import CASES, WAYS, collectives


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.sharded"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_batch(found, way, case):
    numbers = found[f"{way}, {case}"]
    assert numbers["error"] < 1e-5
    # Inputs, memories and all that is made of them stay where they are.
    assert set(numbers["collectives"]) == {"all-reduce"}, numbers
    assert numbers["collectives"]["all-reduce"] <= numbers["largest_weight"]


def test_a_mesh_of_explicit_axes(found):
    assert found["explicit"]["error"] < 1e-5


def test_collectives_of_a_program():
    program = """
      %a = f32[] all-reduce(%x), channel_id=1
      %b = (f32[2,3]{1,0}, f32[4]{0}) all-reduce(%y, %z), channel_id=2
      %c = f32[8,2]{1,0} all-gather-start(%w), dimensions={0}
      %d = f32[8,2]{1,0} add(%all-reduce.1, %p)
    """
    assert collectives(program) == {"all-reduce": 6, "all-gather": 16}
