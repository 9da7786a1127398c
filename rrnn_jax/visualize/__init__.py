"""Figures of training, attention and memory; only this package imports matplotlib.

Functions return figures (or animations) and do not show or save them. The same arguments give the
same picture, byte for byte. Separate functions compute the numbers of a figure with NumPy.
"""

import importlib.util

if importlib.util.find_spec("matplotlib") is None:
    raise ImportError(
        "rrnn_jax.visualize needs matplotlib: pip install matplotlib (or the extra `experiments` "
        "from a clone: pip install -e '.[experiments]')"
    )

from rrnn_jax.visualize.animation import attention_animation as attention_animation
from rrnn_jax.visualize.animation import episode_animation as episode_animation
from rrnn_jax.visualize.animation import save_gif as save_gif
from rrnn_jax.visualize.attention import attention_figure as attention_figure
from rrnn_jax.visualize.attention_numbers import AttentionShare as AttentionShare
from rrnn_jax.visualize.attention_numbers import InputShare as InputShare
from rrnn_jax.visualize.attention_numbers import ShareByLag as ShareByLag
from rrnn_jax.visualize.attention_numbers import attention_share as attention_share
from rrnn_jax.visualize.attention_numbers import change_shares as change_shares
from rrnn_jax.visualize.attention_numbers import input_share as input_share
from rrnn_jax.visualize.attention_numbers import memory_attention as memory_attention
from rrnn_jax.visualize.attention_numbers import share_by_lag as share_by_lag
from rrnn_jax.visualize.attention_numbers import write_shares as write_shares
from rrnn_jax.visualize.bars import bars_figure as bars_figure
from rrnn_jax.visualize.capture import attention_of as attention_of
from rrnn_jax.visualize.capture import captured_array as captured_array
from rrnn_jax.visualize.curves import learning_curves_figure as learning_curves_figure
from rrnn_jax.visualize.dynamics import dynamics_figure as dynamics_figure
from rrnn_jax.visualize.memory_numbers import Projection as Projection
from rrnn_jax.visualize.memory_numbers import project_slots as project_slots
from rrnn_jax.visualize.memory_numbers import slot_movement as slot_movement
from rrnn_jax.visualize.memory_numbers import slot_similarity as slot_similarity
from rrnn_jax.visualize.nth_farthest import nth_farthest_figure as nth_farthest_figure
from rrnn_jax.visualize.nth_farthest import reference_cases as reference_cases
from rrnn_jax.visualize.nth_farthest import reference_steps as reference_steps
from rrnn_jax.visualize.projection import projection_figure as projection_figure
from rrnn_jax.visualize.share_curve import attention_share_figure as attention_share_figure
from rrnn_jax.visualize.share_curve import input_share_figure as input_share_figure
from rrnn_jax.visualize.similarity import similarity_figure as similarity_figure

__all__ = [
    "AttentionShare",
    "InputShare",
    "Projection",
    "ShareByLag",
    "attention_animation",
    "attention_figure",
    "attention_of",
    "attention_share",
    "attention_share_figure",
    "bars_figure",
    "captured_array",
    "change_shares",
    "dynamics_figure",
    "episode_animation",
    "input_share",
    "input_share_figure",
    "learning_curves_figure",
    "memory_attention",
    "nth_farthest_figure",
    "project_slots",
    "projection_figure",
    "reference_cases",
    "reference_steps",
    "save_gif",
    "share_by_lag",
    "similarity_figure",
    "slot_movement",
    "slot_similarity",
    "write_shares",
]
