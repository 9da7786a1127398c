"""Nth Farthest (paper appendix A.1): the Relational Memory Core and an LSTM."""

from experiments.nth_farthest.config import PRESETS as PRESETS
from experiments.nth_farthest.config import Config as Config
from experiments.nth_farthest.train import train as train

__all__ = ["PRESETS", "Config", "train"]
