"""The training problem of a row: its model on the grid's task."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.ablations.config import PRESETS, Config, CoreConfig
from experiments.ablations.grid import RowConfig, make_rows
from experiments.common.problem import Problem
from experiments.nth_farthest import problem
from experiments.nth_farthest.model import Model as NthFarthestModel
from experiments.program_evaluation import problem as program_evaluation
from experiments.program_evaluation.config import MEMORIZATION
from experiments.program_evaluation.config import Config as ProgramEvaluationConfig
from experiments.program_evaluation.data import Task, make_task
from experiments.program_evaluation.model import Model as ProgramModel
from rrnn_jax import RelationalMemoryCell
from rrnn_jax.initializers import identity_rows
from rrnn_jax.tasks import nth_farthest
from rrnn_jax.typing import Array, Dtype


def random_rows(key: Array | None, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Normal rows of about unit length, equal for all sequences and calls.

    >>> a, b = random_rows(None, (2, 3, 4))
    >>> bool((a == b).all()), bool((a[0] == a[1]).any())
    (True, False)

    Args:
      key: ignored, because training and evaluation must use the same rows.
      shape: ``[*B, S, F]``.
      dtype: dtype of the result.

    Returns:
      An array of that shape.
    """
    del key
    rows = jax.random.normal(jax.random.key(0), shape[-2:], dtype)
    return jnp.broadcast_to(rows / jnp.asarray(math.sqrt(shape[-1]), dtype), shape)


_INITIAL = {
    "identity": identity_rows,
    "learned": identity_rows,
    "random": random_rows,
    "zeros": nn.initializers.zeros_init(),
}


def make_problem(row: RowConfig) -> Problem:
    """Task and model of a row."""
    make = {"nth_farthest": _nth_farthest, "program_evaluation": _program_evaluation}
    config = row.config
    core = config.lstm if row.model == "lstm" else config.core
    config = dataclasses.replace(config, train=core.recipe(config.train))
    return make[config.task](config, make_cell(row))


def make_cell(row: RowConfig) -> nn.RNNCellBase:
    """The core of a row."""
    if row.model == "lstm":
        return row.config.lstm.make(None)
    return _memory_core(row.config.core)


def check(config: Config) -> None:
    """Checks that the task of a grid and the cores of its rows can be made.

    Raises:
      ValueError: one cannot be made; the message names the field of the config.
    """
    usual = PRESETS[config.preset]
    unused = ("program",) if config.task == "nth_farthest" else ("nth_farthest", "curriculum")
    for section in unused:
        own, other = vars(getattr(config, section)), vars(getattr(usual, section))
        for name in (name for name in own if own[name] != other[name]):
            raise ValueError(f"{name} must be left out with task={config.task}, got {own[name]}")
    if config.train.target is not None:
        raise ValueError(
            f"target must be left out: rows have equal updates, got {config.train.target}"
        )
    if config.task == "program_evaluation":
        _program_task(config)
        config.program.check([config.program.program_task], usual.program)
    else:
        config.curriculum.check(config.nth_farthest.staged, usual.curriculum)
    for row in make_rows(config).values():
        make_cell(row)


def describe_task(config: Config) -> str:
    """The task, for titles.

    >>> describe_task(Config())
    'Nth Farthest, 8 objects of 16 features'
    """
    if config.task == "nth_farthest":
        task = config.nth_farthest
        features = "1 feature" if task.num_features == 1 else f"{task.num_features} features"
        return f"Nth Farthest, {task.num_objects} objects of {features}"
    program = config.program
    if program.program_task in MEMORIZATION:
        return f"{program.program_task}, {program.memorization_length} digits"
    return f"{program.program_task}, length {program.length}, nesting {program.nesting}"


def _memory_core(core: CoreConfig) -> RelationalMemoryCell:
    cell = core.make(None)
    assert isinstance(cell, RelationalMemoryCell)
    return cell.clone(
        forget_bias=core.forget_bias,
        output_gate=core.output_gate,
        input_queries=core.input_queries,
        carry_init=_INITIAL[core.initial_memory],
        learned_carry=core.initial_memory == "learned",
    )


def _nth_farthest(config: Config, cell: nn.RNNCellBase) -> Problem:
    what = config.nth_farthest
    task = nth_farthest.Config(what.num_objects, what.num_features)
    model = NthFarthestModel(cell, task.num_objects, what.readout_features)
    stages = config.curriculum if what.staged else None
    return problem.make_problem(task, model, config.train, stages)


def _program_evaluation(config: Config, cell: nn.RNNCellBase) -> Problem:
    task = _program_task(config)
    model = ProgramModel(cell, task.config.vocab_size, task.output_steps)
    return program_evaluation.make_problem(task, model, config.train)


def _program_task(config: Config) -> Task:
    """The grid's task of program evaluation."""
    difficulty = dataclasses.asdict(config.program)
    name = difficulty.pop("program_task")
    usual = ProgramEvaluationConfig()
    return make_task(
        dataclasses.replace(
            usual, task=name, difficulty=dataclasses.replace(usual.difficulty, **difficulty)
        )
    )
