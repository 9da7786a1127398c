"""Mini-Pacman through a window of 5 x 5 cells: an actor-critic with and without memory."""

from experiments.mini_pacman.config import PRESETS as PRESETS
from experiments.mini_pacman.config import Config as Config
from experiments.mini_pacman.train import evaluate as evaluate
from experiments.mini_pacman.train import train as train
