"""A run's directory: its config, and the refusal to mix two runs."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.environment import describe_environment, note_commit
from experiments.common.refused import RefusedError

ENVIRONMENT_FILE = "environment.json"


class ConfigMismatchError(RefusedError):
    """The directory holds a run with another config."""


class RunExistsError(RefusedError):
    """The directory does, or does not, hold a run, against what was asked for."""


def open_run(run_dir: Path, config: Any, resume: bool | None = None) -> None:
    """Makes a run directory, or checks that it belongs to the same config.

    Args:
      run_dir: the directory; made if missing.
      config: a dataclass of the run's whole configuration.
      resume: True: there must be a run to go on with; False: there must be none; None: either.

    Raises:
      ConfigMismatchError: the run there has another config; the message lists the fields.
      RunExistsError: see `resume`.
    """
    path = run_dir / "config.json"
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists():
        if resume is False:
            raise RunExistsError(
                f"{run_dir} holds a run already; choose another --run-dir, or drop --fresh"
            )
        check_same_config(run_dir, json.loads(path.read_text()), wanted)
        return
    if resume:
        raise RunExistsError(
            f"there is no run in {run_dir}; choose another --run-dir, or train one first, without "
            "--resume or --eval-only"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / ENVIRONMENT_FILE, describe_environment())
    write_json(path, wanted)


def note_session(run_dir: Path) -> None:
    """Notes the commit at which an open run is trained on; without an open run does nothing."""
    if (run_dir / ENVIRONMENT_FILE).exists():
        note_commit(run_dir / ENVIRONMENT_FILE)


def check_same_config(run_dir: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises unless two configs are equal; see `open_run`."""
    flat_found, flat_wanted = flatten(found), flatten(wanted)
    fields = dict.fromkeys([*flat_found, *flat_wanted])
    absent = "(absent)"
    differences = [
        f"  {name}: {flat_found.get(name, absent)!r} there, {flat_wanted.get(name, absent)!r} asked"
        for name in fields
        if flat_found.get(name, absent) != flat_wanted.get(name, absent)
    ]
    if differences:
        raise ConfigMismatchError(
            f"{run_dir} holds a run with another config:\n"
            + "\n".join(differences)
            + "\nChoose another --run-dir, or give the same options."
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level, names joined by dots.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file in one piece: a reader sees the old or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
