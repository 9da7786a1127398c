"""Loads the DNC's golden arrays: each case as a cell, its parameters, and the expected results."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax.baselines import DNCCell, DNCState
from rrnn_jax.interop import dnc_from_reference

FOLDER = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("dnc_*.npz"))

# In the order of `DNCState` after the controller.
STATE_ARRAYS = (
    "access_output",
    "memory",
    "read_weights",
    "write_weights",
    "link",
    "precedence_weights",
    "usage",
)


@dataclass(frozen=True)
class Golden:
    """One recorded case. Time comes first: inputs `[T, B, I]`."""

    arrays: dict[str, np.ndarray]

    def config(self, name: str) -> Any:
        """An entry of the recorded configuration, as a Python value."""
        return self.arrays[f"config/{name}"].item()

    @cached_property
    def cell(self) -> DNCCell:
        """The cell of that configuration."""
        sizes = (
            "memory_size",
            "word_size",
            "num_reads",
            "num_writes",
            "controller_size",
            "output_size",
        )
        return DNCCell(
            **{name: self.config(name) for name in sizes}, clip_value=self.config("clip_value")
        )

    def params(self, prefix: str = "params/") -> Any:
        """The cell's parameters, or with ``grads/params/`` their gradients."""
        names = [name for name in self.arrays if name.startswith(prefix)]
        arrays = {name.removeprefix(prefix): self.arrays[name] for name in names}
        return jax.tree.map(jnp.asarray, dnc_from_reference(arrays))

    def state(self, prefix: str) -> DNCState:
        """``initial_state/``, ``states/`` or ``grads/initial_state/``."""
        a = {name: jnp.asarray(self.arrays[prefix + name]) for name in STATE_ARRAYS}
        controller = (
            jnp.asarray(self.arrays[f"{prefix}controller_cell"]),
            jnp.asarray(self.arrays[f"{prefix}controller_hidden"]),
        )
        return DNCState((controller,), *a.values())


def load(name: str) -> Golden:
    """The case of that name."""
    with np.load(FOLDER / f"{name}.npz") as loaded:
        return Golden({key: loaded[key] for key in loaded.files})
