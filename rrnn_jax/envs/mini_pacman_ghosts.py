"""The ghosts of Mini-Pacman: their moves, and meetings with Pacman.

Direction codes are those of the published code: 2 right, 3 up, 4 left, 5 down. A new ghost has a
code from 0 to 3. When turning back is excluded, 0 counts as 4 (left) and 1 as 5 (down), but neither
is ever an exit. If a ghost has to keep such a code, 0 moves it down and 1 does not move it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rrnn_jax.envs import mini_pacman_map as maze
from rrnn_jax.typing import Array

_STEPS = np.concatenate([[[1, 0], [0, 0]], maze.DIRECTIONS]).astype(np.int32)
"""``[6, 2]``: the move of each code."""

RANDOM_BRANCH = 0.05


class Ghosts(NamedTuple):
    """Slots for ghosts, in the order in which they move.

    Attributes:
      positions: ``[G, 2]`` int32, row and column.
      directions: ``[G]`` int32, codes.
      alive: ``[G]`` bool: which slots contain a ghost.
    """

    positions: Array
    directions: Array
    alive: Array


class GhostDraws(NamedTuple):
    """The random draws of the moves, ``[G]`` float32 in [0, 1] each.

    Attributes:
      move: a ghost moves if this is below its probability.
      branch: at a junction it takes a random exit if this is below 0.05.
      choice: selects that exit.
    """

    move: Array
    branch: Array
    choice: Array


def move_ghosts(
    ghosts: Ghosts, pacman: Array, power: Array, level: Array, draws: GhostDraws
) -> tuple[Ghosts, Array, Array]:
    """Moves the ghosts one after the other.

    Without power every meeting, before or after a ghost's move, is a death, and the other ghosts
    still move. With power the first ghost met is eaten, and those after it do not move.

    Args:
      ghosts: the ghosts.
      pacman: ``[2]`` int32, his position.
      power: int32, steps of power left.
      level: int32, k.
      draws: the random draws.

    Returns:
      The ghosts, whether one was eaten, and the number of deaths (int32).
    """
    is_powered = power > 0
    chance = 0.5 + 0.1 * (level - 1).astype(jnp.float32)
    chance = jnp.where(is_powered, 0.5 * chance, chance)
    met_before = ghosts.alive & jnp.all(ghosts.positions == pacman[None], axis=-1)
    moves = ghosts.alive & (draws.move < chance) & ~(met_before & is_powered)
    directions = choose_directions(ghosts, pacman, is_powered, draws)
    targets = ghosts.positions + jnp.asarray(_STEPS)[directions]
    blocked = jnp.asarray(maze.MAZE)[targets[:, 0], targets[:, 1]]
    targets = jnp.where(blocked[:, None], ghosts.positions, targets)
    met_after = moves & jnp.all(targets == pacman[None], axis=-1)

    met = met_before | met_after
    count = jnp.cumsum(met, dtype=jnp.int32)
    eaten = met & (count == 1) & is_powered
    is_behind = (count > met.astype(jnp.int32)) & is_powered
    moves = moves & ~is_behind
    moved = Ghosts(
        positions=jnp.where(moves[:, None], targets, ghosts.positions),
        directions=jnp.where(moves, directions, ghosts.directions),
        alive=ghosts.alive & ~eaten,
    )
    deaths = jnp.sum(met_before, dtype=jnp.int32) + jnp.sum(met_after, dtype=jnp.int32)
    return moved, jnp.any(eaten), jnp.where(is_powered, 0, deaths)


def choose_directions(ghosts: Ghosts, pacman: Array, is_powered: Array, draws: GhostDraws) -> Array:
    """The direction of each ghost's next move, ``[G]`` int32 codes.

    Args:
      ghosts: the ghosts.
      pacman: ``[2]`` int32, his position.
      is_powered: whether he has power, bool.
      draws: the random draws.

    Returns:
      ``[G]`` int32.
    """
    positions, codes = ghosts.positions, ghosts.directions
    exits = jnp.asarray(maze.EXITS)[positions[:, 0], positions[:, 1]]  # [G, 4]
    index = jnp.arange(4, dtype=jnp.int32)[None]
    may_keep = jnp.any(exits & (index == codes[:, None] - 2), axis=-1)
    # The index of the backward direction is the code modulo 4, also for the codes 0 and 1.
    ahead = exits & (index != codes[:, None] % 4)
    in_corridor = jnp.where(may_keep, codes, 2 + _first(ahead))

    away = pacman[None] - positions
    towards = jnp.sum(away[:, None] * jnp.asarray(maze.DIRECTIONS)[None], axis=-1)  # [G, 4]
    score = jnp.where(is_powered, -towards, towards)
    best = jnp.max(jnp.where(ahead, score, -1000), axis=-1, keepdims=True)
    greedy = _first(ahead & (score == best))
    order = jnp.cumsum(ahead, axis=-1, dtype=jnp.int32)
    wanted = (draws.choice * order[:, -1].astype(jnp.float32)).astype(jnp.int32)
    wanted = jnp.minimum(wanted, order[:, -1] - 1)
    random = _first(ahead & (order == wanted[:, None] + 1))
    turns = (draws.branch < RANDOM_BRANCH) & ~is_powered
    at_junction = 2 + jnp.where(turns, random, greedy)
    at_junction = jnp.where(jnp.all(away == 0, axis=-1), codes, at_junction)
    return jnp.where(jnp.sum(exits, axis=-1) > 2, at_junction, in_corridor)


def _first(mask: Array) -> Array:
    """The index of the first True of the last axis, int32."""
    return jnp.argmax(mask, axis=-1).astype(jnp.int32)
