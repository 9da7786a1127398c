"""Hand-written policies without memory, to compare agents with: they see what an agent sees.

Both walk to what they want if it is in the window of 5 x 5 cells, by a shortest path within it.
Otherwise they walk on at random, but not back. They know the last action, not the map.

A policy is ``heuristic(obs, last_action) -> [A]`` bool: the actions to draw one of, uniformly.
`last_action` is -1 at the start of an episode. Use `jax.vmap` for a batch.
"""

import jax.numpy as jnp
import numpy as np

from rrnn_jax.checks import check_choice, check_shape
from rrnn_jax.envs import box_world, mini_pacman
from rrnn_jax.envs.box_world_levels import BACKGROUND, BORDER, GEM
from rrnn_jax.envs.environment import WINDOW
from rrnn_jax.typing import Array

_CENTRE = WINDOW // 2
_LONGEST = 16
"""The moves of the longest shortest path within a window from its centre."""


def box_world_heuristic(obs: Array, last_action: Array) -> Array:
    """A policy for `BoxWorld` with a viewport.

    With a key, it wants the cells of the key's colour, which are locks, and the gem if it is loose.
    Without one, it wants all that is loose: what has neither a lock on its right nor a content on
    its left. At the edge of the window a neighbour may be hidden; the next steps decide. It cannot
    tell a distractor's lock from one of the solution.

    >>> import jax
    >>> from rrnn_jax.envs import BoxWorld
    >>> obs, _ = jax.jit(BoxWorld().reset)(jax.random.key(0))
    >>> box_world_heuristic(obs, jnp.int32(-1)).shape
    (4,)

    Args:
      obs: ``[5, 5, 6]``.
      last_action: int32 scalar, -1 at the start of an episode.

    Returns:
      ``[4]`` bool.

    Raises:
      ValueError: `obs` is not that of a viewport.
    """
    check_shape("obs", obs, (WINDOW, WINDOW, 6), "[5, 5, 6]")
    picture, held = obs[..., :3], obs[..., 3:]

    def shows(content: int) -> Array:
        return jnp.all(picture == jnp.asarray(box_world.PALETTE)[content][None, None], axis=-1)

    free = shows(BACKGROUND)
    item = ~(free | shows(BORDER)).at[_CENTRE, _CENTRE].set(True)
    beside = jnp.pad(item, ((0, 0), (1, 1)))
    loose = item & ~beside[:, 2:] & ~beside[:, :-2]
    opens = jnp.any(held > 0, axis=-1) & jnp.all(picture == held, axis=-1)
    goals = jnp.where(jnp.any(held > 0), opens | (loose & shows(GEM)), loose)
    steps = _steps(goals, free, box_world.MOVES, last_action)
    return jnp.where(jnp.any(steps), steps, True)


def mini_pacman_heuristic(
    obs: Array, last_action: Array, mode: mini_pacman.Mode = "regular"
) -> Array:
    """A policy for `MiniPacman` with a viewport.

    It wants food, pills and ghosts, each if the mode rewards it, and ghosts only with power for
    another step. It enters no cell with a dangerous ghost or beside one, and no pill or ghost that
    costs a point or more. Without such a step it stays, or takes any open way if that is dangerous.

    >>> import jax
    >>> from rrnn_jax.envs import MiniPacman
    >>> obs, _ = jax.jit(MiniPacman().reset)(jax.random.key(0))
    >>> mini_pacman_heuristic(obs, jnp.int32(-1)).shape
    (5,)

    Args:
      obs: ``[5, 5, 3]``.
      last_action: int32 scalar, -1 at the start of an episode.
      mode: the mode (static).

    Returns:
      ``[5]`` bool.

    Raises:
      ValueError: `obs` is not that of a viewport, or the mode is unknown.
    """
    check_shape("obs", obs, (WINDOW, WINDOW, 3), "[5, 5, 3]")
    check_choice("mode", mode, tuple(mini_pacman.RULES))
    rules, moves = mini_pacman.RULES[mode], mini_pacman.MOVES
    red, green, blue = obs[..., 0], obs[..., 1], obs[..., 2]
    wall = (red > 0) & (blue > 0)
    food = (red == 0) & (green == 0) & (blue > 0)
    pill = (red == 0) & (green > 0) & (blue > 0)
    ghost = (red > 0) & (blue == 0)
    # The observation shows the power before the next step's decrement.
    prey = ghost & (green * mini_pacman.POWER_STEPS > 1.5)
    danger = ghost & ~prey
    goals = jnp.zeros_like(wall)
    closed = wall | danger | _beside(danger)
    for cells, reward in ((food, rules.food), (pill, rules.pill), (prey, rules.ghost)):
        if reward > 0:
            goals |= cells
        elif reward <= -1:
            closed |= cells
    steps = _steps(goals & ~closed, ~closed, moves, last_action)
    stay = jnp.asarray(~moves.any(-1))
    way_out = jnp.where(closed[_CENTRE, _CENTRE], _at_ends(~wall, moves), stay)
    return jnp.where(jnp.any(steps), steps, way_out)


def _steps(goals: Array, free: Array, moves: np.ndarray, last_action: Array) -> Array:
    """The moves towards the nearest goals, or if none can be reached all but back.

    Args:
      goals: ``[5, 5]`` bool, the wanted cells.
      free: ``[5, 5]`` bool, the cells that may be crossed.
      moves: ``[A, 2]``, row and column of each action; an action without a move is never chosen.
      last_action: int32 scalar or -1.

    Returns:
      ``[A]`` bool; all are False if no move leads to a free cell.
    """
    reached, towards = goals, jnp.zeros((len(moves),), bool)
    for _ in range(_LONGEST):
        towards = jnp.where(jnp.any(towards), towards, _at_ends(reached, moves))
        reached |= _beside(reached) & free
    anywhere = _at_ends(free, moves)
    is_back = jnp.all(jnp.asarray(moves) == -jnp.asarray(moves)[last_action][None], axis=-1)
    onward = anywhere & ~(is_back & (last_action >= 0))
    steps = jnp.where(jnp.any(onward), onward, anywhere)
    return jnp.where(jnp.any(towards), towards, steps)


def _at_ends(cells: Array, moves: np.ndarray) -> Array:
    """``[A]`` bool: whether each move from the centre ends in one of the cells."""
    ends = _CENTRE + moves
    return cells[ends[:, 0], ends[:, 1]] & jnp.asarray(moves.any(-1))


def _beside(cells: Array) -> Array:
    """The cells above, below, left and right of the given ones."""
    padded = jnp.pad(cells, 1)
    across = padded[1:-1, :-2] | padded[1:-1, 2:]
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | across
