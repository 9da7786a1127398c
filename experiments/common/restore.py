"""Reads config and parameters of a finished run, for figures and further measurements.

A run's parameters can also be in one small NumPy file, ``params.npz`` beside its ``config.json``.
"""

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.common.cells import CellConfigs
from experiments.common.checkpoint import read_latest
from experiments.common.problem import Params, Problem
from experiments.common.records import read_json, replacing
from experiments.common.refused import RefusedError
from experiments.common.run_directory import PARAMS_FILE
from experiments.common.steps import Programs
from experiments.common.train_config import TrainConfig

ConfigT = TypeVar("ConfigT")


def read_config(run_dir: Path, default: ConfigT) -> ConfigT:
    """The config in a run directory.

    Args:
      run_dir: the directory.
      default: a config of the experiment, for fields that are missing in the file.

    Returns:
      A config of the type of `default`.

    Raises:
      FileNotFoundError: there is no run.
      RefusedError: the file has a field that the experiment does not know, or a bad value.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"no run in {run_dir}")
    return config_from(default, read_json(path), str(path))


def restore_params(
    problem: Problem,
    config: TrainConfig,
    run_dir: Path,
    seed: int,
    folder: str = "checkpoints",
) -> tuple[int, Params]:
    """One seed's parameters, from ``params.npz`` or the newest valid checkpoint.

    Args:
      problem: the trained problem.
      config: its training config.
      run_dir: the run's directory.
      seed: one of the run's seeds.
      folder: the directory of checkpoints in it.

    Returns:
      The checkpoint's step and the parameters.

    Raises:
      FileNotFoundError: the run has no checkpoint, or no such seed.
      RefusedError: ``params.npz`` does not contain the parameters of `problem`.
    """
    if seed not in config.seeds:
        raise FileNotFoundError(f"no seed {seed} in {run_dir}, but {list(config.seeds)}")
    if (run_dir / PARAMS_FILE).exists():
        wanted = jax.eval_shape(problem.init, jax.random.key(0)).params
        return read_params(run_dir, wanted)
    shapes = Programs(problem, config).shapes
    restored = read_latest(run_dir / folder, shapes)
    index = config.seeds.index(seed)
    return restored.step, jax.tree.map(lambda leaf: leaf[index], restored.state.params)


def write_params(folder: Path, params: Params, step: int, half: bool = False) -> None:
    """Writes parameters to ``params.npz`` in a folder, which is created if missing.

    Args:
      folder: the folder.
      params: the parameters.
      step: their update.
      half: whether to round them to float16, which halves the size of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    leaves: dict[str, Any] = flatten_dict(params, sep="/")  # type: ignore[assignment]
    dtype = np.float16 if half else None
    flat: dict[str, Any] = {name: np.asarray(leaf, dtype) for name, leaf in leaves.items()}
    with replacing(folder / PARAMS_FILE) as temporary:
        np.savez_compressed(temporary, step=np.int32(step), **flat)


def read_params(folder: Path, wanted: Params) -> tuple[int, Params]:
    """Reads the step and the parameters written by `write_params`.

    Args:
      folder: the folder of ``params.npz``.
      wanted: arrays or shapes with the structure and dtypes of the parameters.

    Raises:
      RefusedError: the file contains other parameters, or is damaged.
    """
    try:
        with (folder / PARAMS_FILE).open("rb") as file, np.load(file) as arrays:
            flat = {name: arrays[name] for name in arrays.files}
        step = int(flat.pop("step"))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise RefusedError(f"{folder / PARAMS_FILE} is empty or damaged ({error})") from error
    leaves: dict[str, Any] = flatten_dict(wanted, sep="/")  # type: ignore[assignment]
    expected = {name: leaf.shape for name, leaf in leaves.items()}
    if {name: leaf.shape for name, leaf in flat.items()} != expected:
        raise RefusedError(f"{PARAMS_FILE} does not hold the parameters of the config next to it")
    cast = {name: leaf.astype(leaves[name].dtype) for name, leaf in flat.items()}
    return step, unflatten_dict(cast, sep="/")


def config_from(default: Any, values: Mapping[str, Any], path: str) -> Any:
    """A config with the values of a JSON file; lists become tuples.

    >>> from experiments.common.train_config import TrainConfig
    >>> config_from(TrainConfig(), {"steps": 5}, "config.json").steps
    5

    Args:
      default: the config for missing values.
      values: the values in the file.
      path: the file's name, for errors.

    Returns:
      A config of the type of `default`.

    Raises:
      RefusedError: there is a field that the experiment does not know, or a value that it refuses.
    """
    if not isinstance(values, Mapping):
        raise RefusedError(f"{path} must hold a config, got {values!r:.60}")
    known = {field.name for field in dataclasses.fields(default)}
    if isinstance(default, CellConfigs):  # A section of another core, not registered now, is left.
        absent = {name for name in values.keys() - known if isinstance(values[name], Mapping)}
        values = {n: x for n, x in values.items() if n not in absent - {values.get("model")}}
    if not known >= values.keys():
        unknown = ", ".join(sorted(values.keys() - known))
        raise RefusedError(f"{path} has fields that {type(default).__name__} lacks: {unknown}")
    changes = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(getattr(default, name)):
            value = config_from(getattr(default, name), value, path)
        changes[name] = tuple(value) if isinstance(value, list) else value
    try:
        return dataclasses.replace(default, **changes)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"{path} must hold a config: {error}") from error
