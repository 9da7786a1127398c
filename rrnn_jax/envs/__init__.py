"""Pure, jittable environments of the paper's section 4.3, with gymnax's interface."""

from rrnn_jax.envs.box_world import BoxWorld as BoxWorld
from rrnn_jax.envs.environment import Environment as Environment
from rrnn_jax.envs.heuristics import box_world_heuristic as box_world_heuristic
from rrnn_jax.envs.heuristics import mini_pacman_heuristic as mini_pacman_heuristic
from rrnn_jax.envs.mini_pacman import MiniPacman as MiniPacman
from rrnn_jax.envs.spaces import Box as Box
from rrnn_jax.envs.spaces import Discrete as Discrete

__all__ = [
    "Box",
    "BoxWorld",
    "Discrete",
    "Environment",
    "MiniPacman",
    "box_world_heuristic",
    "mini_pacman_heuristic",
]
