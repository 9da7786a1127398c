"""The paper's baselines: cells with the same contract as the Relational Memory Core."""

from rrnn_jax.baselines.lstm import StackedLSTMCell as StackedLSTMCell

__all__ = ["StackedLSTMCell"]
