"""What the CUDA kernels refuse and why; how a memory is divided among threads."""

import contextlib
import itertools
import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan.cuda import launch, nvrtc, support
from rrnn_jax.scan.cuda.layout import Gpu, Layout, layout_of, warps_of
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
    for slots, rows in ((4, 5), (16, 9)):
        reason = support.why_not(make_cell(mem_slots=slots), BF16, input_rows=rows)
        assert reason == f"needs at most {rows - 1} input rows, got {rows}"
    assert support.why_not(make_cell(), "bfloat16") is None


def test_a_layout_must_fit_the_gpu_that_is_there(monkeypatch):
    rnn = RNN(make_cell(dtype=BF16, head_size=128), implementation="cuda")
    x = jnp.zeros((2, 3, 5), BF16)
    variables = jax.eval_shape(rnn.clone(implementation="scan").init, jax.random.key(0), x)

    def explained() -> str:
        return rnn.apply(variables, x, method="explain")

    monkeypatch.setattr(support, "why_not_here", lambda: None)
    assert explained() == "'cuda' runs"
    monkeypatch.setattr(support, "default_gpu", lambda: Gpu(132, 16 * 1024, clusters=False))
    assert re.search(r"'cuda' does not fit: .* more shared memory", explained())


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


def test_each_process_asks_a_device_of_its_own(monkeypatch):
    mine, other = jax.devices("cpu")[0], types.SimpleNamespace(platform="cpu")
    monkeypatch.setattr(support.jax, "devices", lambda *_: [other, mine])
    assert support._default_device() == mine


def test_a_kernel_that_the_driver_refuses(monkeypatch):
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


def test_rows_of_a_block_go_by_batch_and_multiprocessors():
    rl = make_cell(head_size=64, gate_style="memory")
    nth_farthest = make_cell(mem_slots=8, head_size=32, num_heads=8)
    assert layout_of(rl, 32).blocks(32) == 16
    # 1,600 sequences of 8 rows: three rounds of 132 blocks, 16 with 5 sequences, the others with 4.
    layout = layout_of(nth_farthest, 1600)
    assert (layout.rows, layout.blocks(1600), layout.warps) == (40, 396, 16)
    assert layout.full_blocks == 1600 - 4 * 396
    # The same number for all, if they are enough for whole rounds.
    even = layout_of(nth_farthest, 1584)
    assert even.full_blocks is None
    assert even.rows * even.blocks(1584) == 8 * 1584
    # Fewer rows where a block has less shared memory; whole sequences of 16 slots.
    small = layout_of(nth_farthest, 1600, gpu=Gpu(132, 99 * 1024))
    assert small.bytes <= 99 * 1024
    assert small.rows < layout.rows
    assert layout_of(make_cell(mem_slots=16), 100).rows % 16 == 0


