"""Checkpoints: the one place that knows orbax."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.refused import RefusedError

KEPT = 3


class Checkpoints:
    """The checkpoints of a run, newest few kept.

    A checkpoint appears under its name only when it is complete. Beside the state it holds a digest
    of it, so that damage of a later date is noticed too.
    """

    def __init__(self, directory: Path, keep: int = KEPT) -> None:
        # Orbax refuses relative paths.
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            ),
        )

    def save(self, step: int, state: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Saves a state; does nothing if there is a checkpoint of that step."""
        if step in self._manager.all_steps():
            return
        state = jax.tree.map(np.asarray, state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                digest=ocp.args.JsonSave({"sha256": _digest(state), **(notes or {})}),
            ),
        )

    def restore_latest(self, like: Any) -> tuple[int, Any] | None:
        """The newest sound checkpoint.

        Damaged ones are named in a message, and removed so that they can be written anew.

        Args:
          like: a state of the same structure, shapes and dtypes (or its `jax.eval_shape`).

        Returns:
          Its step and state; None if there is no checkpoint at all.

        Raises:
          RefusedError: there are checkpoints, but not one of them can be used.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                state = self._restore(step, like)
            except Exception as error:  # Whatever a damaged file makes orbax raise.
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                print(f"Checkpoint of step {step} is damaged and is skipped: {reason[:200]}")
                continue
            for damaged in steps[: steps.index(step)]:
                self._manager.delete(damaged)
            return step, state
        if steps:
            raise RefusedError(
                f"none of the checkpoints (steps {sorted(steps)}) can be restored; remove the "
                "directory `checkpoints` to start over"
            )
        return None

    def note(self, name: str) -> Any:
        """A note of the newest checkpoint; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        found = self._manager.restore(step, args=ocp.args.Composite(digest=ocp.args.JsonRestore()))
        return found["digest"].get(name)

    def close(self) -> None:
        """Releases orbax's threads."""
        self._manager.close()

    def _restore(self, step: int, like: Any) -> Any:
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), digest=ocp.args.JsonRestore()
            ),
        )
        state = jax.tree.map(np.asarray, restored["state"])
        shapes = [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
        if shapes != [(x.shape, x.dtype) for x in jax.tree.leaves(like)]:
            raise ValueError("shapes or dtypes differ from those of the model")
        if restored["digest"]["sha256"] != _digest(state):
            raise ValueError("the digest does not match the content")
        return state


def _digest(state: Any) -> str:
    """SHA-256 of names, shapes, dtypes and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
