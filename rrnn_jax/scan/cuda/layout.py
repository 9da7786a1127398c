"""How the kernels divide a memory among threads, and the sizes of their inputs and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.gating import GateStyle, packed_width

Shape = jax.ShapeDtypeStruct

# Tiles of 16 features by 8 rows in one array of a block. With more, the forward pass runs out of
# registers: a multiprocessor has 65,536, and a thread 255 at most.
MOST_TILES = 112
MOST_WARP_TILES = 14
# A multiprocessor runs one block, so more warps hide more latency. With earlier kernels a step of
# Nth Farthest, forward and backward, took 8 warps 1.37 times the cycles of 16 on an H200.
MOST_WARPS = 16
WARPS_EXPONENT = 0.45
SLOTS = (1, 2, 4, 8, 16)
GATE_STYLES = (None, "memory", "unit")  # In the order of core.h.
# Of Layout.ring, the best first. At the size of Nth Farthest, on an H100, 8 is as fast as 4.
RINGS = (4, 2)
# Slices of a matrix that a warp of a cluster prefetches into registers.
AHEAD = 16
# The time of both kernels with clusters of 4, relative to none: on an H100, at the size of RL.
CLUSTER_COST = 0.53
# The cost of reading the weights in one step of a block, in tiles of 8 rows.
STEP_COST = 4


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that the layout depends on.

    Attributes:
      multiprocessors: number of multiprocessors.
      shared_bytes: maximum shared memory of a block.
      clusters: whether it has clusters of multiprocessors.
    """

    multiprocessors: int = 132
    shared_bytes: int = 232_448
    clusters: bool = True

    def at_once(self, cluster: int) -> int:
        """How many blocks, or clusters of multiprocessors, run at the same time.

        A cluster is within one of the GPU's groups of 16 or 18 multiprocessors.
        """
        if cluster == 1:
            return self.multiprocessors
        return max(self.multiprocessors // 18 * (16 // cluster), 1)


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
      ring: slices of a matrix, 16 rows each, that a warp of a block has under way to shared memory.
      cluster: multiprocessors that share a block's warps and hold all weights; 1 for none.
      full_blocks: the first blocks, with all tiles; the others have one less, or two with 16
        slots: the rows of whole sequences. None: all blocks have all.
      wgmma: whether groups of four warps multiply, on GPUs of compute capability 9.0 alone.
      prefetch: whether blocks prefetch what they read from memory into L2, half a step ahead, on
        GPUs of compute capability 9.0 or later.
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
    ring: int = RINGS[0]
    cluster: int = 1
    full_blocks: int | None = None
    wgmma: bool = False
    prefetch: bool = False

    def __post_init__(self) -> None:
        if self.wgmma and (self.cluster > 1 or self.warps % 4 or self.tiles > 7):
            raise ValueError(f"wgmma needs groups of 4 warps, cluster=1, tiles <= 7, got {self}")

    @property
    def rows(self) -> int:
        """Memory rows of a block."""
        return 8 * self.tiles

    @property
    def threads(self) -> int:
        """Threads of a block, in each multiprocessor."""
        return 32 * self.warps // self.cluster

    @property
    def architecture(self) -> str:
        """What the kernels are compiled for."""
        if self.wgmma:
            return "compute_90a"
        return "compute_90" if self.cluster > 1 or self.prefetch else "compute_80"

    @property
    def warp_tiles(self) -> int:
        """Tiles of 16 features in a warp."""
        return self.width // (16 * self.warps)

    @property
    def matrices(self) -> int:
        """Weight matrices ``[F, F]``."""
        return 3 + self.layers + (2 if self.gates == "unit" else 0)

    @property
    def fragments(self) -> int:
        """Of 16 by 16 numbers, that a warp has under way: every product has whole rounds."""
        tiles, slices = self.warp_tiles, self.width // 16
        both = self.gates == "unit"  # Two at a time.
        for ring in (self.ring, RINGS[-1]) if self.cluster == 1 else ():
            fragments = ring * tiles
            rounds = slices % ring == 0 and (not both or slices % (fragments // 2) == 0)
            if rounds and fragments % (2 if both else 1) == 0:
                return fragments
        return 0

    @property
    def qkv_at_once(self) -> int:
        """How many of queries, keys and values the forward pass multiplies at once.

        All where the weights are near and registers allow it: a sum does not wait for the others.
        """
        return 3 if self.cluster > 1 and self.warp_tiles * self.tiles <= 2 else 1

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
        if self.full_blocks is None:
            return math.ceil(batch * self.slots / self.rows)
        tiles = math.ceil(batch * self.slots / 8)
        own = _own(self.slots)
        return (tiles - self.full_blocks * own) // (self.tiles - own)

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
        weights = 512 * self.warps * self.fragments
        if self.cluster > 1:
            weights = 2 * self.matrices * self.width**2 // self.cluster
        tile = 2 * self.rows * (self.width + 8)
        state = 4 * self.rows * self.width // self.cluster
        row = 4 * self.rows
        sums = 2 * self.warps * row
        own = _own(self.slots)
        spread = self.width // self.heads > self.width // self.warps
        scores = 4 * self.warps * self.tiles * ((own + 2) // 2) * 128 if spread else 4
        gates = tile if self.gates == "unit" else 16
        both = 16 + weights + state + sums * buffers + 4 * self.vectors
        forward = both + (tile + gates) * buffers + sums + 4 * row + scores
        backward = both + tile * (2 * buffers - 1) + 10 * row + 2 * scores
        return _up(forward, 16), _up(backward, 16)

    @property
    def bytes(self) -> int:
        """Shared memory of a block, in the pass that needs more."""
        return max(self._shared)

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
            "WGMMA": int(self.wgmma),
            "PREFETCH": int(self.prefetch),
            "AHEAD": math.gcd(AHEAD, self.width // 16),
            "RING": self.fragments,
            "QKV_AT_ONCE": self.qkv_at_once,
            "EARLY": int(self.warp_tiles * self.tiles <= 4),
            "FULL_BLOCKS": -1 if self.full_blocks is None else self.full_blocks,
            "RECORD_FOURS": self.record,
            "VECTOR_SIZE": self.vectors,
            "FORWARD_SHARED": self.forward_bytes,
            "BACKWARD_SHARED": self.backward_bytes,
        }

    def forward_results(self, batch: int, steps: int, save: bool) -> list[Shape]:
        """Outputs of the forward pass: the memories, then the values for the backward pass."""
        none = Shape((8,), jnp.bfloat16)
        rows = Shape((steps, batch, self.slots, self.width), jnp.bfloat16)
        memories = Shape(rows.shape, jnp.float32)
        if not save:
            return [memories, *[none] * 3, Shape((4,), jnp.uint32), Shape((4,), jnp.float32)]
        blocks = self.blocks(batch)
        return [
            memories,
            rows,
            rows if self.gates == "unit" else none,
            Shape((self.layers, *rows.shape), jnp.bfloat16),
            Shape((steps, blocks, self.record, 32 * self.warps, 4), jnp.uint32),
            Shape((steps, 6, blocks, self.rows), jnp.float32),
        ]

    def backward_results(self, batch: int, steps: int) -> list[Shape]:
        """Outputs of the backward pass: cotangents, and the gradients of vectors per block."""
        none, wide = Shape((8,), jnp.bfloat16), Shape((8,), jnp.float32)
        lead = (steps, batch)
        rows = (*lead, self.slots, self.width)
        carry = Shape((batch, *rows[2:]), jnp.float32)
        unit = self.gates == "unit"
        return [
            carry,
            carry if self.flags else wide,
            Shape((*rows[:3], 3 * self.width), jnp.bfloat16),
            Shape((self.layers, *rows), jnp.bfloat16),
            Shape((*rows[:3], 2 * self.width), jnp.bfloat16) if unit else none,
            Shape((*lead, self.gate_width), jnp.float32) if self.gates else wide,
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
    cluster: int | None = None,
) -> Layout:
    """The layout for a cell and a batch.

    Each multiprocessor, or cluster of them, runs one block at a time; with more blocks some must
    wait. The layout is the one with the shortest total time among those that fit.

    Args:
      cell: a cell for which `support.unfit` returns None.
      batch: B.
      input_rows: R.
      flags: whether there are resets or a mask.
      gpu: the GPU to run on (default: an H100).
      tiles: tiles of 8 rows in a block; None (default) selects them.
      cluster: multiprocessors for a block; more than 1 needs compute capability 9.0. None
        (default) selects them.

    Raises:
      ValueError: no block fits on the GPU, or the heads do not divide among the cluster.
    """
    gpu = Gpu() if gpu is None else gpu
    if cluster is not None and cell.num_heads % cluster:
        raise ValueError(
            f"a cluster of {cluster} needs a multiple of {cluster} for num_heads, got "
            f"{cell.num_heads}"
        )
    own = _own(cell.mem_slots)
    groups = math.ceil(batch * cell.mem_slots / (8 * own))
    fixed = (cell.attention_mlp_layers, input_rows, cell.gate_style, flags)
    fitting = []
    for size in ((1, 4) if gpu.clusters else (1,)) if cluster is None else (cluster,):
        for warps in warps_of(cell.mem_size, cell.head_size):
            if warps % size or cell.num_heads % size:
                continue
            # More than one tile in a warp of a cluster was not measured.
            few = cluster is None and size > 1
            if few and (own > 1 or cell.mem_size != 16 * warps):
                continue
            most = most_warp_tiles(warps) // (cell.mem_size // (16 * warps))
            for n in range(own, (1 if few else most) + 1, own) if tiles is None else [tiles]:
                full = _full_blocks(groups, n // own, gpu.at_once(size))
                sizes = (cell.mem_size, cell.num_heads, cell.mem_slots, *fixed, n, warps)
                for ring in RINGS:
                    layout = Layout(*sizes, ring=ring, cluster=size, full_blocks=full)
                    if layout.rows <= layout.threads and layout.bytes <= gpu.shared_bytes:
                        fitting.append(layout)
                        break
    if not fitting:
        raise ValueError(
            f"a block of {8 * own} rows of {cell.mem_size} numbers takes more shared memory or "
            f"registers than the GPU has ({gpu.shared_bytes} bytes)"
        )
    return min(fitting, key=lambda layout: _time(layout, batch, gpu))


def _full_blocks(groups: int, most: int, at_once: int) -> int | None:
    """`Layout.full_blocks`, with the groups divided evenly among the blocks of whole waves."""
    waves = math.ceil(groups / (most * at_once))
    least, more = divmod(groups, waves * at_once)
    return more if most > 1 and more and least == most - 1 else None


def _time(layout: Layout, batch: int, gpu: Gpu) -> float:
    """The time of a step of all blocks, in units of its own."""
    waves = math.ceil(layout.blocks(batch) / gpu.at_once(layout.cluster))
    # In several waves, few multiprocessors have a full block more than once.
    less = 0 if layout.full_blocks is None or waves == 1 else _own(layout.slots)
    one = (STEP_COST + layout.tiles - less) / layout.warps**WARPS_EXPONENT
    return waves * one * (1 if layout.cluster == 1 else CLUSTER_COST)


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


def _own(slots: int) -> int:
    """Tiles of 8 rows of a sequence, or of several short ones."""
    return max(slots // 8, 1)


def _fours(words: int) -> int:
    return math.ceil(words / 4)


def _up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple
