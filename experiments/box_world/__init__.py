"""BoxWorld through a window of 5 x 5 cells: an actor-critic with and without memory."""

from experiments.box_world.config import PRESETS as PRESETS
from experiments.box_world.config import Config as Config
from experiments.box_world.train import evaluate as evaluate
from experiments.box_world.train import train as train
