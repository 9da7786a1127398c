"""How the kernels divide a memory among threads, and the sizes of what they read and write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell

Shape = jax.ShapeDtypeStruct

# Of 16 features by 8 rows: a warp's tiles in one array. With more, the forward pass has not
# registers enough (255 a thread).
MOST_TILES = 14
WARPS = range(1, 13)
SLOTS = (1, 2, 4, 8, 16)
# What a step costs a block without any rows, in tiles of 8 rows: the weights come past it.
STEP_COST = 4


@dataclass(frozen=True)
class Gpu:
    """What of a GPU the layout goes by.

    Attributes:
      multiprocessors: how many there are.
      shared_bytes: shared memory that a block may have.
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
      layers: of the MLP.
      input_rows: R, rows of each step's input.
      gates: 'unit', 'memory' or None.
      flags: whether there are resets or a mask.
      tiles: of 8 rows in a block.
      warps: in a block, each with as many features of every row.
      ahead: slices of a matrix, 16 rows each, that a warp reads before it needs them.
      early: whether it reads the first of them before a barrier; None: where registers allow.
    """

    width: int
    heads: int
    slots: int
    layers: int
    input_rows: int
    gates: str | None
    flags: bool
    tiles: int
    warps: int
    ahead: int = 4
    early: bool | None = None

    @property
    def rows(self) -> int:
        """Memory rows of a block."""
        return 8 * self.tiles

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    @property
    def warp_tiles(self) -> int:
        """Of 16 features, in a warp."""
        return self.width // (16 * self.warps)

    @property
    def matrices(self) -> int:
        """Weight matrices ``[F, F]``."""
        return 3 + self.layers + (2 if self.gates == "unit" else 0)

    @property
    def vectors(self) -> int:
        """Numbers in all vectors, one after the other."""
        return (13 + self.layers + (2 if self.gates == "memory" else 0)) * self.width

    @property
    def gate_width(self) -> int:
        """Numbers of both gates for a slot."""
        return {"unit": 2 * self.width, "memory": 2, None: 0}[self.gates]

    def blocks(self, batch: int) -> int:
        """Blocks for a batch."""
        return math.ceil(batch * self.slots / self.rows)

    @cached_property
    def record(self) -> int:
        """What the forward pass keeps of a step for each thread, in pieces of 16 bytes."""
        pairs = 2 * self.warp_tiles * self.tiles
        unit = 2 * self.warp_tiles * _fours(2 * self.tiles) if self.gates == "unit" else 0
        signs = (self.layers - 1) * _fours(math.ceil(2 * pairs / 32))
        return 5 * _fours(pairs) + unit + signs

    @cached_property
    def _shared(self) -> tuple[int, int]:
        tile = 2 * self.rows * (self.width + 8)
        state = 4 * self.rows * self.width
        row = 4 * self.rows
        sums = 2 * self.warps * row
        own = max(self.slots // 8, 1)
        spread = self.width // self.heads > self.width // self.warps
        scores = 4 * self.warps * self.tiles * ((own + 2) // 2) * 128 if spread else 4
        gates = tile if self.gates == "unit" else 16
        forward = tile + gates + state + 2 * sums + 4 * row + scores
        backward = tile + state + sums + 10 * row + 4 * self.vectors + 2 * scores
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
        """What the C++ sources are compiled with; `save`: whether a backward pass is to follow."""
        few = self.warp_tiles * self.tiles <= 4
        return {
            "F": self.width,
            "HEADS": self.heads,
            "S": self.slots,
            "LAYERS": self.layers,
            "INPUT_ROWS": self.input_rows,
            "GATES": [None, "memory", "unit"].index(self.gates),
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
        """What the forward pass leaves; the memories, then what the backward pass is for."""
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
            Shape((steps, blocks, self.record, self.threads, 4), jnp.uint32),
            Shape((steps, 6, blocks, self.rows), jnp.float32),
        ]

    def backward_results(self, batch: int, steps: int, time_axis: int) -> list[Shape]:
        """What the backward pass leaves: cotangents, and the gradients of vectors by block."""
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
) -> Layout:
    """The layout for a cell and a batch.

    Blocks run at the same time on as many multiprocessors as there are; with more blocks some wait
    for others to end. Of all numbers of rows that fit, those that leave the least to wait for.

    Args:
      cell: one that `unfit` finds nothing in.
      batch: B.
      input_rows: R.
      flags: whether there are resets or a mask.
      gpu: to run on (default: an H100).
      tiles: of 8 rows in a block; None (default) chooses.

    Raises:
      ValueError: no block of it fits on the GPU.
    """
    gpu = Gpu() if gpu is None else gpu
    warps = warps_of(cell.mem_size, cell.head_size)
    if warps is None:
        raise ValueError(f"no layout for head_size={cell.head_size}, num_heads={cell.num_heads}")

    def candidate(tiles: int) -> Layout:
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
        )

    own = max(cell.mem_slots // 8, 1)
    most = MOST_TILES // (cell.mem_size // (16 * warps))
    sizes = range(own, most + 1, own) if tiles is None else [tiles]
    fitting = [
        layout
        for layout in map(candidate, sizes)
        if max(layout.forward_bytes, layout.backward_bytes) <= gpu.shared_bytes
    ]
    if not fitting:
        raise ValueError(
            f"a block of {8 * own} rows of {cell.mem_size} numbers takes more shared memory or "
            f"registers than the GPU has ({gpu.shared_bytes} bytes)"
        )

    def time(layout: Layout) -> int:
        waves = math.ceil(layout.blocks(batch) / gpu.multiprocessors)
        return waves * (STEP_COST + layout.tiles)

    return min(fitting, key=time)


def warps_of(width: int, head_size: int) -> int | None:
    """Warps of a block: about 8, and heads whole within a warp, or warps within a head."""
    fitting = [
        n
        for n in WARPS
        if width % (16 * n) == 0
        and width // (16 * n) <= MOST_TILES
        and (width // n % head_size == 0 or head_size % (width // n) == 0)
    ]
    return min(fitting, key=lambda n: (abs(math.log2(n / 8)), -n), default=None)


def unfit(cell: RelationalMemoryCell, input_rows: int = 1) -> str | None:
    """What the kernels want that this cell does not have, as a reason; None if it has all."""
    wanted = {
        "num_blocks": (cell.num_blocks, 1),
        "qkv_norm": (cell.qkv_norm, True),
        "output_gate": (cell.output_gate, False),
        "key_size": (cell.key_size or cell.head_size, cell.head_size),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            return f"needs {name}={needed!r}, got {found!r}"
    if cell.mem_slots not in SLOTS:
        return f"needs mem_slots 1, 2, 4, 8 or 16, got {cell.mem_slots}"
    if cell.head_size % 16:
        return f"needs a multiple of 16 for head_size, got {cell.head_size}"
    if cell.mem_size % 64:
        return f"needs a multiple of 64 for num_heads * head_size, got {cell.mem_size}"
    most = max(cell.mem_slots, 8)
    if input_rows * max(8 // cell.mem_slots, 1) > 8:
        return f"needs at most {min(most, cell.mem_slots)} input rows, got {input_rows}"
    if warps_of(cell.mem_size, cell.head_size) is None:
        return (
            "needs a memory that divides among at most 12 warps with whole heads, got "
            f"num_heads={cell.num_heads}, head_size={cell.head_size}"
        )
    return None


def _fours(words: int) -> int:
    return math.ceil(words / 4)


def _up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple
