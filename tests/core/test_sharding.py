"""A batch over two devices: the same gradients, and nothing sent but those of the weights."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.core import meshes
from tests.core.sharded import CASES, WAYS, collectives


def run_program(name: str, devices: int) -> dict[str, Any]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-m", name], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, dict]:
    return run_program("tests.core.sharded", devices=2)


@pytest.fixture(scope="module")
def on_meshes() -> dict[str, Any]:
    return run_program("tests.core.meshes", devices=4)


@pytest.mark.parametrize(("implementation", "flags"), meshes.CASES)
@pytest.mark.parametrize("way", ["explicit", "mapped"])
def test_explicit_axes_and_checked_shard_map(on_meshes, way, implementation, flags):
    assert on_meshes[f"{way}, {implementation}, {flags}"] < 1e-4


@pytest.mark.parametrize("name", ["mapped, carry", "mapped, chunked", "reset by hand"])
def test_carries_are_placed_like_inputs(on_meshes, name):
    assert on_meshes[name] < 1e-4


@pytest.mark.parametrize("name", ["two axes", "kernels"])
def test_nothing_is_gathered(on_meshes, name):
    numbers = on_meshes[name]
    assert numbers["error"] < 1e-4
    assert set(numbers["collectives"]) == {"all-reduce"}, numbers
    assert numbers["collectives"]["all-reduce"] <= numbers["largest_weight"]


def test_parameters_over_devices(on_meshes):
    assert on_meshes["sharded params"]["error"] < 1e-4


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
