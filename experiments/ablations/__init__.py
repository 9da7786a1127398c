"""Ablations of the Relational Memory Core: one change at a time, on two tasks."""

from experiments.ablations.config import PRESETS as PRESETS
from experiments.ablations.config import Config as Config
from experiments.ablations.grid import make_rows as make_rows
from experiments.ablations.train import train_row as train_row

__all__ = ["PRESETS", "Config", "make_rows", "train_row"]
