"""What may leave the plateau of Nth Farthest soonest: named changes of the paper's configuration.

All have the paper's task (8 objects of 16 features) and, where nothing else is said, its sizes.
They stand in the order in which they are tried.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.nth_farthest.config import PRESETS, Config

# Of the quick preset's options, batch and rate matter most: small batches stay on the plateau.
_FAST = {
    "train.batch_size": 3200,
    "train.learning_rate": 5e-4,
    "train.warmup_steps": 500,
    "train.clip_norm": 1.0,
}

CANDIDATES: dict[str, Mapping[str, Any]] = {
    "fast": _FAST,
    "fast_bfloat16": _FAST | {"dtype": "bfloat16"},
    "batch_12800": _FAST | {"train.batch_size": 12800, "train.learning_rate": 1e-3},
    "batch_6400": _FAST | {"train.batch_size": 6400, "train.learning_rate": 1e-3},
    "batch_1600": _FAST | {"train.batch_size": 1600},
    "rate_1e-3": _FAST | {"train.learning_rate": 1e-3},
    "rate_2e-4": _FAST | {"train.learning_rate": 2e-4},
    "memory_gate": _FAST | {"rmc.gate_style": "memory"},
    "slots_16": _FAST | {"rmc.mem_slots": 16},
    "heads_4": _FAST | {"rmc.num_heads": 4, "rmc.head_size": 64},
    "heads_16": _FAST | {"rmc.num_heads": 16, "rmc.head_size": 16},
    "blocks_2": _FAST | {"rmc.num_blocks": 2},
    "no_clip": _FAST | {"train.clip_norm": None},
    "paper": {},
}
"""Changes by name; "paper" is the paper's configuration itself (batch 1600, constant 1e-4)."""

TOY = {
    "task.num_objects": 3,
    "task.num_features": 2,
    "rmc.mem_slots": 2,
    "rmc.num_heads": 1,
    "rmc.head_size": 4,
    "lstm.lstm_features": 3,
    "train.batch_size": 4,
    "train.warmup_steps": 2,
    "train.eval_samples": 8,
}
"""Sizes for trying things out."""


def make_config(model: str, candidate: str) -> Config:
    """The paper's configuration of one model with a candidate's changes.

    >>> config = make_config("lstm", "paper")
    >>> config.model, config.train.batch_size
    ('lstm', 1600)

    Args:
      model: "rmc" or "lstm".
      candidate: a key of `CANDIDATES`.

    Raises:
      ValueError: there is no such candidate.
    """
    if candidate not in CANDIDATES:
        raise ValueError(f"candidate must be one of {', '.join(CANDIDATES)}, got {candidate!r}")
    config = dataclasses.replace(PRESETS["paper"], model=model)  # type: ignore[arg-type]
    return change(config, CANDIDATES[candidate].items())


def change(config: Config, changes: Iterable[tuple[str, Any]]) -> Config:
    """The same with some options changed.

    >>> change(PRESETS["paper"], [("train.num_seeds", 3)]).train.num_seeds
    3

    Args:
      config: a configuration.
      changes: dotted names of options with their values.

    Raises:
      ValueError: there is no such option, or the value does not fit.
    """
    tree = dataclasses.asdict(config)
    for name, value in changes:
        *parents, field = name.split(".")
        place: Any = tree
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or field not in place or isinstance(place[field], dict):
            raise ValueError(f"there is no option {name!r}; options are such as train.batch_size")
        _check_type(name, place[field], value)
        place[field] = value
    return _build(config, tree)


def parse_change(text: str) -> tuple[str, Any]:
    """A change as it is given on the command line.

    >>> parse_change("train.learning_rate=1e-3"), parse_change("rmc.gate_style=memory")
    (('train.learning_rate', 0.001), ('rmc.gate_style', 'memory'))

    Raises:
      ValueError: there is no ``=``.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"a change must read NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _check_type(name: str, old: Any, new: Any) -> None:
    kinds = (int, float) if isinstance(old, float) else (type(old),)
    if old is not None and new is not None and not isinstance(new, kinds):
        raise ValueError(f"{name} must be of type {type(old).__name__}, got {new!r}")


def _build(like: Any, tree: Mapping[str, Any]) -> Any:
    """A config of the type of `like` from nested values."""
    changes = {
        name: _build(getattr(like, name), value) if isinstance(value, dict) else value
        for name, value in tree.items()
    }
    return dataclasses.replace(like, **changes)
