"""What the CUDA kernels refuse and why; how a memory is divided among threads."""

import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.scan.cuda import launch, nvrtc, support
from rrnn_jax.scan.cuda.layout import Gpu, layout_of, warps_of
from rrnn_jax.scan.cuda.recurrence import pack_fragments

BF16 = jnp.dtype(jnp.bfloat16)


def make_cell(**options: Any) -> RelationalMemoryCell:
    return RelationalMemoryCell(**{"mem_slots": 4, "head_size": 16, "num_heads": 4} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 2}, "needs num_blocks=1, got 2"),
        ({"key_size": 4}, "needs key_size=16, got 4"),
        ({"mem_slots": 3}, "needs mem_slots 1, 2, 4, 8 or 16, got 3"),
        ({"head_size": 24}, "needs a multiple of 16 for head_size, got 24"),
        ({"num_heads": 3}, r"needs a multiple of 64 for num_heads \* head_size, got 48"),
        ({"mem_slots": 16, "head_size": 448}, "does not fit: .* more shared memory or registers"),
    ],
)
def test_cells_that_are_refused(options, message):
    reason = support.why_not(make_cell(**options), BF16)
    assert reason is not None
    assert re.match(message, reason), reason


def test_what_else_is_refused():
    assert support.why_not(make_cell(), BF16) is None
    assert support.why_not(make_cell(), jnp.dtype(jnp.float32)) == (
        "needs products in bfloat16 (dtype=jnp.bfloat16), got float32"
    )
    assert support.why_not(make_cell(), BF16, input_rows=4) is None
    assert support.why_not(make_cell(), BF16, input_rows=5) == "needs at most 4 input rows, got 5"


def device(**options: Any) -> Any:
    usual = {"platform": "gpu", "compute_capability": "9.0", "core_count": 132}
    return types.SimpleNamespace(**usual | options)


def reason_on(device: Any) -> str | None:
    return support._why_not_on.__wrapped__(device)


def test_gpus_that_are_refused(monkeypatch):
    assert support.why_not_here() == "needs an NVIDIA GPU, got cpu"
    old = reason_on(device(compute_capability="7.5"))
    assert old == "needs a GPU of compute capability 8.0 or later, got 7.5"
    amd = reason_on(device(compute_capability="gfx90a"))
    assert amd == "needs a GPU of compute capability 8.0 or later, got 0.0"
    monkeypatch.setattr(nvrtc, "_library", lambda: None)
    assert reason_on(device()) == nvrtc.MISSING
    with pytest.raises(nvrtc.CompileError, match="needs NVRTC"):
        nvrtc.compile_ptx("", "x.cu")


def test_a_kernel_that_the_driver_refuses(monkeypatch):
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr(nvrtc, "nvrtc_missing", lambda: False)
    monkeypatch.setattr(nvrtc, "compile_ptx", lambda *_: ".version 8.0")
    monkeypatch.setattr(support, "_capability", lambda _: (9, 0))
    # As a GPU that is a CPU: XLA knows no such call there, as if the driver had refused it.
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    monkeypatch.setattr(support.jax, "default_device", lambda _: jax.log_compiles(False))
    reason = reason_on(gpu)
    assert reason is not None
    assert reason.startswith("cannot run a kernel on this GPU: ")
    assert launch.TARGET in reason
    # One that gives wrong numbers.
    monkeypatch.setattr(support, "ptx_call", lambda *_: lambda x: [x + jnp.uint32(1)])
    assert "gives wrong numbers" in str(reason_on(gpu))
    monkeypatch.setattr(support, "ptx_call", lambda *_: lambda x: [x])
    assert reason_on(gpu) is None
    assert cpu.platform == "cpu"


def test_rows_of_a_block_go_by_batch_and_multiprocessors():
    rl = make_cell(head_size=64, gate_style="memory")
    nth_farthest = make_cell(mem_slots=8, head_size=32, num_heads=8)
    assert layout_of(rl, 32).blocks(32) == 16
    # 12,800 rows: two rounds of 132 blocks of 56 rows.
    layout = layout_of(nth_farthest, 1600)
    assert (layout.rows, layout.blocks(1600), layout.warps) == (56, 229, 16)
    # Fewer where a block has less shared memory; whole sequences of 16 slots. There 8 warps, which
    # share no logits, have room for more rows.
    small = layout_of(nth_farthest, 1600, gpu=Gpu(132, 99 * 1024))
    assert max(small.forward_bytes, small.backward_bytes) <= 99 * 1024
    assert (small.rows, small.warps) == (40, 8)
    assert layout_of(make_cell(mem_slots=16), 100).rows % 16 == 0


def test_a_cluster_holds_the_weights_of_a_block():
    rl = make_cell(head_size=64, gate_style="memory")
    alone, layout = layout_of(rl, 32), layout_of(rl, 32, cluster=4)
    assert (layout.warps, layout.threads, layout.blocks(32)) == (alone.warps, 128, 16)
    weights = 5 * 256 * 256 * 2
    assert 0 < layout.forward_bytes - weights / 4 < 24 * 1024
    assert 0 < layout.backward_bytes - weights / 4 < 52 * 1024
    # Records are in the order of all threads.
    arguments = (32, 2, 0, True)
    assert layout.forward_results(*arguments) == alone.forward_results(*arguments)


def test_clusters_that_are_refused(monkeypatch):
    nth_farthest = make_cell(mem_slots=8, head_size=32, num_heads=8)
    reason = support.why_not(nth_farthest, BF16, 1600, cluster=4)
    assert reason is not None
    assert re.match("does not fit: .* more shared memory", reason)
    assert support.why_not(make_cell(), BF16, cluster=8) == (
        "does not fit: a cluster of 8 needs a multiple of 8 for num_heads, got 4"
    )
    monkeypatch.setattr(support, "_why_not_on", lambda _: None)
    for capability, reason in {
        "9.0": None,
        "8.6": "needs a GPU of compute capability 9.0 for clusters, got 8.6",
    }.items():
        gpu = device(compute_capability=capability)
        monkeypatch.setattr(support, "_default_device", lambda gpu=gpu: gpu)
        assert support.why_not_here(cluster=4) == reason
        assert support.why_not_here() is None


@pytest.mark.parametrize("width", range(64, 1025, 64))
def test_any_width_that_is_a_multiple_of_64(width):
    warps = warps_of(width, 16)
    assert warps
    assert all(width % (16 * n) == 0 for n in warps)
    cell = make_cell(num_heads=width // 16)
    assert support.why_not(cell, BF16) is None


def test_fragments_are_what_a_warp_multiplies_with():
    matrix = np.arange(32 * 16, dtype=np.int32).reshape(1, 32, 16)  # [M, K, N]
    packed = np.asarray(pack_fragments(jnp.asarray(matrix))).reshape(1, 2, 32, 4, 2)
    transposed = matrix[0].T
    for lane, word, half in np.ndindex(32, 4, 2):
        g, t = lane // 4, lane % 4
        row, column = g + 8 * (word % 2), 2 * t + half + 8 * (word // 2)
        assert packed[0, 1, lane, word, half] == transposed[row, 16 + column]
