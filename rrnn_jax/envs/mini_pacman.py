r"""Mini-Pacman: eat food and avoid ghosts, seen through a window of 5 x 5 cells.

The game of the paper's section 4.3 with the rules of its published code (class ``PillEater`` by S.
Racanière, as in higgsfield/Imagination-Augmented-Agents), including its quirks. **Actions**:
0 stay, 1 right, 2 up, 3 left, 4 down.

Level k begins with food on all 138 open cells, and two pills, Pacman and
:math:`1 + \lfloor (k-1)/2 \rfloor` ghosts at random positions. In a step Pacman moves and eats; a
pill gives him power for 20 steps. Then each ghost moves with probability
:math:`0.5 + 0.1 (k - 1)`, half of that under power. In corridors a ghost moves straight on. At
junctions it moves towards Pacman (away from him under power) but never turns back; with
probability 5 % it takes a random direction. Pacman dies when he meets a ghost; under power he eats
it. The rewards, and the end of a level, depend on the mode:

=========  ====  =====  =====  =========  ======  ============================
mode       step  food   pill   eat ghost  death   next level when
=========  ====  =====  =====  =========  ======  ============================
regular    0     1      2      5          0       the food is gone
avoid      0.1   -0.1   -5     -10        -20     the food is gone; 128 steps
hunt       0     0      1      10         -20     the ghosts are gone
ambush     0     -0.1   0      10         -20     the ghosts are gone
rush       0     -0.1   10     0          0       the pills are gone
=========  ====  =====  =====  =========  ======  ============================

Death *terminates* an episode; the cap on frames *truncates* it.

**Observations**, float32 in [0, 1]: ``[15, 19, 3]``, or ``[5, 5, 3]`` around Pacman with a
viewport, where cells off the map are walls. A cell shows the first of: Pacman (0, 1, 0), ghost
(1, power / 20, 0), pill (0, 1, 1), food (0, 0, 1), wall (1, 1, 1), nothing (0, 0, 0).

Quirks of the published code: two ghosts on Pacman kill twice (-40); after the 128 steps of "avoid"
the observation still shows the old level; new ghosts have direction codes 0 to 3 instead of 2 to 5
(right, up, left, down), so some begin without a direction.

Ghosts have `max_ghosts` slots. With the default of 8 there are at most 8 ghosts from level 17 on,
where the published code has 9.
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rrnn_jax.checks import check_choice, check_flag, check_positive
from rrnn_jax.envs import mini_pacman_map as maze
from rrnn_jax.envs.environment import WINDOW, Environment, Transition, at, below
from rrnn_jax.envs.mini_pacman_ghosts import GhostDraws, Ghosts, move_ghosts
from rrnn_jax.envs.spaces import Box
from rrnn_jax.typing import Array

Mode: TypeAlias = Literal["regular", "avoid", "hunt", "ambush", "rush"]


class _Rules(NamedTuple):
    """Rewards of a mode, and the condition that ends its levels."""

    step: float
    food: float
    pill: float
    ghost: float
    death: float
    until: Literal["food", "ghosts", "pills"]
    level_steps: int | None = None


RULES: dict[Mode, _Rules] = {
    "regular": _Rules(0.0, 1.0, 2.0, 5.0, 0.0, "food"),
    "avoid": _Rules(0.1, -0.1, -5.0, -10.0, -20.0, "food", level_steps=128),
    "hunt": _Rules(0.0, 0.0, 1.0, 10.0, -20.0, "ghosts"),
    "ambush": _Rules(0.0, -0.1, 0.0, 10.0, -20.0, "ghosts"),
    "rush": _Rules(0.0, -0.1, 10.0, 0.0, 0.0, "pills"),
}
POWER_STEPS = 20

MOVES = np.concatenate([np.zeros((1, 2), np.int32), maze.DIRECTIONS])


class MiniPacmanParams(struct.PyTreeNode):
    """Parameters; all but `level`, `max_frames` and `levels` are static under jit.

    Attributes:
      mode: "regular" (default), "avoid", "hunt", "ambush" or "rush".
      viewport: whether to observe 5 x 5 cells only (default: True).
      max_ghosts: slots for ghosts (default: 8).
      level: k of an episode's first level, counted from 1 (default: 1).
      max_frames: steps after which an episode is truncated (default: 3000).
      levels: a pool of placements ``[P, ...]`` for levels, or None (default): each is drawn.

    Raises:
      ValueError: an unknown mode, or no slot for ghosts.
      TypeError: a number of slots that is not an integer, or a `viewport` that is not a bool.
    """

    mode: Mode = struct.field(pytree_node=False, default="regular")
    viewport: bool = struct.field(pytree_node=False, default=True)
    max_ghosts: int = struct.field(pytree_node=False, default=8)
    level: int = 1
    max_frames: int = 3000
    levels: "Placement | None" = None

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, get_args(Mode))
        check_positive(max_ghosts=self.max_ghosts)
        check_flag(viewport=self.viewport)


class Placement(NamedTuple):
    """Positions at the start of a level.

    Attributes:
      pacman: ``[2]`` int32, row and column.
      pills: ``[2, 2]`` int32; both may be on one cell.
      ghosts: ``[max_ghosts, 2]`` int32; a level uses the first ones.
      directions: ``[max_ghosts]`` int32, 0 to 3.
    """

    pacman: Array
    pills: Array
    ghosts: Array
    directions: Array


class Draws(NamedTuple):
    """The random draws of a step.

    Attributes:
      ghosts: draws of the ghosts' moves.
      placement: placement of the next level, if one begins.
    """

    ghosts: GhostDraws
    placement: Placement


class MiniPacmanState(struct.PyTreeNode):
    """The state of an episode.

    Attributes:
      pacman: ``[2]`` int32, row and column.
      ghosts: the ghosts, in the order in which they move.
      food: ``[15, 19]`` bool.
      pills: ``[2, 2]`` int32.
      has_pill: ``[2]`` bool: which pills are left.
      power: int32, steps of power left.
      timer: int32, steps of the level.
      level: int32, k.
      time: int32, steps of the episode.
    """

    pacman: Array
    ghosts: Ghosts
    food: Array
    pills: Array
    has_pill: Array
    power: Array
    timer: Array
    level: Array
    time: Array


class MiniPacman(Environment[MiniPacmanState, MiniPacmanParams]):
    """Mini-Pacman; see the module's description.

    >>> env = MiniPacman(mode="hunt")
    >>> params = env.default_params.replace(level=3)
    >>> reset, step = jax.jit(env.reset), jax.jit(env.step)
    >>> obs, state = reset(jax.random.key(0), params)
    >>> obs, state, reward, done, info = step(jax.random.key(1), state, 2, params)
    >>> obs.shape, int(state.ghosts.alive.sum())
    ((5, 5, 3), 2)

    The whole map:

    >>> params = params.replace(viewport=False)
    >>> jax.eval_shape(env.reset, jax.random.key(0), params)[0].shape
    (15, 19, 3)

    Args:
      **params: fields of `MiniPacmanParams`, for `default_params`.
    """

    counts = ("level", "max_frames")

    def __init__(self, **params: Any) -> None:
        self.default_params = self._params(MiniPacmanParams(**params))

    @property
    def num_actions(self) -> int:
        """5: stay, right, up, left, down."""
        return len(MOVES)

    def observation_space(self, params: MiniPacmanParams | None = None) -> Box:
        """``[5, 5, 3]``, or ``[15, 19, 3]`` without a viewport."""
        size = (WINDOW, WINDOW) if self._params(params).viewport else maze.MAZE.shape
        return Box(0.0, 1.0, (*size, 3))

    def draw_level(self, key: Array, params: MiniPacmanParams) -> Placement:
        """Draws the positions at the start of any level."""
        slots = params.max_ghosts
        for_cells, for_directions = jax.random.split(key)
        cells = jax.random.uniform(for_cells, (3 + slots,), jnp.float32)
        open_cells = jnp.asarray(maze.OPEN)
        # Two bits of a word for each ghost's direction.
        words = jax.random.bits(for_directions, (-(-slots // 16),), jnp.uint32)
        slot = np.arange(slots, dtype=np.uint32)
        directions = (words[slot // 16] >> (2 * (slot % 16))) & jnp.uint32(3)
        start = below(cells[0], jnp.int32(len(maze.OPEN)))
        far = below(cells[3:], jnp.asarray(maze.GHOST_CELL_COUNTS)[start])
        return Placement(
            pacman=open_cells[start],
            pills=open_cells[below(cells[1:3], jnp.int32(len(maze.OPEN)))],
            ghosts=open_cells[jnp.asarray(maze.GHOST_CELLS)[start, far]],
            directions=directions.astype(jnp.int32),
        )

    def start(self, level: Placement, params: MiniPacmanParams) -> MiniPacmanState:
        """The first state of an episode."""
        return self.begin_level(level, jnp.int32(params.level), jnp.int32(0))

    def begin_level(self, placement: Placement, level: Array, time: Array) -> MiniPacmanState:
        """The first state of a level.

        Args:
          placement: the positions.
          level: k, int32.
          time: steps of the episode so far, int32.

        Returns:
          The state.
        """
        slots = placement.directions.shape[0]
        alive = jnp.arange(slots, dtype=jnp.int32) < 1 + (level - 1) // 2
        return MiniPacmanState(
            pacman=placement.pacman,
            ghosts=Ghosts(placement.ghosts, placement.directions, alive),
            food=jnp.asarray(~maze.MAZE),
            pills=placement.pills,
            has_pill=jnp.ones((2,), bool),
            power=jnp.int32(0),
            timer=jnp.int32(0),
            level=level,
            time=time,
        )

    def draw(self, key: Array, params: MiniPacmanParams) -> Draws:
        """Draws the random values of a step."""
        for_ghosts, for_level = jax.random.split(key)
        move, branch = jax.random.uniform(for_ghosts, (2, params.max_ghosts), jnp.float32)
        # Below 0.05 the branch is random, and the same number selects it.
        ghosts = GhostDraws(move, branch, jnp.clip(branch * 20.0, 0.0, 1.0))
        return Draws(ghosts, self._level(for_level, params))

    def transition(
        self, key: Array, state: MiniPacmanState, action: Array, params: MiniPacmanParams
    ) -> Transition:
        """One step; ``info["level"]`` is the level after it."""
        return self.advance(state, action, self.draw(key, params), params)

    def advance(
        self, state: MiniPacmanState, action: Array, draws: Draws, params: MiniPacmanParams
    ) -> Transition:
        """One step with given random draws, to replay recorded episodes.

        Args:
          state: the state.
          action: an integer scalar.
          draws: the random draws.
          params: parameters.

        Returns:
          The result of the step.
        """
        rules = RULES[params.mode]

        def next_level(state: MiniPacmanState, over: Array) -> MiniPacmanState:
            fresh = self.begin_level(draws.placement, state.level + 1, state.time)
            return jax.tree.map(
                lambda new, old: jax.lax.select(jnp.broadcast_to(over, old.shape), new, old),
                fresh,
                state,
            )

        state = state.replace(
            time=state.time + 1,
            timer=state.timer + 1,
            power=jnp.maximum(state.power - 1, 0),
        )
        state, ate_food = _move(state, action)
        if rules.until == "food":
            state = next_level(state, ~jnp.any(state.food))
        state, ate_pill = _eat_pill(state)
        if rules.until == "pills":
            state = next_level(state, ~jnp.any(state.has_pill))
        ghosts, ate_ghost, deaths = move_ghosts(
            state.ghosts, state.pacman, state.power, state.level, draws.ghosts
        )
        state = state.replace(ghosts=ghosts)
        if rules.until == "ghosts":
            state = next_level(state, ate_ghost & ~jnp.any(ghosts.alive))
        shown = state
        if rules.level_steps is not None:
            state = next_level(state, state.timer == rules.level_steps)

        counts = [jnp.ones_like(deaths), ate_food, ate_pill, ate_ghost, deaths]
        weights = [rules.step, rules.food, rules.pill, rules.ghost, rules.death]
        reward = sum(
            weight * count.astype(jnp.float32)
            for weight, count in zip(weights, counts, strict=True)
        )
        return Transition(
            state,
            shown,
            jnp.asarray(reward),
            terminated=deaths > 0,
            truncated=state.time >= params.max_frames,
            info={"level": state.level},
        )

    def get_obs(self, state: MiniPacmanState, params: MiniPacmanParams) -> Array:
        """The observation of a state."""
        if not params.viewport:
            row, column = (jnp.arange(size, dtype=jnp.int32) for size in maze.MAZE.shape)
            return _picture(state, row, column)
        offset = np.arange(WINDOW, dtype=np.int32) - WINDOW // 2
        return _picture(state, state.pacman[0] + offset, state.pacman[1] + offset)

    def render(self, state: MiniPacmanState) -> Array:
        """The whole map as ``[15, 19, 3]`` uint8 RGB, also with a viewport."""
        row, column = (jnp.arange(size, dtype=jnp.int32) for size in maze.MAZE.shape)
        return jnp.round(_picture(state, row, column) * 255).astype(jnp.uint8)


def _move(state: MiniPacmanState, action: Array) -> tuple[MiniPacmanState, Array]:
    """Moves Pacman; also returns whether he ate food."""
    target = state.pacman + jnp.asarray(MOVES)[action]
    blocked = jnp.asarray(maze.MAZE)[target[0], target[1]]
    pacman = jnp.where(blocked, state.pacman, target)
    row = jax.lax.broadcasted_iota(jnp.int32, maze.MAZE.shape, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, maze.MAZE.shape, 1)
    here = (row == pacman[0]) & (column == pacman[1])
    ate = state.food[pacman[0], pacman[1]]
    return state.replace(pacman=pacman, food=state.food & ~here), ate


def _eat_pill(state: MiniPacmanState) -> tuple[MiniPacmanState, Array]:
    """Eats at most one pill; also returns whether there was one."""
    here = state.has_pill & jnp.all(state.pills == state.pacman[None], axis=-1)
    ate = jnp.any(here)
    eaten = jnp.stack([here[0], here[1] & ~here[0]])
    return state.replace(
        has_pill=state.has_pill & ~eaten, power=jnp.where(ate, POWER_STEPS, state.power)
    ), ate


def _picture(state: MiniPacmanState, rows: Array, columns: Array) -> Array:
    """The cells of given rows and columns in RGB; cells off the map are walls."""
    row, column = rows[:, None], columns[None, :]
    # The map ends in walls, so positions are clipped to it: fewer checks than with a fill value.
    height, width = maze.MAZE.shape
    inside = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)

    def show(positions: Array, exists: Array) -> Array:
        at_row = rows[:, None] == positions[None, :, 0]  # [height, count]
        at_column = columns[:, None] == positions[None, :, 1]
        return jnp.any((at_row & exists[None])[:, None] & at_column[None], axis=-1)

    wall, food = at(jnp.asarray(maze.MAZE), inside), at(state.food, inside)
    pacman = (row == state.pacman[0]) & (column == state.pacman[1])
    ghost = show(state.ghosts.positions, state.ghosts.alive) & ~pacman
    pill = show(state.pills, state.has_pill) & ~pacman & ~ghost
    food = food & ~pacman & ~ghost & ~pill
    power = state.power.astype(jnp.float32) / POWER_STEPS
    red = (ghost | wall).astype(jnp.float32)
    green = (pacman | pill | wall).astype(jnp.float32) + jnp.where(ghost, power, 0.0)
    blue = (pill | food | wall).astype(jnp.float32)
    return jnp.stack([red, green, blue], axis=-1)
