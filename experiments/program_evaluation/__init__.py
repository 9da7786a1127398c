"""Program evaluation and memorization (paper 4.2, appendix A.2): four models on six tasks."""

from experiments.program_evaluation.config import PRESETS as PRESETS
from experiments.program_evaluation.config import Config as Config
from experiments.program_evaluation.train import train as train

__all__ = ["PRESETS", "Config", "train"]
