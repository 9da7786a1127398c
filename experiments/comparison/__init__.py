"""The results table: finished runs of all experiments, model against model."""

from experiments.comparison.collect import collect as collect
from experiments.comparison.collect import find_runs as find_runs
from experiments.comparison.table import compare as compare

__all__ = ["collect", "compare", "find_runs"]
