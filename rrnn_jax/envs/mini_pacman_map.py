"""The maze of Mini-Pacman, with tables of exits and of the ghosts' initial cells.

Directions are in the order right, up, left, down, in which ghosts consider exits.
"""

import numpy as np

MAZE = np.array(
    [
        [cell == "#" for cell in row]
        for row in (
            "###################",
            "#...#.........#...#",
            "#.#.#.#######.#.#.#",
            "#.................#",
            "#.#.#.#######.#.#.#",
            "#.#.............#.#",
            "#.####.#####.####.#",
            "#......#####......#",
            "#.####.#####.####.#",
            "#.#.............#.#",
            "#.#.#.#######.#.#.#",
            "#.................#",
            "#.#.#.#######.#.#.#",
            "#...#.........#...#",
            "###################",
        )
    ]
)
"""``[15, 19]`` bool, True for a wall. No cell has fewer than two exits."""

HEIGHT, WIDTH = MAZE.shape
OPEN = np.argwhere(~MAZE).astype(np.int32)
"""``[138, 2]``: row and column of the open cells, row by row."""

DIRECTIONS = np.array([[0, 1], [-1, 0], [0, -1], [1, 0]], np.int32)
"""``[4, 2]``: right, up, left, down."""


def _exits() -> np.ndarray:
    exits = np.zeros((HEIGHT, WIDTH, 4), bool)
    for row, column in OPEN:
        for index, (down, across) in enumerate(DIRECTIONS):
            exits[row, column, index] = not MAZE[row + down, column + across]
    return exits


def _ghost_cells() -> tuple[np.ndarray, np.ndarray]:
    far = np.zeros((len(OPEN), len(OPEN)), np.int32)
    counts = np.zeros(len(OPEN), np.int32)
    for start, (row, column) in enumerate(OPEN):
        offset = OPEN - np.array([row, column])
        near = ((offset >= -5) & (offset <= 4)).all(-1)
        allowed = np.flatnonzero(~near)
        counts[start] = len(allowed)
        far[start, : len(allowed)] = allowed
    return far, counts


EXITS = _exits()
"""``[15, 19, 4]`` bool: in which directions the next cell is open."""

GHOST_CELLS, GHOST_CELL_COUNTS = _ghost_cells()
"""``[138, 138]`` and ``[138]``: for each initial cell of Pacman, the initial cells (of `OPEN`) of
ghosts, which are outside the rows and columns from 5 before to 4 after his."""
