r"""Levels of BoxWorld: boxes, keys and a gem on a grid, distributed as in the authors' generator.

Source: google-deepmind/pycolab, ``pycolab/examples/research/box_world/box_world.py``. A level has
a solution of L boxes and F distractor boxes. With the colours numbered 0 to 19 in a random order
for each level:

* a loose key of colour 1 is accessible;
* box i = 1..L has a lock of colour i and contains key i + 1, the last one the gem;
* each distractor has a lock of a colour in 1..L and contains a key of a colour in L+1..19: opening
  it uses up the key, and the level can no longer be solved.

L, F, locks and keys are uniform. Items are placed one after the other, the loose key first: the
left cell (the content; the lock is on its right) is uniform over the cells in rows 2..G-1 and
columns 2..G-3 with nothing in the rows and columns from one before to one (to the right: two)
after. If an item does not fit, the level is drawn again. The player then gets an empty cell.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.envs.environment import below
from rrnn_jax.scan.mesh import varying_axes, varying_over
from rrnn_jax.typing import Array

NUM_COLOURS = 20
BACKGROUND, BORDER, PLAYER, GEM, KEY, LOCK, DISTRACTOR = 0, 1, 2, 3, 4, 24, 44
"""Contents of a cell: KEY, LOCK and DISTRACTOR (its lock) have colour 0; add c for colour c."""


class Level(NamedTuple):
    """The start of an episode.

    Attributes:
      grid: ``[G+2, G+2]`` uint8, the contents of all cells, with border, without the player.
      player: ``[2]`` int32, row and column.
      solution_length: int32, L.
      num_distractors: int32, F.
    """

    grid: Array
    player: Array
    solution_length: Array
    num_distractors: Array


def most_items(grid_size: int) -> int:
    """An upper bound on the number of boxes, including the loose key, that fit on a grid.

    A box needs a block of two rows and three columns, the loose key one of two columns, and the
    left cells are in rows 2..G-1 and columns 2..G-3.

    >>> most_items(6), most_items(7), most_items(8), most_items(12)
    (2, 4, 6, 15)
    """
    if grid_size < 5:
        return 0
    with_key = (grid_size - 1) // 3
    return with_key + (grid_size - 2) // 3 * ((grid_size - 1) // 2 - 1)


def draw_level(
    key: Array, grid_size: int, lengths: tuple[int, ...], distractors: tuple[int, ...]
) -> Level:
    """Draws a level.

    >>> level = jax.jit(draw_level, static_argnums=(1, 2, 3))(jax.random.key(0), 8, (2,), (1,))
    >>> level.grid.shape, int((level.grid >= LOCK).sum())
    ((10, 10), 3)

    Args:
      key: a PRNG key.
      grid_size: G, without the border (static under jit).
      lengths: values of L to draw from (static).
      distractors: values of F to draw from (static).

    Returns:
      A `Level`.
    """

    def attempt(count: Array) -> tuple[Array, Level, Array]:
        level, fits = _attempt(jax.random.fold_in(key, count), grid_size, lengths, distractors)
        return count + 1, level, fits

    return jax.lax.while_loop(
        lambda carry: ~carry[2], lambda carry: attempt(carry[0]), attempt(jnp.int32(0))
    )[1]


def _attempt(
    key: Array, grid_size: int, lengths: tuple[int, ...], distractors: tuple[int, ...]
) -> tuple[Level, Array]:
    """A level, and whether all items fit."""
    most, others = max(lengths), max(distractors)
    for_sizes, for_colours, for_items, for_places, for_player = jax.random.split(key, 5)
    which = jax.random.uniform(for_sizes, (2,), jnp.float32)
    length = _pick(which[0], lengths)
    number = _pick(which[1], distractors)
    # Ranks of random bits are a random order.
    bits = jax.random.bits(for_colours, (NUM_COLOURS,), jnp.uint32)
    colours = jnp.sum(bits[:, None] > bits[None, :], axis=-1, dtype=jnp.int32)

    box = jnp.arange(1, most + 1, dtype=jnp.int32)
    contents = jnp.where(box == length, GEM, KEY + colours[box + 1])
    fair = jax.random.uniform(for_items, (2, others), jnp.float32)
    locks = 1 + below(fair[0], length)
    keys = length + 1 + below(fair[1], NUM_COLOURS - 1 - length)
    items = {
        "exists": jnp.concatenate(
            [jnp.array([True]), box <= length, jnp.arange(others, dtype=jnp.int32) < number]
        ),
        "content": jnp.concatenate([KEY + colours[1:2], contents, KEY + colours[keys]]),
        "lock": jnp.concatenate(
            [jnp.array([BACKGROUND], jnp.int32), LOCK + colours[box], DISTRACTOR + colours[locks]]
        ),
        "place": jax.random.uniform(for_places, (1 + most + others,), jnp.float32),
    }
    row, column = _coordinates(grid_size)
    inside = (row >= 1) & (row <= grid_size) & (column >= 1) & (column <= grid_size)
    grid = jnp.where(inside, jnp.uint8(BACKGROUND), jnp.uint8(BORDER))
    first = varying_over(varying_axes(items), (grid, jnp.array(True)))
    (grid, fits), _ = jax.lax.scan(_place, first, items)

    # The player's cell: uniform over empty cells in rows 2..G-1 and columns 1..G-1.
    allowed = (row >= 2) & (row <= grid_size - 1) & (column >= 1) & (column <= grid_size - 1)
    start = _choose(jax.random.uniform(for_player, (), jnp.float32), allowed & (grid == BACKGROUND))
    index = jnp.argmax(start.reshape(-1)).astype(jnp.int32)
    player = jnp.stack([index // (grid_size + 2), index % (grid_size + 2)])
    return Level(grid, player, length, number), fits


def _place(carry: tuple[Array, Array], item: dict[str, Any]) -> tuple[tuple[Array, Array], None]:
    """Places one item on the grid, and records whether it fits."""
    grid, fits = carry
    size = grid.shape[0] - 2
    row, column = _coordinates(size)
    empty = grid == BACKGROUND
    # Rows -1..1 and columns -1..2 around a cell; the border is not empty, so rolls may wrap.
    rows = empty & jnp.roll(empty, 1, 0) & jnp.roll(empty, -1, 0)
    free = rows & jnp.roll(rows, 1, 1) & jnp.roll(rows, -1, 1) & jnp.roll(rows, -2, 1)
    free = free & (row >= 2) & (row <= size - 1) & (column >= 2) & (column <= size - 3)
    here = _choose(item["place"], free) & item["exists"]
    has_lock = item["lock"] != BACKGROUND
    grid = jnp.where(here, item["content"].astype(jnp.uint8), grid)
    grid = jnp.where(jnp.roll(here, 1, 1) & has_lock, item["lock"].astype(jnp.uint8), grid)
    return (grid, fits & (jnp.any(free) | ~item["exists"])), None


def _choose(uniform: Array, allowed: Array) -> Array:
    """A mask of one of the allowed cells; empty if none is allowed."""
    order = jnp.cumsum(allowed.reshape(-1), dtype=jnp.int32).reshape(allowed.shape)
    wanted = 1 + below(uniform, order[-1, -1])
    return allowed & (order == wanted)


def _pick(uniform: Array, values: tuple[int, ...]) -> Array:
    """One of `values`."""
    return jnp.array(values, jnp.int32)[below(uniform, jnp.int32(len(values)))]


def _coordinates(grid_size: int) -> tuple[Array, Array]:
    """Row and column of every cell, ``[G+2, G+2]`` each."""
    shape = (grid_size + 2, grid_size + 2)
    return (
        jax.lax.broadcasted_iota(jnp.int32, shape, 0),
        jax.lax.broadcasted_iota(jnp.int32, shape, 1),
    )
