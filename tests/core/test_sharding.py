"""A batch over devices: the same gradients, and nothing sent but those of the weights."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.core import meshes
from tests.core.meshes import collectives
from tests.grids import mostly_slow


@pytest.fixture(scope="module")
def on_meshes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the program finds of all that the tests that run ask for."""
    asked = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and request.fixturename in item.fixturenames
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "tests.core.meshes", *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SENDING = ("two axes", "unchecked", "kernels")
COLLECTIVES = [name for name in meshes.PROGRAMS if name.startswith(SENDING)]
ON_MESHES = [name for name in meshes.PROGRAMS if name not in (*COLLECTIVES, "sharded params")]


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ON_MESHES,
        keep=["explicit, matrix with dropout, hoisted", "mapped, carry"],
    ),
)
def test_explicit_axes_and_checked_shard_map(on_meshes, name):
    assert on_meshes[name] < 1e-4


@pytest.mark.parametrize("name", mostly_slow(COLLECTIVES, keep=["two axes, chunked"]))
def test_nothing_is_gathered(on_meshes, name):
    numbers = on_meshes[name]
    assert numbers["error"] < 1e-4
    assert set(numbers["collectives"]) == {"all-reduce"}, numbers
    assert numbers["collectives"]["all-reduce"] <= numbers["largest_weight"]


@pytest.mark.parametrize("name", ["sharded params"])
def test_parameters_over_devices(on_meshes, name):
    numbers = on_meshes[name]
    assert numbers["error"] < 1e-4
    assert 0 < numbers["bytes"]["hoisted"] <= numbers["bytes"]["scan"], numbers


def test_collectives_of_a_program():
    program = """
      %a = f32[] all-reduce(%x), channel_id=1
      %b = (f32[2,3]{1,0}, f32[4]{0}) all-reduce(%y, %z), channel_id=2
      %c = f32[8,2]{1,0} all-gather-start(%w), dimensions={0}
      %d = f32[8,2]{1,0} add(%all-reduce.1, %p)
    """
    assert collectives(program) == {"all-reduce": 6, "all-gather": 16}
