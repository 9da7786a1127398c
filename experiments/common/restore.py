"""A finished run read back: its config and its parameters, for figures and further measurements.

A run's parameters can also stand in one NumPy file, ``params.npz`` beside its ``config.json``,
small enough to be given away.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.common.checkpoint import Reader
from experiments.common.problem import Params, Problem
from experiments.common.records import read_json
from experiments.common.refused import RefusedError
from experiments.common.steps import make_programs
from experiments.common.train_config import TrainConfig

ConfigT = TypeVar("ConfigT")

PARAMS_FILE = "params.npz"
"""Holds parameters by path, and the ``step`` they are from."""


def read_config(run_dir: Path, default: ConfigT) -> ConfigT:
    """The config in a run directory.

    Args:
      run_dir: the directory.
      default: a config of the experiment; a field that the file lacks keeps its value here.

    Returns:
      A config of the type of `default`.

    Raises:
      FileNotFoundError: there is no run.
      RefusedError: the file has a field that the experiment does not know.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no run in {run_dir}")
    return config_from(default, read_json(path), str(path))


def restore_params(
    problem: Problem, config: TrainConfig, run_dir: Path, seed: int
) -> tuple[int, Params]:
    """One seed's parameters: of ``params.npz``, or of the newest sound checkpoint.

    Args:
      problem: as it was trained.
      config: likewise.
      run_dir: the run's directory.
      seed: one of the run's seeds.

    Returns:
      The checkpoint's step, and the parameters as `problem.loss` takes them.

    Raises:
      FileNotFoundError: the run has no checkpoint, or no such seed.
      RefusedError: ``params.npz`` does not hold the parameters of `problem`.
    """
    if (run_dir / PARAMS_FILE).exists():
        wanted = jax.eval_shape(problem.init, jax.random.key(0)).params
        return read_params(run_dir, wanted)
    if seed not in config.seeds:
        raise FileNotFoundError(f"no seed {seed} in {run_dir}, but {list(config.seeds)}")
    shapes = make_programs(problem, config).shapes
    restored = Reader(run_dir / "checkpoints").restore_latest(shapes)
    index = config.seeds.index(seed)
    return restored.step, jax.tree.map(lambda leaf: leaf[index], restored.state.params)


def write_params(folder: Path, params: Params, step: int, half: bool = False) -> None:
    """Writes parameters into ``params.npz`` of a folder, which is made if missing.

    Args:
      folder: where to.
      params: what to write.
      step: the update they are from.
      half: whether to round them to float16, for a file of half the size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leaves: dict[str, Any] = flatten_dict(params, sep="/")  # type: ignore[assignment]
    dtype = np.float16 if half else None
    flat: dict[str, Any] = {name: np.asarray(leaf, dtype) for name, leaf in leaves.items()}
    np.savez_compressed(folder / PARAMS_FILE, step=np.int32(step), **flat)


def read_params(folder: Path, wanted: Params) -> tuple[int, Params]:
    """The step and the parameters that `write_params` wrote.

    Args:
      folder: where ``params.npz`` is.
      wanted: arrays, or their shapes, in the structure of the parameters, which get their dtypes.

    Raises:
      RefusedError: the file holds others.
    """
    with np.load(folder / PARAMS_FILE) as arrays:
        flat = {name: arrays[name] for name in arrays.files}
    step = int(flat.pop("step"))
    leaves: dict[str, Any] = flatten_dict(wanted, sep="/")  # type: ignore[assignment]
    expected = {name: leaf.shape for name, leaf in leaves.items()}
    if {name: leaf.shape for name, leaf in flat.items()} != expected:
        raise RefusedError(f"{PARAMS_FILE} does not hold the parameters of the config beside it")
    cast = {name: leaf.astype(leaves[name].dtype) for name, leaf in flat.items()}
    return step, unflatten_dict(cast, sep="/")


def config_from(default: Any, values: Mapping[str, Any], path: str) -> Any:
    """A config with the values of a JSON file; lists were tuples.

    >>> from experiments.common.train_config import TrainConfig
    >>> config_from(TrainConfig(), {"steps": 5}, "config.json").steps
    5

    Args:
      default: what the values are put into, section by section.
      values: from the file.
      path: names the file in errors.

    Returns:
      A config of the type of `default`.

    Raises:
      RefusedError: there is a field that the experiment does not know.
    """
    known = {field.name for field in dataclasses.fields(default)}
    if not known >= values.keys():
        unknown = ", ".join(sorted(values.keys() - known))
        raise RefusedError(f"{path} has fields that {type(default).__name__} lacks: {unknown}")
    changes = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(getattr(default, name)):
            value = config_from(getattr(default, name), value, path)
        changes[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(default, **changes)
