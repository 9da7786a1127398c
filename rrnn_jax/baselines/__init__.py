"""The paper's baselines: cells with the same contract as the Relational Memory Core."""

from rrnn_jax.baselines.dnc import DNCCell as DNCCell
from rrnn_jax.baselines.dnc_memory import DNCState as DNCState
from rrnn_jax.baselines.entnet import EntNetCell as EntNetCell
from rrnn_jax.baselines.lstm import StackedLSTMCell as StackedLSTMCell
from rrnn_jax.baselines.lstm_bank import LSTMBankCell as LSTMBankCell

__all__ = ["DNCCell", "DNCState", "EntNetCell", "LSTMBankCell", "StackedLSTMCell"]
