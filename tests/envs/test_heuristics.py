"""The policies without memory: the actions they allow, on windows drawn by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.envs import box_world_heuristic, mini_pacman_heuristic
from rrnn_jax.envs.box_world import PALETTE
from rrnn_jax.envs.box_world_levels import BACKGROUND, BORDER, GEM, KEY, PLAYER

BOX_WORLD = dict(zip(".#@Gabc", (BACKGROUND, BORDER, PLAYER, GEM, KEY, KEY + 7, KEY + 9),
                     strict=True))  # fmt: skip
PACMAN = dict(zip("#. @ogpPl", np.array([
    *[(1, 1, 1), (0, 0, 1), (0, 0, 0), (0, 1, 0), (0, 1, 1)],
    *[(1, 0, 0), (1, 1, 0), (1, 0.1, 0), (1, 0.05, 0)],
], np.float32), strict=True))  # fmt: skip
"""Wall, food, nothing, Pacman, pill; ghosts without power, with 20, 2 and 1 steps of it."""

box_world = jax.jit(box_world_heuristic)
pacman = jax.jit(mini_pacman_heuristic, static_argnums=2)


@pytest.mark.parametrize(
    ("window", "held", "last", "expected"),
    [
        # No key: the nearest loose item, not the box nearer to it.
        ((".....", ".....", "..@..", "....a", "bc..."), None, -1, "down right"),
        ((".....", "bc...", "..@..", ".....", "....G"), None, -1, "down right"),
        # Around a box: what is beside a lock is closed, and so is its lock.
        ((".....", ".....", "..@bc", "..#..", "....G"), None, -1, "left"),
        # With a key its lock, though an opened box is nearer; also at the window's edge.
        ((".....", ".....", "..@.b", "a....", "....."), "a", -1, "down left"),
        ((".....", "..ba.", "..@..", ".....", "....."), "a", -1, "right"),
        ((".....", "..ab.", "..@..", "..G..", "....."), "c", -1, "down"),
        # Nothing wanted: at random, but not back; back in a dead end; anything if locked in.
        ((".....", "..ba.", "..@..", ".....", "....."), None, -1, "down left right"),
        ((".....", ".....", "..@..", ".....", "....."), None, 0, "up left right"),
        ((".....", "..#..", ".#@..", "..#..", "....."), None, 2, "right"),
        (("#####", "#.#.#", "##@##", "#.#.#", "#####"), None, 2, "up down left right"),
    ],
)
def test_box_world(window, held, last, expected):
    codes = np.array([[BOX_WORLD[cell] for cell in row] for row in window])
    extra = np.broadcast_to(PALETTE[BORDER if held is None else BOX_WORLD[held]], (5, 5, 3))
    allowed = box_world(np.concatenate([PALETTE[codes], extra], -1), jnp.int32(last))
    names = np.array(["up", "down", "left", "right"])
    assert " ".join(names[np.asarray(allowed)]) == expected


@pytest.mark.parametrize(
    ("window", "mode", "last", "expected"),
    [
        # The nearest food by the way there, not as the crow flies.
        (("#####", "#.  #", "##@##", "##  #", "### ."), "regular", -1, "up"),
        (("#####", "#  .#", "##@.#", "##  #", "#####"), "regular", -1, "right"),
        (("     ", " # # ", " #@ #", "  ##.", "     "), "regular", -1, "up"),  # 13 moves.
        # Not beside a ghost, unless there is power after the next decrement.
        (("     ", "    #", "  @.g", "     ", "  .  "), "regular", -1, "down"),
        (("     ", "    #", "  @.l", "     ", "  .  "), "regular", -1, "down"),
        (("     ", "    #", "  @ P", "     ", "     "), "regular", -1, "right"),
        (("     ", "    #", "  @ p", "     ", "     "), "avoid", -1, "right up left down"),
        # What the mode rewards.
        (("     ", "  .  ", "  @  ", "     ", "  o  "), "rush", -1, "down"),
        (("     ", "  .  ", "  @  ", "     ", "  o  "), "hunt", -1, "down"),
        (("     ", "  .  ", "  @  ", "     ", "  p  "), "ambush", -1, "down"),
        (("     ", "  o  ", "  @  ", "     ", "     "), "avoid", -1, "right left down"),
        # Not back, except from a dead end; in a corner it stays, or runs from a ghost beside it.
        (("     ", "     ", "  @  ", "     ", "     "), "regular", 1, "right up down"),
        (("     ", "  #  ", " #@  ", "  #  ", "     "), "regular", 3, "right"),
        (("     ", "  #  ", " #@ g", "  #  ", "     "), "regular", 3, "stay"),
        (("     ", "  #  ", " #@g ", "  #  ", "     "), "regular", 3, "right"),
    ],
)
def test_mini_pacman(window, mode, last, expected):
    obs = np.array([[PACMAN[cell] for cell in row] for row in window])
    allowed = pacman(obs, jnp.int32(last), mode)
    names = np.array(["stay", "right", "up", "left", "down"])
    assert " ".join(names[np.asarray(allowed)]) == expected


def test_only_windows_of_a_known_mode():
    last = jnp.int32(-1)
    for policy in (box_world_heuristic, mini_pacman_heuristic):
        with pytest.raises(ValueError, match=r"obs must have shape \[5, 5, "):
            policy(jnp.zeros((15, 19, 3)), last)
    with pytest.raises(ValueError, match=r"mode must be one of 'regular', .*; got 'hide'"):
        partial(mini_pacman_heuristic, mode="hide")(jnp.zeros((5, 5, 3)), last)
