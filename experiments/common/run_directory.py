"""A run's directory: config, lock and sessions; prevents mixing of two runs."""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.common import parallel
from experiments.common.cells import Core
from experiments.common.environment import describe_environment
from experiments.common.records import append_rows, read_json, read_rows, write_json
from experiments.common.refused import RefusedError

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
SESSIONS_FILE = "sessions.jsonl"
LOCK_FILE = "lock"
FAILURE_FILE = "failure.json"
PARAMS_FILE = "params.npz"
"""Contains parameters by path, and their ``step``: a saved model, not a run."""

UNLEARNED = {
    "chunk_steps", "eval_every", "checkpoint_every", "checkpoint_minutes", "implementation",
    "devices", "minutes", "target", "eval_samples", "test_episodes", "path",
}  # fmt: skip
"""Fields that do not affect what a run learns, and may therefore change. The content of the text at
a `path` is compared by itself."""

WHOLE_RUN = {"easy_share": 0.0, "final_entropy_cost": None}
"""Fields that, with another value than this, are about all updates, as a schedule is."""


class ConfigMismatchError(RefusedError):
    """The directory contains a run with another config."""


class RunExistsError(RefusedError):
    """The directory unexpectedly contains a run, or contains none."""


class RunFailedError(FloatingPointError):
    """The run reached NaN or infinity in an earlier session."""


class RunBusyError(RefusedError):
    """Another process writes into the directory."""


def open_run(run_dir: Path, config: Any, resume: bool | None = None) -> None:
    """Creates a run directory, or checks that it belongs to the same config.

    An existing run may get other values of `UNLEARNED`, and more steps if nothing depends on their
    number, such as a schedule of the learning rate; the config in the directory is then replaced.
    Settings of other models than the run's are not compared.

    Args:
      run_dir: the directory; created if missing.
      config: a dataclass of the run's whole configuration.
      resume: True: there must be a run to resume; False: there must be none; None: either.

    Raises:
      ConfigMismatchError: the existing run has another config; the message lists the fields.
      RunExistsError: see `resume`; there are checkpoints of a run without its config; or the
        directory holds a saved model.
      RunBusyError: another process is writing to the directory.
      RefusedError: the existing config is damaged, or JAX finds no device.
    """
    parallel.first(lambda: _open_run(run_dir, config, resume))


def _open_run(run_dir: Path, config: Any, resume: bool | None) -> None:
    if may_open(run_dir, config, resume) == {}:
        return
    find_device()  # Before a directory is made.
    with hold(run_dir):
        changes = may_open(run_dir, config, resume)  # Another process may have been there first.
        if changes is None or changes:
            write_json(run_dir / CONFIG_FILE, as_json(config))
            (run_dir / FAILURE_FILE).unlink(missing_ok=True)
        if _goes_on(changes or {}):
            (run_dir / SUMMARY_FILE).unlink(missing_ok=True)


def may_open(
    run_dir: Path, config: Any, resume: bool | None = None
) -> dict[str, tuple[Any, Any]] | None:
    """Checks that `open_run` accepts a directory and a config; writes nothing.

    Returns:
      The fields that change, see `check_run`; None for a new run.

    Raises:
      RunExistsError, ConfigMismatchError, RefusedError: as `open_run`.
    """
    if (run_dir / PARAMS_FILE).exists():
        raise RunExistsError(f"{run_dir} holds a saved model, not a run; choose another --run-dir")
    if resume or (run_dir / CONFIG_FILE).exists():
        if resume is False:
            raise RunExistsError(
                f"{run_dir} holds a run already; choose another --run-dir, or drop --fresh"
            )
        return check_run(run_dir, config)
    if (run_dir / "checkpoints").exists():
        raise RunExistsError(
            f"{run_dir} has checkpoints, but no {CONFIG_FILE} to say of what; put it back, "
            "or choose another --run-dir"
        )
    return None


def check_run(run_dir: Path, config: Any) -> dict[str, tuple[Any, Any]]:
    """Checks that a directory contains a run that can resume with a config; writes nothing.

    Returns:
      The fields that change, none of which affects what is learned: old and new value by name.

    Raises:
      RunExistsError, ConfigMismatchError, RefusedError: as `open_run`.
    """
    path = run_dir / CONFIG_FILE
    if not path.exists():
        raise RunExistsError(
            f"there is no run in {run_dir}; choose another --run-dir, or train one first, without "
            "--resume or --eval-only"
        )
    found = read_json(path)
    if not isinstance(found, Mapping):
        raise RefusedError(f"{path} is damaged: it holds no config")
    wanted = flatten(as_json(config))
    # A field that was added later has its default, which never changes the meaning of old runs.
    there = _defaults(config) | flatten(found)
    changes = {
        name: (there.get(name, "(absent)"), wanted.get(name, "(absent)"))
        for name in dict.fromkeys([*there, *wanted])
        if there.get(name, "(absent)") != wanted.get(name, "(absent)")
        and not _of_another_model(name, wanted, config)
    }
    wrong = [name for name in changes if not _may_change(name, there, wanted)]
    if wrong:
        differences = [f"  {name}: {changes[name][0]!r} there, {changes[name][1]!r} asked"
                       for name in wrong]  # fmt: skip
        raise ConfigMismatchError(
            f"{run_dir} holds a run with another config:\n"
            + "\n".join(differences)
            + "\nChoose another --run-dir, or give the same options."
        )
    return changes


def is_finished(run_dir: Path, config: Any) -> bool:
    """Whether a directory contains a finished run with these steps, target and evaluations.

    Raises:
      RunExistsError, ConfigMismatchError, RefusedError: as `open_run`.
    """
    return not _goes_on(check_run(run_dir, config)) and (run_dir / SUMMARY_FILE).exists()


