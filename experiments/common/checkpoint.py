"""Checkpoints; the only module that uses orbax."""

import contextlib
import hashlib
import io
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from experiments.common.parallel import count
from experiments.common.refused import RefusedError

KEPT = 3


class StorageError(RefusedError):
    """A checkpoint cannot be written."""


class Restored(NamedTuple):
    """A checkpoint.

    Attributes:
      step: its step.
      state: the saved state, as NumPy arrays.
      notes: its notes.
    """

    step: int
    state: Any
    notes: Mapping[str, Any]


def read_latest(directory: Path, like: Any) -> Restored:
    """The newest valid checkpoint of a run, which may still be training; changes nothing.

    A message lists damaged ones.

    Args:
      directory: the run's ``checkpoints``.
      like: a state of the same structure, shapes and dtypes (or its `jax.eval_shape`).

    Raises:
      FileNotFoundError: there is no checkpoint.
      RefusedError: there are checkpoints, but none of them can be used.
    """
    restored = None
    if directory.is_dir():
        with _quiet():  # Orbax warns that it only reads.
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, multiprocessing_options=_alone()
            )
            manager = ocp.CheckpointManager(directory.absolute(), options=options)
            with contextlib.closing(manager):
                restored, _ = _restore_latest(manager, like)
    if restored is None:
        raise FileNotFoundError(f"no checkpoint in {directory.parent}; train first")
    return restored


class Writer:
    """Writes the checkpoints of a run and keeps the newest ones. For a single process.

    A checkpoint appears under its name only when it is complete. It contains a digest of the state,
    so that later damage is detected.

    Args:
      directory: the run's ``checkpoints``; created if missing.
      keep: number of checkpoints to keep.
    """

    def __init__(self, directory: Path, keep: int = KEPT) -> None:
        # Orbax refuses relative paths.
        self._directory = directory.absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                multiprocessing_options=_alone(),
            ),
        )

    def clear(self, after: int) -> None:
        """Removes checkpoints of steps later than `after`."""
        for step in self._manager.all_steps():
            if step > after:
                self._manager.delete(step)

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Saves a state; does nothing if there is a checkpoint of that step.

        Args:
          step: its step.
          state: a tree of arrays.
          notes: notes to read with it, or with `note`.

        Raises:
          StorageError: it cannot be written, for example because the disk is full; earlier
            checkpoints stay.
        """
        if step in self._manager.all_steps():
            return
        state = jax.tree.map(np.asarray, state)
        about = {"sha256": _digest(state), **(notes or {})}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave(about)
        )
        try:
            with _quiet():
                try:
                    self._manager.save(step, args=args)
                except Exception:
                    time.sleep(2)  # In which its threads complain, too.
                    raise
        except Exception as error:  # Orbax and its threads wrap what the system says.
            reason = _reason(error)
        else:
            return
        # Outside the handler, because orbax's traceback has a hundred lines and adds nothing.
        free = shutil.disk_usage(self._directory).free
        raise StorageError(
            f"the checkpoint of step {step} cannot be written into {self._directory} "
            f"({free / 2**20:,.0f} MiB free): {reason}"
        )

    def restore_latest(self, like: Any) -> Restored | None:
        """As `read_latest`; None if there is no checkpoint.

        Newer damaged checkpoints are removed, so that they can be written again.
        """
        restored, damaged = _restore_latest(self._manager, like)
        for step in damaged if restored is not None else ():
            self._manager.delete(step)
        return restored

    def note(self, name: str) -> Any:
        """A note of the newest checkpoint; None if there is none. Damaged ones are removed."""
        args = ocp.args.Composite(digest=ocp.args.JsonRestore())
        while (step := self._manager.latest_step()) is not None:
            try:
                return self._manager.restore(step, args=args)["digest"].get(name)
            except Exception as error:  # Any error that a damaged file causes in orbax.
                print(f"{self._directory / str(step)} is damaged and is removed: {error!r:.200}")
                self._manager.delete(step)
        return None

    def close(self) -> None:
        """Releases orbax's threads."""
        self._manager.close()


def _alone() -> MultiprocessingOptions:
    """Options without coordination: every host has the whole state, and the first one writes."""
    if count() == 1:
        return MultiprocessingOptions()
    index = jax.process_index()
    return MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )


def _restore_latest(manager: ocp.CheckpointManager, like: Any) -> tuple[Restored | None, list[int]]:
    """The newest valid checkpoint, and the steps of newer damaged ones."""
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            return _restore(manager, step, like), damaged
        except Exception as error:  # Any error that a damaged file causes in orbax.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"Checkpoint of step {step} is damaged and is skipped: {reason[:200]}")
            damaged.append(step)
    if damaged:
        raise RefusedError(
            f"none of the checkpoints (steps {sorted(damaged)}) can be restored; remove the "
            "directory `checkpoints` to start over"
        )
    return None, []


def _restore(manager: ocp.CheckpointManager, step: int, like: Any) -> Restored:
    like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(like), digest=ocp.args.JsonRestore()
        ),
    )
    state = jax.tree.map(np.asarray, restored["state"])
    shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    if shapes != [(x.shape, x.dtype) for x in jax.tree.leaves(like)]:
        raise ValueError("shapes or dtypes differ from those of the model")
    about = restored["digest"]
    if about.get("sha256") != _digest(state):
        raise ValueError("the digest does not match the content")
    return Restored(step, state, about)


def _digest(state: Any) -> str:
    """SHA-256 of names, shapes, dtypes and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    """The system's message, from the innermost error."""
    seen = [error]
    while (below := seen[-1].__cause__ or seen[-1].__context__) is not None:
        seen.append(below)
    for each in reversed(seen):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    text = str(error) or type(error).__name__
    told = re.search(r"os_error_code='(\d+)'", text)  # By tensorstore.
    return os.strerror(int(told[1])) if told else text.splitlines()[0][-200:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses messages of orbax and its threads; errors are also raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
