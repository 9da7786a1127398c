r"""BoxWorld: open boxes in the right order to reach a gem, seen through a window of 5 x 5 cells.

The paper's second environment (section 4.3 and appendix A.3), with the rules of the authors' code
(google-deepmind/pycolab, ``pycolab/examples/research/box_world``). Levels are described in
`box_world_levels`. **Actions**: 0 up, 1 down, 2 left, 3 right.

* A player who holds the key of a lock's colour can enter the lock, which removes lock and key.
* A key or the gem can be entered unless there is a lock on its right; a new key replaces the one
  held.
* **Rewards**: +1 for a lock of the solution; -1 for a distractor's lock, which ends the episode;
  +10 for the gem, which ends it. The maximum return is L + 10.
* The step after `max_steps` also ends the episode. It is part of the task and *terminates* it.

**Observations**, float32 in [0, 1]. With a viewport ``[5, 5, 6]``: the window around the player in
RGB, black outside the grid, and a frame filled with the colour of the key held, black without
one ("appended with an extra frame denoting the color of the key currently in possession").
Without a viewport ``[G+2, G+2, 3]``: the grid with its border, and the key held as pixel (0, 0).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rrnn_jax.checks import check_flag, check_positive, check_tuple
from rrnn_jax.envs.box_world_levels import (
    BACKGROUND,
    BORDER,
    DISTRACTOR,
    GEM,
    KEY,
    LOCK,
    NUM_COLOURS,
    PLAYER,
    Level,
    draw_level,
    most_items,
)
from rrnn_jax.envs.environment import WINDOW, Environment, Transition, at
from rrnn_jax.envs.spaces import Box
from rrnn_jax.typing import Array

# The 20 hues of the authors' code, in thousandths of RGB.
_HUES = np.array(
    [
        [700, 350, 350], [700, 454, 350], [700, 559, 350], [700, 664, 350], [629, 700, 350],
        [524, 700, 350], [420, 700, 350], [350, 700, 384], [350, 700, 490], [350, 700, 595],
        [350, 700, 700], [350, 594, 700], [350, 490, 700], [350, 384, 700], [419, 350, 700],
        [524, 350, 700], [630, 350, 700], [700, 350, 665], [700, 350, 559], [700, 350, 455],
    ]
)  # fmt: skip
PALETTE = np.concatenate([[[800] * 3, [0] * 3, [500] * 3, [999] * 3], _HUES, _HUES, _HUES]).astype(
    np.float32
) / np.float32(1000)
"""RGB of the contents of a cell; a distractor looks like any other box."""

MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]], np.int32)


class BoxWorldParams(struct.PyTreeNode):
    """Parameters; all but `max_steps` and `levels` are static under jit.

    The defaults are the paper's.

    A level is drawn again and again until all its boxes fit at random places. With almost as many
    as the grid has room for, that can take forever: 15 on a grid of 12 fit in one attempt of 40,
    24 on a grid of 14 in none of 1,500.

    Attributes:
      grid_size: G, without the border (default: 12).
      solution_length: values of L to draw from (default: 1 to 5).
      num_distractors: values of F to draw from (default: 0 to 5).
      viewport: whether to observe 5 x 5 cells only (default: True).
      max_steps: the step after this many ends the episode (default: 120).
      levels: a pool of levels ``[P, ...]`` for episodes, or None (default): a level is drawn for
        every episode.

    Raises:
      ValueError: a size out of range, or more boxes than fit on the grid.
      TypeError: a size that is not an integer, or a `viewport` that is not a bool.
    """

    grid_size: int = struct.field(pytree_node=False, default=12)
    solution_length: tuple[int, ...] = struct.field(pytree_node=False, default=(1, 2, 3, 4, 5))
    num_distractors: tuple[int, ...] = struct.field(pytree_node=False, default=(0, 1, 2, 3, 4, 5))
    viewport: bool = struct.field(pytree_node=False, default=True)
    max_steps: int = 120
    levels: Level | None = None

    def __post_init__(self) -> None:
        check_positive(grid_size=self.grid_size)
        # NumPy's integers would widen those of the state.
        object.__setattr__(self, "grid_size", int(self.grid_size))
        for name in ("solution_length", "num_distractors"):
            check_tuple("(1, 2)", **{name: getattr(self, name)})
            if not getattr(self, name):
                raise ValueError(f"{name} must hold a value or more")
        for length in self.solution_length:
            check_positive(solution_length=length)
        for number in self.num_distractors:
            check_positive(least=0, num_distractors=number)
        check_flag(viewport=self.viewport)
        longest, most = max(self.solution_length), max(self.num_distractors)
        if longest > NUM_COLOURS - 2:
            raise ValueError(
                f"solution_length must be at most {NUM_COLOURS - 2}, two less than there are "
                f"colours, got {longest}"
            )
        items, room = 1 + longest + most, most_items(self.grid_size)
        if items > room:
            raise ValueError(
                f"grid_size={self.grid_size} has room for {room} items at most, but a loose key, "
                f"solution_length={longest} and num_distractors={most} make {items}"
            )


class BoxWorldState(struct.PyTreeNode):
    """The state of an episode.

    Attributes:
      grid: ``[G+2, G+2]`` uint8, see `Level`.
      player: ``[2]`` int32, row and column.
      held: int32, the colour of the key held, -1 without one.
      time: int32, steps taken.
      solution_length: int32, L of the level.
      num_distractors: int32, F of the level.
    """

    grid: Array
    player: Array
    held: Array
    time: Array
    solution_length: Array
    num_distractors: Array


class BoxWorld(Environment[BoxWorldState, BoxWorldParams]):
    """BoxWorld; see the module's description.

    >>> env = BoxWorld(grid_size=8, solution_length=(1, 2), num_distractors=(0, 1))
    >>> params = env.default_params
    >>> obs, state = jax.jit(env.reset)(jax.random.key(0), params)
    >>> obs.shape
    (5, 5, 6)

    256 environments, with a pool of 1,000 levels:

    >>> draw_levels = jax.jit(env.draw_levels, static_argnums=1)
    >>> params = params.replace(levels=draw_levels(jax.random.key(2), 1000))
    >>> keys, actions = jax.random.split(jax.random.key(3), 256), jnp.zeros((256,), jnp.int32)
    >>> obs, state = jax.jit(jax.vmap(env.reset, (0, None)))(keys, params)
    >>> step = jax.jit(jax.vmap(env.step, (0, 0, 0, None)))
    >>> obs, state, reward, done, info = step(keys, state, actions, params)
    >>> obs.shape, reward.shape, bool(done.any())
    ((256, 5, 5, 6), (256,), False)

    Args:
      **params: fields of `BoxWorldParams`, for `default_params`.
    """

    can_truncate = False
    counts = ("max_steps",)

    def __init__(self, **params: object) -> None:
        self.default_params = self._params(BoxWorldParams(**params))  # type: ignore[arg-type]

    @property
    def num_actions(self) -> int:
        """4: up, down, left, right."""
        return len(MOVES)

    def observation_space(self, params: BoxWorldParams | None = None) -> Box:
        """``[5, 5, 6]``, or ``[G+2, G+2, 3]`` without a viewport."""
        params = self._params(params)
        side = params.grid_size + 2
        return Box(0.0, 1.0, (WINDOW, WINDOW, 6) if params.viewport else (side, side, 3))

    def draw_level(self, key: Array, params: BoxWorldParams) -> Level:
        """See `box_world_levels.draw_level`."""
        return draw_level(key, params.grid_size, params.solution_length, params.num_distractors)

    def start(self, level: Level, params: BoxWorldParams) -> BoxWorldState:
        """The first state on a level."""
        del params
        return BoxWorldState(held=jnp.int32(-1), time=jnp.int32(0), **level._asdict())

    def transition(
        self, key: Array, state: BoxWorldState, action: Array, params: BoxWorldParams
    ) -> Transition:
        """One step, which is deterministic. ``info["solved"]``: the gem was taken."""
        del key
        target = state.player + jnp.asarray(MOVES)[action]
        side = params.grid_size + 2
        cells, index = state.grid.reshape(-1), target[0] * side + target[1]
        cell = at(cells, index).astype(jnp.int32)
        right = at(cells, index + 1).astype(jnp.int32)
        is_lock = cell >= LOCK
        is_distractor = cell >= DISTRACTOR
        is_key = (cell >= KEY) & (cell < LOCK)
        is_gem = cell == GEM
        colour = jnp.where(is_distractor, cell - DISTRACTOR, cell - LOCK)
        may_open = is_lock & (colour == state.held)
        may_take = (is_key | is_gem) & (right < LOCK)
        enters = (cell == BACKGROUND) | may_open | may_take

        taken = jnp.where(may_take & is_key, cell - KEY, state.held)
        here = jax.lax.iota(jnp.int32, side * side) == index
        grid = jnp.where(here & enters, jnp.uint8(BACKGROUND), cells).reshape(side, side)
        new = state.replace(
            grid=grid,
            player=jnp.where(enters, target, state.player),
            held=jnp.where(may_open, -1, taken),
            time=state.time + 1,
        )
        solved = may_take & is_gem
        reward = jnp.where(may_open, jnp.where(is_distractor, -1.0, 1.0), 0.0)
        reward = jnp.where(solved, 10.0, reward).astype(jnp.float32)
        done = solved | (may_open & is_distractor) | (new.time > params.max_steps)
        return Transition(new, new, reward, done, jnp.zeros_like(done), {"solved": solved})

    def get_obs(self, state: BoxWorldState, params: BoxWorldParams) -> Array:
        """The observation of a state."""
        palette = jnp.asarray(PALETTE)
        if not params.viewport:
            return at(palette, self.frame(state))
        offset = np.arange(WINDOW, dtype=np.int32) - WINDOW // 2
        # Outside the grid is black like its border, so positions are clipped to the border.
        rows, columns = jnp.clip(state.player[:, None] + offset[None], 0, params.grid_size + 1)
        window = at(state.grid, (rows[:, None], columns[None, :]))
        is_centre = (offset[:, None] == 0) & (offset[None, :] == 0)
        held = at(palette, jnp.where(state.held < 0, BORDER, KEY + state.held))
        extra = jnp.broadcast_to(held, (WINDOW, WINDOW, 3))
        return jnp.concatenate([at(palette, jnp.where(is_centre, PLAYER, window)), extra], axis=-1)

    def frame(self, state: BoxWorldState) -> Array:
        """The whole grid as in the authors' code.

        Returns:
          ``[G+2, G+2]`` uint8: 0 background, 1 border, 2 player, 3 gem, 4 + c a key and 24 + c a
          lock of colour c. The key held is at (0, 0).
        """
        row = jax.lax.broadcasted_iota(jnp.int32, state.grid.shape, 0)
        column = jax.lax.broadcasted_iota(jnp.int32, state.grid.shape, 1)
        frame = jnp.where(state.grid >= DISTRACTOR, state.grid - NUM_COLOURS, state.grid)
        is_player = (row == state.player[0]) & (column == state.player[1])
        frame = jnp.where(is_player, jnp.uint8(PLAYER), frame)
        corner = jnp.where(state.held < 0, BORDER, KEY + state.held)
        return jnp.where((row == 0) & (column == 0), corner.astype(jnp.uint8), frame)

    def render(self, state: BoxWorldState) -> Array:
        """The whole grid as ``[G+2, G+2, 3]`` uint8 RGB, also with a viewport."""
        return jnp.round(jnp.asarray(PALETTE)[self.frame(state)] * 255).astype(jnp.uint8)