def _goes_on(changes: Mapping[str, Any]) -> bool:
    """Whether a finished run with these changes is not finished."""
    names = {name.rpartition(".")[2] for name in changes}
    return not {"steps", "target", "eval_samples", "test_episodes"}.isdisjoint(names)


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Locks a directory against writes of other processes; it is created if missing.

    The system releases the lock when the process ends, for any reason.

    Raises:
      RunBusyError: another process holds the lock; the message names it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunBusyError(
                f"{run_dir} is in use by {holder}; wait for it, stop it, or choose another "
                "--run-dir"
            ) from None
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def note_session(run_dir: Path, step: int) -> None:
    """Records the environment of a session and its first step in ``sessions.jsonl``.

    ``environment.json`` has that of the latest session. The summary of a run that goes on is
    removed; it is written again at the end.
    """
    if parallel.is_main():
        (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
    environment = describe_environment()
    append_rows(run_dir / SESSIONS_FILE, [{"step": step, "environment": environment}])
    write_json(run_dir / "environment.json", environment)


def check_shared(run_dir: Path, step: int) -> None:
    """Checks that all processes see the same files: a config, and the same checkpoint's step.

    Raises:
      RefusedError: they do not.
    """
    if parallel.count() == 1:
        return
    tries = 30  # A network file system may show new files late.
    while tries and not (run_dir / CONFIG_FILE).exists():
        time.sleep(1)
        tries -= 1
    parallel.wait()
    if parallel.differ(step if tries else -2):
        raise RefusedError(
            f"all processes must share --run-dir {run_dir}: they do not see the same files there"
        )


def note_failure(run_dir: Path, message: str) -> None:
    """Records that training failed; the same options would fail again."""
    write_json(run_dir / FAILURE_FILE, {"error": message})


def check_not_failed(run_dir: Path) -> None:
    """Raises `RunFailedError` if an earlier session recorded a failure."""
    path = run_dir / FAILURE_FILE
    if path.exists():
        raise RunFailedError(
            f"an earlier session ended so: {read_json(path)['error']} The same options come to the "
            f"same end; remove {path} to try it all the same."
        )


def read_environment(run_dir: Path) -> dict[str, Any]:
    """The environment of a run's first session, with ``git_commits`` of all sessions in order.

    Raises:
      FileNotFoundError: the run has not been trained.
    """
    sessions = [row["environment"] for row in read_rows(run_dir / SESSIONS_FILE)]
    if not sessions:
        raise FileNotFoundError(f"no {SESSIONS_FILE} in {run_dir}")
    commits = (environment["git_commit"] for environment in sessions)
    return sessions[0] | {"git_commits": [commit for commit, _ in itertools.groupby(commits)]}


def write_evaluation(run_dir: Path, result: Any) -> None:
    """Writes ``evaluation.json``; prints a message if that fails, so that results are not lost."""
    path = run_dir / "evaluation.json"
    try:
        write_json(path, result)
    except OSError as error:
        print(f"{path} is not written: {error.strerror}")


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


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a ``config.json`` that a run's numbers depend on, except the seeds; flat.

    The sections of other cores are left out. A core's section has fields named after it.

    >>> settings_of({"preset": "quick", "model": "lstm", "lstm": {"lstm_features": 8},
    ...              "gru": {"gru_features": 4}, "train": {"steps": 10, "seed": 3}})
    {'model': 'lstm', 'lstm.lstm_features': 8, 'train.steps': 10}
    """
    others = {
        section
        for section, fields in config.items()
        if isinstance(fields, Mapping) and any(name.startswith(f"{section}_") for name in fields)
    } - {config.get("model")}
    if "model" not in config:  # A grid's rows differ in theirs.
        others = set()
    left_out = {"preset", "seed", "num_seeds", *UNLEARNED}
    return {
        name: value
        for name, value in flatten(config).items()
        if name.partition(".")[0] not in others and name.rpartition(".")[2] not in left_out
    }


def as_json(config: Any) -> Any:
    """A dataclass as read from a JSON file."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _may_change(name: str, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    section, _, field = name.rpartition(".")
    if field != "steps":
        return field in UNLEARNED
    schedule = _own_schedule(wanted) or wanted.get(f"{section}.schedule")
    return (
        schedule == "constant"
        and name in there
        and there[name] < wanted[name]
        and all(
            value == WHOLE_RUN.get(other.rpartition(".")[2], value)
            for other, value in wanted.items()
        )
    )


def _own_schedule(wanted: Mapping[str, Any]) -> str | None:
    """The schedule of the run's core itself, in its section or named after it (ablations)."""
    model = wanted.get("model")
    for name, value in wanted.items():
        section, _, field = name.rpartition(".")
        is_own = section == model or field == f"{model}_schedule"
        if value and is_own and field.endswith("_schedule"):
            return value
    return None


def _of_another_model(name: str, wanted: Mapping[str, Any], config: Any) -> bool:
    """Whether a field belongs to the core of another model than the run's.

    A section that the config does not have now is that of a core that is not registered now.
    """
    section, _, field = name.partition(".")
    if wanted.get("model") in (None, "all", section) or not field:
        return False
    return not hasattr(config, section) or isinstance(getattr(config, section), Core)


def _defaults(config: Any, prefix: str = "") -> dict[str, Any]:
    """The defaults of the fields of a dataclass and of its sections."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _defaults(value, f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            found[prefix + field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[prefix + field.name] = field.default_factory()
    return json.loads(json.dumps(found))


def find_device() -> None:
    """Checks that JAX finds a device.

    Raises:
      RefusedError: it finds none.
    """
    import jax

    try:
        jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RefusedError(f"JAX finds no device: {reason}") from error
