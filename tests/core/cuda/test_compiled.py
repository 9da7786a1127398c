"""A training step with the kernels, compiled for an H100 by machines that have none."""

import re

import pytest

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.scan.cuda import nvrtc
from rrnn_jax.scan.cuda.layout import layout_of
from tests.core.cuda import h100

needs_nvrtc = pytest.mark.skipif(nvrtc.nvrtc_missing(), reason="needs NVRTC")


@pytest.mark.skipif(h100.missing() is not None, reason=str(h100.missing()))
@pytest.mark.parametrize(
    ("setting", "operations"),
    [("rl", 70), pytest.param("nth_farthest", 80, marks=pytest.mark.slow)],
)
def test_operations_registers_and_spills(setting, operations):
    found = h100.measure(setting)
    print(found)  # Shown by pytest -rP.
    assert found["kernels"] == 2
    assert 30 < found["operations"] <= operations, found["kinds"]
    spilled = {"rl": (0, 0), "nth_farthest": (100, 250)}[setting]
    for kernel, most in zip(("forward", "backward"), spilled, strict=True):
        assert found[kernel]["spill_stores"] <= most
        assert 90 < found[kernel]["registers"] <= 128


@pytest.mark.slow
@pytest.mark.skipif(h100.missing() is not None, reason=str(h100.missing()))
def test_a_step_of_the_language_model():
    """It reads each kernel once and pads none, and 18 operations each way are enough."""
    found = h100.measure("language")
    print(found)
    forward, backward = found["loops"]
    assert (forward["products"], backward["products"]) == (7, 6)
    assert forward["pads"] == backward["pads"] == 0
    assert 10 < forward["operations"] <= 18
    assert 10 < backward["operations"] <= 18


@needs_nvrtc
def test_ptx_is_for_any_gpu_since_8_0_and_for_drivers_since_525():
    layout = layout_of(RelationalMemoryCell(mem_slots=1, head_size=16, num_heads=4), 2)
    ptx = nvrtc.kernel_ptx("forward", layout, False)
    assert re.findall(r"^\.(?:version|target) (\S+)$", ptx, re.MULTILINE) == ["8.0", "sm_80"]
    assert ".entry rrnn_forward(" in ptx
    probe = nvrtc.compile_ptx((nvrtc.SOURCES / "probe.cu").read_text(), "probe.cu")
    assert {"mma.sync", "ldmatrix.sync", "movmatrix.sync", "tanh.approx"} <= set(
        re.findall(r"[a-z]+\.(?:sync|approx)", probe)
    )


@needs_nvrtc
def test_what_the_compiler_says_is_in_the_error():
    with pytest.raises(nvrtc.CompileError, match=r"NVRTC refuses x\.cu .*\n.*x\.cu\(1\): error"):
        nvrtc.compile_ptx("int f() { return nothing; }", "x.cu")
