"""Saves the state of a writer, to continue a text later."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.common.records import replacing
from experiments.common.refused import RefusedError
from experiments.language_model.sampling import Session
from experiments.language_model.saved import Saved


def save_session(path: Path, session: Session, held: Sequence[bytes], saved: Saved) -> None:
    """Writes a session into a NumPy file (without adding an ending to its name).

    Args:
      path: the file.
      session: the state.
      held: for each row the bytes of an incomplete character at its end (at most 3, none is zero).
      saved: the model.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(session.carry)]
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            *leaves,
            last=session.last,
            written=np.int64(session.written),
            held=np.array(held, "S3"),
            model=np.array(saved.digest()),
        )


def load_session(path: Path, saved: Saved) -> tuple[Session, list[bytes]]:
    """Reads a session, and the bytes of an incomplete character at the end of each row.

    Raises:
      RefusedError: the file does not exist, is not a session, or belongs to another model.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        last, written, model, held = map(arrays.pop, ("last", "written", "model", "held"))
    except KeyError as error:
        raise RefusedError(f"{path} does not hold a session: it has no array {error}") from None
    except FileNotFoundError:
        raise RefusedError(f"there is no file {path}") from None
    except Exception as error:  # Any error of NumPy for other files.
        raise RefusedError(f"{path} does not hold a session: {error}") from None
    if str(model) != saved.digest():
        raise RefusedError(f"{path} is the session of another model")
    structure = jax.tree.structure(saved.model.initial_carry(1))
    leaves = [arrays[f"arr_{i}"] for i in range(len(arrays))]
    return Session(jax.tree.unflatten(structure, leaves), last, int(written)), held.tolist()
