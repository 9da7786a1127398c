"""A training step with the kernels, compiled for an H100 by machines that have none."""

import dataclasses
import re

import pytest

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.scan.cuda import nvrtc
from rrnn_jax.scan.cuda.layout import Gpu, layout_of
from tests.core.cuda import h100

needs_nvrtc = pytest.mark.skipif(nvrtc.nvrtc_missing(), reason="needs NVRTC")


@pytest.mark.skipif(h100.missing() is not None, reason=str(h100.missing()))
@pytest.mark.parametrize(
    ("setting", "operations"),
    [
        ("rl", 70),
        pytest.param("rl_block", 70, marks=pytest.mark.slow),
        pytest.param("nth_farthest", 80, marks=pytest.mark.slow),
    ],
)
def test_operations_registers_and_spills(setting, operations):
    found = h100.measure(setting)
    print(found)  # Shown by pytest -rP.
    assert found["kernels"] == 2
    assert 30 < found["operations"] <= operations, found["kinds"]
    spilled = (60, 80) if setting == "nth_farthest" else (0, 0)
    # A multiprocessor has 65,536 for the threads of a block: 512, and 128 in a cluster.
    registers = 255 if setting == "rl" else 128
    for kernel, most in zip(("forward", "backward"), spilled, strict=True):
        assert found[kernel]["spill_stores"] <= most
        assert found[kernel]["shared_bytes"] <= Gpu().shared_bytes
        assert 60 < found[kernel]["registers"] <= registers


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
    cell = RelationalMemoryCell(mem_slots=1, head_size=16, num_heads=4)
    layout = layout_of(cell, 2, cluster=1)
    ptx = nvrtc.kernel_ptx("forward", layout, False)
    assert re.findall(r"^\.(?:version|target) (\S+)$", ptx, re.MULTILINE) == ["8.0", "sm_80"]
    assert ".entry rrnn_forward(" in ptx
    assert "cluster" not in ptx
    probe = nvrtc.compile_ptx((nvrtc.SOURCES / "probe.cu").read_text(), "probe.cu")
    assert {"mma.sync", "ldmatrix.sync", "movmatrix.sync", "tanh.approx"} <= set(
        re.findall(r"[a-z]+\.(?:sync|approx)", probe)
    )


@needs_nvrtc
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_ptx_of_a_cluster_is_for_9_0_and_for_drivers_since_530(kernel):
    cell = RelationalMemoryCell(mem_slots=1, head_size=16, num_heads=4)
    ptx = nvrtc.kernel_ptx(kernel, layout_of(cell, 2, cluster=4), True)
    assert re.findall(r"^\.(?:version|target) (\S+)$", ptx, re.MULTILINE) == ["8.1", "sm_90"]
    assert re.search(r"^\.reqnctapercluster 4, 1, 1$", ptx, re.MULTILINE)
    assert "ld.shared.v4.u32" in ptx  # Weights.
    # All blocks get each message. None waits for global memory in the loop over steps.
    assert ptx.count("st.async") % 4 == 0
    assert ptx.count("barrier.cluster.wait") == 2


@needs_nvrtc
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_ptx_of_groups_of_warps_is_for_9_0_alone(kernel):
    cell = RelationalMemoryCell(mem_slots=8, head_size=16, num_heads=4)
    layout = dataclasses.replace(layout_of(cell, 264), wgmma=True, prefetch=True)
    ptx = nvrtc.kernel_ptx(kernel, layout, True)
    assert re.findall(r"^\.(?:version|target) (\S+)$", ptx, re.MULTILINE) == ["8.0", "sm_90a"]
    products = re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m64n\d+k16)\S+", ptx)
    assert set(products) == {f"m64n{layout.rows}k16"}
    # Operands are shown to them wherever they are written.
    assert 0 < ptx.count("fence.proxy.async.shared::cta") <= ptx.count("bar.sync")
    assert "cp.async.bulk.prefetch.L2.global" in ptx


@pytest.mark.skipif(h100.missing() is not None, reason=str(h100.missing()))
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_products_of_groups_of_warps_overlap(kernel):
    cell = RelationalMemoryCell(8, 32, 8, attention_mlp_layers=2)
    layout = dataclasses.replace(layout_of(cell, 1600), wgmma=True, prefetch=True)
    found = h100.registers(kernel, layout)
    print(found)
    assert found is not None
    assert found["serialized"] == 0
    assert found["spill_stores"] <= 80


def test_groups_of_warps_need_whole_groups():
    layout = layout_of(RelationalMemoryCell(1, 16, 4), 2, cluster=4)
    with pytest.raises(ValueError, match="wgmma needs groups of 4 warps"):
        dataclasses.replace(layout, wgmma=True)


@needs_nvrtc
def test_what_the_compiler_says_is_in_the_error():
    with pytest.raises(nvrtc.CompileError, match=r"NVRTC refuses x\.cu .*\n.*x\.cu\(1\): error"):
        nvrtc.compile_ptx("int f() { return nothing; }", "x.cu")
