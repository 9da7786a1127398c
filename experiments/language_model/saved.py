"""Saves a trained model to share, and loads one from a run's directory or a saved folder.

``python -m experiments.language_model.saved RUN FOLDER`` writes a model to share: its config, its
vocabulary and its parameters in one NumPy file.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from experiments.common.cli import exit_code
from experiments.common.loop import BEST
from experiments.common.problem import Params
from experiments.common.records import read_json, write_json
from experiments.common.refused import RefusedError
from experiments.common.restore import (
    read_config,
    read_params,
    restore_params,
    write_params,
)
from experiments.common.run_directory import PARAMS_FILE
from experiments.language_model.config import PRESETS, Config
from experiments.language_model.data.token_files import VOCABULARY_FILE, Split, Tokens
from experiments.language_model.data.vocabulary import Vocabulary, vocabulary_from
from experiments.language_model.model import LanguageModel, make_model
from experiments.language_model.problem import init_params, make_problem
from experiments.language_model.train import TEXT_FILE

KEPT = ("config.json", VOCABULARY_FILE, TEXT_FILE)


class Saved(NamedTuple):
    """A trained model.

    Attributes:
      config: the config of its run.
      vocabulary: its vocabulary.
      model: the module.
      params: its parameters.
      step: the update of the parameters.
    """

    config: Config
    vocabulary: Vocabulary
    model: LanguageModel
    params: Params
    step: int

    def digest(self) -> str:
        """A digest of its parameters."""
        digest = hashlib.sha256()
        for path, leaf in sorted(flatten_dict(self.params, sep="/").items()):
            digest.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()


def load(run_dir: Path, seed: int | None = None) -> Saved:
    """The model of a run, or one written by `save`.

    Args:
      run_dir: the directory of one model.
      seed: a seed of the run (default: the first).

    Returns:
      The model with its best parameters on the validation text.

    Raises:
      RefusedError: the run does not exist; a saved model has no seeds.
      FileNotFoundError: the seed does not exist; nothing was saved yet.
    """
    if not (run_dir / "config.json").exists():
        below = sorted(path.parent.name for path in run_dir.glob("*/config.json"))
        hint = f", but in {', '.join(below)} below it" if below else ""
        raise RefusedError(f"there is no run in {run_dir}{hint}")
    config = read_config(run_dir, PRESETS["quick"])
    vocabulary = vocabulary_from(read_json(run_dir / VOCABULARY_FILE))
    model = make_model(config, vocabulary.size)
    if (run_dir / PARAMS_FILE).exists():
        if seed is not None:
            raise RefusedError(f"{run_dir} holds a saved model, which has no seeds, got {seed}")
        wanted = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
        step, params = read_params(run_dir, wanted)
        return Saved(config, vocabulary, model, params, step)
    seed = config.train.seeds[0] if seed is None else seed
    step, params = _restore(run_dir, config, vocabulary, seed)
    return Saved(config, vocabulary, model, params, step)


def save(run_dir: Path, folder: Path, seed: int | None = None, half: bool = False) -> None:
    """Writes the model of a run into a folder to share; `half`: as float16.

    Raises:
      RefusedError: the folder holds a run; as `load`.
    """
    if (folder / "config.json").exists() and not (folder / PARAMS_FILE).exists():
        raise RefusedError(f"{folder} holds a run; choose another folder")
    found = load(run_dir, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copyfile(run_dir / name, folder / name)
    # The text lies elsewhere for others.
    config = json.loads((folder / "config.json").read_text())
    config["data"]["path"] = None
    first = config["train"]["seed"]
    config["train"] |= {"seed": first if seed is None else seed, "num_seeds": 1}
    write_json(folder / "config.json", config)
    write_params(folder, found.params, found.step, half)


def _restore(
    run_dir: Path, config: Config, vocabulary: Vocabulary, seed: int
) -> tuple[int, Params]:
    has_best = any(path.name.isdigit() for path in (run_dir / BEST).glob("*"))
    # The shapes of a state do not depend on the text.
    length = max(config.train.batch_size * config.text.window, config.text.eval_rows) + 1
    tokens = np.broadcast_to(np.uint16(0), (length,))
    splits = {name: Split(name, tokens, 1, 1) for name in ("train", "valid")}
    text = Tokens(vocabulary, splits, np.ones(vocabulary.size, np.int64), {})
    one = dataclasses.replace(config.train, devices=1)
    folder = BEST if has_best else "checkpoints"
    return restore_params(make_problem(config, text), one, run_dir, seed, folder)


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.language_model.saved", description=__doc__
    )
    parser.add_argument("run_dir", type=Path, help="directory of the run, of one model")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--run-seed", type=int, help="which seed of the run (default: the first)")
    parser.add_argument("--half", action="store_true", help="round the parameters to float16")
    given = parser.parse_args(args)
    return exit_code(lambda: save(given.run_dir, given.folder, given.run_seed, given.half))


if __name__ == "__main__":
    sys.exit(main())
