"""Every experiment with a tiny task and a tiny core, as the engine trains it."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments import box_world, mini_pacman
from experiments.ablations.config import PRESETS as ABLATIONS
from experiments.ablations.grid import make_rows
from experiments.ablations.problems import make_problem as make_ablation
from experiments.box_world.train import make_game as make_box_world
from experiments.common import parallel
from experiments.common.actor_critic import runs
from experiments.common.actor_critic.config import AgentConfig
from experiments.common.cells import LSTMConfig, RMCConfig
from experiments.common.problem import Problem
from experiments.common.train_config import TrainConfig
from experiments.language_model.data.token_files import prepare
from experiments.language_model.problem import make_problem as make_language_model
from experiments.mini_pacman.train import make_game as make_mini_pacman
from experiments.nth_farthest.config import PRESETS as NTH_FARTHEST
from experiments.nth_farthest.config import TaskConfig
from experiments.nth_farthest.train import make_problem as make_nth_farthest
from experiments.program_evaluation.config import PRESETS as PROGRAM_EVALUATION
from experiments.program_evaluation.config import DifficultyConfig
from experiments.program_evaluation.train import make_problem as make_program_evaluation
from tests.experiments.language_model.small import TEXT, small_config

RMC = RMCConfig(mem_slots=2, num_heads=1, head_size=4)
LSTM = LSTMConfig(lstm_features=4)

Tiny = tuple[Problem, TrainConfig]


def nth_farthest(model: str, train: TrainConfig) -> Tiny:
    """Three objects, without a curriculum."""
    config = dataclasses.replace(
        NTH_FARTHEST["quick"],
        model=model, rmc=RMC, lstm=LSTM, readout_features=8, staged=False, train=train,
        task=TaskConfig(num_objects=3, num_features=2),
    )  # fmt: skip
    return make_nth_farthest(config), train


def program_evaluation(model: str, train: TrainConfig) -> Tiny:
    """Two digits, reversed."""
    config = dataclasses.replace(
        PROGRAM_EVALUATION["quick"],
        task="reverse", model=model, rmc=RMC, lstm=LSTM, train=train,
        difficulty=DifficultyConfig(length=1, nesting=1, memorization_length=2),
    )  # fmt: skip
    return make_program_evaluation(config), train


def ablations(train: TrainConfig) -> Tiny:
    """The base with an initial memory that is learned."""
    base = ABLATIONS["quick"]
    core = dataclasses.replace(base.core, mem_slots=2, num_heads=1, head_size=4)
    rows = make_rows(dataclasses.replace(base, core=core, train=train))
    return make_ablation(rows["initial_learned"]), train


def language_model(model: str, train: TrainConfig, directory: Path) -> Tiny:
    """Windows of eight characters."""
    path = directory / "text.txt"
    parallel.first(lambda: path.write_text(TEXT))
    config = dataclasses.replace(small_config(path, model=model), train=train)
    return make_language_model(config, prepare(config.data, directory / "tokens")), train


def game(name: str, model: str, train: TrainConfig) -> Tiny:
    """BoxWorld with one lock, or Mini-Pacman, for three steps at a time."""
    config: Any
    make_game: Any
    if name == "box_world":
        config, make_game = box_world.PRESETS["smoke"], make_box_world
        task = dataclasses.replace(config.task, grid_size=5, max_steps=4, test_episodes=8)
    else:
        config, make_game = mini_pacman.PRESETS["quick"], make_mini_pacman
        task = dataclasses.replace(config.task, max_frames=5, test_episodes=4)
    pool = 8 if name == "box_world" else 0
    learner = dataclasses.replace(
        config.learner, unroll=3, minibatch_envs=4, epochs=1, level_pool=pool, fresh_levels=4
    )
    config = dataclasses.replace(
        config,
        model=model, rmc=RMC, lstm=LSTM, agent=AgentConfig(width=4),
        task=task, learner=learner, train=train,
    )  # fmt: skip
    return runs.make_problem(config, make_game(config)), train
