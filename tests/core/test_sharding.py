"""A batch over two devices: the same gradients, and nothing sent but those of the weights."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.core import meshes
from tests.core.sharded import CASES, WAYS, collectives
from tests.grids import mostly_slow


def run_program(name: str, devices: int, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a program finds of all that the tests that run ask for."""
    asked = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.path == request.path and request.fixturename in item.fixturenames
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-m", name, *asked],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, dict]:
    return run_program("tests.core.sharded", 2, request)


@pytest.fixture(scope="module")
def on_meshes(request: pytest.FixtureRequest) -> dict[str, Any]:
    return run_program("tests.core.meshes", 4, request)


COLLECTIVES = ("two axes", "two axes, chunked", "kernels")
ON_MESHES = [name for name in meshes.PROGRAMS if name not in (*COLLECTIVES, "sharded params")]


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ON_MESHES,
        keep=[
            *("explicit, closed over", "explicit, matrix with dropout, hoisted"),
            *("mapped, carry", "reset by hand"),
        ],
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


SHARDED = [f"{way}, {case}" for way in WAYS for case in CASES]


# On two devices; the meshes above have one case of each kind.
@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_batch(found, name):
    numbers = found[name]
    assert numbers["error"] < 1e-5
    # Inputs, memories and all that is made of them stay where they are.
    assert set(numbers["collectives"]) == {"all-reduce"}, numbers
    assert numbers["collectives"]["all-reduce"] <= numbers["largest_weight"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["explicit"])
def test_a_mesh_of_explicit_axes(found, name):
    assert found[name]["error"] < 1e-5


def test_collectives_of_a_program():
    program = """
      %a = f32[] all-reduce(%x), channel_id=1
      %b = (f32[2,3]{1,0}, f32[4]{0}) all-reduce(%y, %z), channel_id=2
      %c = f32[8,2]{1,0} all-gather-start(%w), dimensions={0}
      %d = f32[8,2]{1,0} add(%all-reduce.1, %p)
    """
    assert collectives(program) == {"all-reduce": 6, "all-gather": 16}