@pytest.mark.parametrize("slots", [1, 2, 8, 16])
@pytest.mark.parametrize("multiprocessors", [2, 7, 132])
def test_blocks_hold_all_sequences_and_no_more(slots, multiprocessors):
    cell, gpu = make_cell(mem_slots=slots), Gpu(multiprocessors)
    for batch in (1, 2, 9, 100, 1000, 1601):
        layout = layout_of(cell, batch, gpu=gpu)
        own = max(slots // 8, 1)
        blocks, full = layout.blocks(batch), layout.full_blocks
        less = 0 if full is None else blocks - full
        tiles = blocks * layout.tiles - less * own
        assert 0 < less < blocks or full is None
        assert 8 * tiles >= batch * slots
        # Without the last block, or without its last group, some would have no place.
        last = own if full is not None else layout.tiles
        assert 8 * (tiles - last) < batch * slots


def test_clusters_where_multiprocessors_would_be_idle():
    rl = make_cell(head_size=64, gate_style="memory")
    assert [layout_of(rl, batch).cluster for batch in (2, 32, 56, 57, 400)] == [4, 4, 4, 1, 1]
    # Not with several tiles in a warp, which were not measured.
    assert layout_of(make_cell(mem_slots=16, head_size=64), 2).cluster == 1
    assert layout_of(rl, 32, gpu=Gpu(clusters=False)).cluster == 1
    # The weights of Nth Farthest do not fit, and 3 heads do not divide.
    assert layout_of(make_cell(mem_slots=8, head_size=32, num_heads=8), 8).cluster == 1
    assert layout_of(make_cell(num_heads=3, head_size=64), 8).cluster == 1


def test_a_cluster_holds_the_weights_of_a_block():
    rl = make_cell(head_size=64, gate_style="memory")
    alone, layout = layout_of(rl, 32, cluster=1), layout_of(rl, 32, cluster=4)
    assert (layout.warps, layout.threads, layout.blocks(32)) == (alone.warps, 128, 16)
    weights = 5 * 256 * 256 * 2
    assert 0 < layout.forward_bytes - weights / 4 < 48 * 1024
    assert 0 < layout.backward_bytes - weights / 4 < 64 * 1024
    # Records are in the order of all threads.
    arguments = (32, 2, True)
    assert layout.forward_results(*arguments) == alone.forward_results(*arguments)


def test_clusters_that_are_refused():
    nth_farthest = make_cell(mem_slots=8, head_size=32, num_heads=8)
    reason = support.why_not(nth_farthest, BF16, 1600, cluster=4)
    assert reason is not None
    assert re.match("does not fit: .* more shared memory", reason)
    assert support.why_not(make_cell(), BF16, cluster=8) == (
        "does not fit: a cluster of 8 needs a multiple of 8 for num_heads, got 4"
    )


def test_clusters_need_their_capability_and_a_driver_that_runs_them(monkeypatch):
    def has_clusters(capability):
        gpu = device(compute_capability=capability)
        monkeypatch.setattr(support, "_default_device", lambda: gpu)
        return support.default_gpu().clusters

    probed = []
    monkeypatch.setattr(support, "_has_clusters", support._has_clusters.__wrapped__)
    monkeypatch.setattr(jax, "default_device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(support, "_probe", lambda cluster: probed.append(cluster))
    assert [has_clusters(each) for each in ("8.6", "9.0", "12.0")] == [False, True, True]
    assert probed == [2, 2]

    def rejected(cluster):
        raise RuntimeError(f"no clusters of {cluster}")

    monkeypatch.setattr(support, "_probe", rejected)
    assert not has_clusters("9.0")


@pytest.mark.parametrize("width", range(64, 1025, 64))
def test_any_width_that_is_a_multiple_of_64(width):
    warps = warps_of(width, 16)
    assert warps
    assert all(width % (16 * n) == 0 for n in warps)
    cell = make_cell(num_heads=width // 16)
    assert support.why_not(cell, BF16) is None


FIRST = [(m, a, k) for m in (0, 1, 2, 3) for k in range(4) for a in (0, 1)]
GATES = [(m, a, k) for a in (0, 1) for k in range(4) for m in (4, 5)]
BACKWARD = [(m, a, k) for m in (4, 5, 3, 0, 1, 2) for k in range(4) for a in (0, 1)]


@pytest.mark.parametrize(("kernel", "order"), [("forward", FIRST + GATES), ("backward", BACKWARD)])
def test_fragments_come_in_the_order_in_which_a_warp_multiplies(kernel, order):
    layout = Layout(64, 1, 8, 1, 1, "unit", flags=False, tiles=1, warps=2)
    matrices = np.arange(6 * 64 * 64, dtype=np.int32).reshape(6, 64, 64)  # [M, K, N]
    packed = np.asarray(pack_fragments(layout, kernel, jnp.asarray(matrices)))
    assert packed.shape == (2, len(order) + layout.fragments, 32, 8)
    np.testing.assert_array_equal(packed[:, len(order) :], packed[:, : layout.fragments])
    packed = packed.reshape(2, -1, 32, 4, 2)
    for warp, (i, (m, a, k)) in itertools.product(range(2), enumerate(order)):
        fragment = matrices[m].T[32 * warp + 16 * a :, 16 * k :]
        for lane, word, half in np.ndindex(32, 4, 2):
            g, t = lane // 4, lane % 4
            row, column = g + 8 * (word % 2), 2 * t + half + 8 * (word // 2)
            assert packed[warp, i, lane, word, half] == fragment[row, column]
