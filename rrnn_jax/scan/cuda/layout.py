"""How the kernels divide a memory among threads, and the sizes of their inputs and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import GateStyle, packed_width
from rrnn_jax.scan.eligible import why_not_step

Shape = jax.ShapeDtypeStruct

# Tiles of 16 features by 8 rows in one array of a block. With more, the forward pass runs out of
# registers: a multiprocessor has 65,536, and a thread 255 at most.
MOST_TILES = 112
MOST_WARP_TILES = 14
# A multiprocessor runs one block, so more warps hide more latency. Measured on an H200 at the size
# of Nth Farthest: a step, forward and backward, takes 8 warps 1.37 times the cycles of 16.
MOST_WARPS = 16
WARPS_EXPONENT = 0.45
SLOTS = (1, 2, 4, 8, 16)
GATE_STYLES = (None, "memory", "unit")  # In the order of core.h.
# The cost of reading the weights in one step of a block, in tiles of 8 rows.
STEP_COST = 4


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that the layout depends on.

    Attributes:
      multiprocessors: number of multiprocessors.
      shared_bytes: maximum shared memory of a block.
    """

    multiprocessors: int = 132
    shared_bytes: int = 232_448


@dataclass(frozen=True)
class Layout:
    """The sizes that the kernels are compiled for; see README.md for the mapping.

    Attributes:
      width: F.
      heads: H.
      slots: S.
      layers: layers of the MLP.
      input_rows: R, rows of each step's input.
      gates: 'unit', 'memory' or None.
      flags: whether there are resets or a mask.
      tiles: tiles of 8 rows in a block.
      warps: warps in a block; each has the same number of features of every row.
      ahead: slices of a matrix, 16 rows each, that a warp prefetches.
      early: whether it reads the first of them before a barrier; None: if registers allow it.
      cluster: multiprocessors that share a block's warps and hold all weights; 1 for none.
    """

    width: int
    heads: int
    slots: int
    layers: int
    input_rows: int
    gates: GateStyle | None
    flags: bool
    tiles: int
    warps: int
    ahead: int = 4
    early: bool | None = None
    cluster: int = 1

    @property
    def rows(self) -> int:
        """Memory rows of a block."""
        return 8 * self.tiles

    @property
    def threads(self) -> int:
        """Threads of a block, in each multiprocessor."""
        return 32 * self.warps // self.cluster

    @property
    def warp_tiles(self) -> int:
        """Tiles of 16 features in a warp."""
        return self.width // (16 * self.warps)

    @property
    def matrices(self) -> int:
        """Weight matrices ``[F, F]``."""
        return 3 + self.layers + (2 if self.gates == "unit" else 0)

    @property
    def vectors(self) -> int:
        """Total size of the concatenated vectors."""
        return (13 + self.layers + (2 if self.gates == "memory" else 0)) * self.width

    @property
    def gate_width(self) -> int:
        """Width of both gates for a slot."""
        return packed_width(self.gates, self.width, output_gate=False)

    def blocks(self, batch: int) -> int:
        """Number of blocks for a batch."""
        return math.ceil(batch * self.slots / self.rows)

    @cached_property
    def record(self) -> int:
        """Size of the values that the forward pass saves per step and thread, in 16 bytes."""
        pairs = 2 * self.warp_tiles * self.tiles
        unit = 2 * self.warp_tiles * _fours(2 * self.tiles) if self.gates == "unit" else 0
        signs = (self.layers - 1) * _fours(math.ceil(2 * pairs / 32))
        return 5 * _fours(pairs) + unit + signs

    @cached_property
    def _shared(self) -> tuple[int, int]:
        buffers = 1 if self.cluster == 1 else 2
        weights = 2 * self.matrices * self.width**2 // self.cluster + 16 if buffers > 1 else 0
        tile = 2 * self.rows * (self.width + 8)
        state = 4 * self.rows * self.width // self.cluster
        row = 4 * self.rows
        sums = 2 * self.warps * row
        own = max(self.slots // 8, 1)
        spread = self.width // self.heads > self.width // self.warps
        scores = 4 * self.warps * self.tiles * ((own + 2) // 2) * 128 if spread else 4
        gates = tile if self.gates == "unit" else 16
        both = weights + state + sums * buffers
        forward = both + (tile + gates) * buffers + sums + 4 * row + scores
        backward = both + tile * (2 * buffers - 1) + 10 * row + 4 * self.vectors + 2 * scores
        return _up(forward, 16), _up(backward, 16)

    @property
    def forward_bytes(self) -> int:
        """Shared memory of a block of the forward pass."""
        return self._shared[0]

    @property
    def backward_bytes(self) -> int:
        """Shared memory of a block of the backward pass."""
        return self._shared[1]

    def macros(self, save: bool) -> dict[str, int]:
        """The macros of the C++ sources; `save`: whether a backward pass follows."""
        few = self.warp_tiles * self.tiles <= 4
        return {
            "CLUSTER": self.cluster,
            "F": self.width,
            "HEADS": self.heads,
            "S": self.slots,
            "LAYERS": self.layers,
            "INPUT_ROWS": self.input_rows,
            "GATES": GATE_STYLES.index(self.gates),
            "FLAGS": int(self.flags),
            "NT": self.tiles,
            "WARPS": self.warps,
            "SAVE": int(save),
            "AHEAD": self.ahead,
            "EARLY": int(few if self.early is None else self.early),
            "RECORD_FOURS": self.record,
            "VECTOR_SIZE": self.vectors,
            "FORWARD_SHARED": self.forward_bytes,
            "BACKWARD_SHARED": self.backward_bytes,
        }

    def forward_results(self, batch: int, steps: int, time_axis: int, save: bool) -> list[Shape]:
        """Outputs of the forward pass: the memories, then the values for the backward pass."""
        none = Shape((8,), jnp.bfloat16)
        lead = (steps, batch) if time_axis == 0 else (batch, steps)
        rows = Shape((*lead, self.slots, self.width), jnp.bfloat16)
        memories = Shape(rows.shape, jnp.float32)
        if not save:
            return [memories, *[none] * 4, Shape((4,), jnp.uint32), Shape((4,), jnp.float32)]
        blocks = self.blocks(batch)
        return [
            memories,
            rows,
            rows if self.gates == "unit" else none,
            rows,
            Shape((self.layers - 1, *rows.shape), jnp.bfloat16) if self.layers > 1 else none,
            Shape((steps, blocks, self.record, 32 * self.warps, 4), jnp.uint32),
            Shape((steps, 6, blocks, self.rows), jnp.float32),
        ]

    def backward_results(self, batch: int, steps: int, time_axis: int) -> list[Shape]:
        """Outputs of the backward pass: cotangents, and the gradients of vectors per block."""
        none, wide = Shape((8,), jnp.bfloat16), Shape((8,), jnp.float32)
        lead = (steps, batch) if time_axis == 0 else (batch, steps)
        rows = (*lead, self.slots, self.width)
        carry = Shape((batch, *rows[2:]), jnp.float32)
        unit, slot = self.gates == "unit", self.gates == "memory"
        return [
            carry,
            carry if self.flags else wide,
            Shape((*rows[:3], 3 * self.width), jnp.bfloat16),
            Shape((self.layers, *rows), jnp.bfloat16),
            Shape((*rows[:3], 2 * self.width), jnp.bfloat16) if unit else none,
            Shape((*rows[:3], 2), jnp.float32) if slot else wide,
            Shape((*lead, self.input_rows, 2, self.width), jnp.bfloat16),
            Shape((self.blocks(batch), self.vectors), jnp.float32),
        ]


def layout_of(
    cell: RelationalMemoryCell,
    batch: int,
    input_rows: int = 1,
    flags: bool = False,
    gpu: Gpu | None = None,
    tiles: int | None = None,
    cluster: int = 1,
) -> Layout:
    """The layout for a cell and a batch.

    Each multiprocessor, or cluster of them, runs one block at a time; with more blocks some must
    wait. The layout is the one with the shortest total time among those that fit.

    Args:
      cell: a cell for which `unfit` returns None.
      batch: B.
      input_rows: R.
      flags: whether there are resets or a mask.
      gpu: the GPU to run on (default: an H100).
      tiles: tiles of 8 rows in a block; None (default) selects them.
      cluster: multiprocessors for a block; more than 1 needs compute capability 9.0.

    Raises:
      ValueError: no block fits on the GPU, or the heads do not divide among the cluster.
    """
    gpu = Gpu() if gpu is None else gpu
    if cell.num_heads % cluster:
        raise ValueError(
            f"a cluster of {cluster} needs a multiple of {cluster} for num_heads, got "
            f"{cell.num_heads}"
        )
    own = max(cell.mem_slots // 8, 1)

    def candidate(warps: int, tiles: int) -> Layout:
        return Layout(
            cell.mem_size,
            cell.num_heads,
            cell.mem_slots,
            cell.attention_mlp_layers,
            input_rows,
            cell.gate_style,
            flags,
            tiles,
            warps,
            cluster=cluster,
        )

    def time(layout: Layout) -> float:
        waves = math.ceil(layout.blocks(batch) / (gpu.multiprocessors // cluster))
        return waves * (STEP_COST + layout.tiles) / layout.warps**WARPS_EXPONENT

    fitting = []
    for warps in warps_of(cell.mem_size, cell.head_size):
        if warps % cluster:
            continue
        most = most_warp_tiles(warps) // (cell.mem_size // (16 * warps))
        sizes = range(own, most + 1, own) if tiles is None else [tiles]
        fitting += [
            layout
            for layout in (candidate(warps, size) for size in sizes)
            if max(layout.forward_bytes, layout.backward_bytes) <= gpu.shared_bytes
            and layout.rows <= layout.threads
        ]
    if not fitting:
        raise ValueError(
            f"a block of {8 * own} rows of {cell.mem_size} numbers takes more shared memory or "
            f"registers than the GPU has ({gpu.shared_bytes} bytes)"
        )
    return min(fitting, key=time)


def warps_of(width: int, head_size: int) -> list[int]:
    """Possible numbers of warps of a block, the most first.

    Each warp has the same number of features; it has whole heads, or a head has whole warps.

    >>> warps_of(256, 32)
    [16, 8, 4, 2]
    """
    return [
        n
        for n in range(MOST_WARPS, 0, -1)
        if width % (16 * n) == 0
        and width // (16 * n) <= most_warp_tiles(n)
        and (width // n % head_size == 0 or head_size % (width // n) == 0)
    ]


def most_warp_tiles(warps: int) -> int:
    """Tiles of a warp in one array at most.

    >>> [most_warp_tiles(n) for n in (4, 8, 12, 16)]
    [14, 14, 9, 7]
    """
    return min(MOST_WARP_TILES, MOST_TILES // warps)


def unfit(cell: RelationalMemoryCell, input_rows: int = 1) -> str | None:
    """The requirement of the kernels that a cell does not meet; None if it meets all."""
    if reason := why_not_step(cell, GATE_STYLES):
        return reason
    if cell.mem_slots not in SLOTS:
        return f"needs mem_slots 1, 2, 4, 8 or 16, got {cell.mem_slots}"
    if cell.head_size % 16:
        return f"needs a multiple of 16 for head_size, got {cell.head_size}"
    if cell.mem_size % 64:
        return f"needs a multiple of 64 for num_heads * head_size, got {cell.mem_size}"
    most = max(cell.mem_slots, 8)
    if input_rows * max(8 // cell.mem_slots, 1) > 8:
        return f"needs at most {min(most, cell.mem_slots)} input rows, got {input_rows}"
    if not warps_of(cell.mem_size, cell.head_size):
        return (
            f"needs a memory that divides among at most {MOST_WARPS} warps with whole heads, got "
            f"num_heads={cell.num_heads}, head_size={cell.head_size}"
        )
    return None


def _fours(words: int) -> int:
    return math.ceil(words / 4)


def _up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple
