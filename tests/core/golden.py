"""Loads the golden arrays: each case as a cell, its parameters, and the expected results."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.interop import from_sonnet, load_sonnet

FOLDER = Path(__file__).parent.parent / "golden"
PATHS = sorted(FOLDER.glob("rmc_*.npz"))
NAMES = [path.stem for path in PATHS]

OUTPUT_ATOL = 2e-5
GRADIENT_ATOL, GRADIENT_RTOL = 5e-6, 1e-4


@dataclass(frozen=True)
class Golden:
    """One recorded case. Time comes first: inputs `[T, B, I]` or `[T, B, R, I]`."""

    name: str
    arrays: dict[str, np.ndarray]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The recorded configuration, as Python values."""
        prefix = "config/"
        return {
            name.removeprefix(prefix): value.item()
            for name, value in self.arrays.items()
            if name.startswith(prefix)
        }

    @cached_property
    def cell(self) -> RelationalMemoryCell:
        """The cell of that configuration."""
        config = self.config
        return RelationalMemoryCell(
            mem_slots=config["mem_slots"],
            head_size=config["head_size"],
            num_heads=config["num_heads"],
            num_blocks=config["num_blocks"],
            key_size=config["key_size"] if config["key_size_was_given"] else None,
            attention_mlp_layers=config["attention_mlp_layers"],
            gate_style=None if config["gate_style"] == "none" else config["gate_style"],
            forget_bias=config["forget_bias"],
            input_bias=config["input_bias"],
            matrix_inputs=config["treat_input_as_matrix"],
        )

    @cached_property
    def params(self) -> dict[str, Any]:
        """The cell's parameters."""
        return jax.tree.map(jnp.asarray, load_sonnet(FOLDER / f"{self.name}.npz"))

    @cached_property
    def inputs(self) -> jax.Array:
        """`[T, B, I]` or, for matrix inputs, `[T, B, R, I]`."""
        return jnp.asarray(self._flatten_features(self.arrays["inputs"]))

    @cached_property
    def initial_memory(self) -> jax.Array:
        """`[B, S, F]`."""
        return jnp.asarray(self.arrays["initial_memory"])

    @cached_property
    def loss_weights(self) -> jax.Array:
        """`[T, B, S*F]`."""
        return jnp.asarray(self.arrays["loss_weights"])

    @cached_property
    def gradients(self) -> tuple[Any, np.ndarray, np.ndarray]:
        """Of the parameters, the inputs and the initial memory."""
        prefix = "grads/params/"
        params = {
            name.removeprefix(prefix): value
            for name, value in self.arrays.items()
            if name.startswith(prefix)
        }
        inputs = self._flatten_features(self.arrays["grads/inputs"])
        return from_sonnet(params), inputs, self.arrays["grads/initial_memory"]

    def _flatten_features(self, inputs: np.ndarray) -> np.ndarray:
        leading = 3 if self.config["treat_input_as_matrix"] else 2
        return inputs.reshape(*inputs.shape[:leading], -1)


def load(name: str) -> Golden:
    """The case of that name."""
    with np.load(FOLDER / f"{name}.npz") as loaded:
        return Golden(name, {key: loaded[key] for key in loaded.files})


def assert_close(
    actual: Any, expected: Any, atol: float = GRADIENT_ATOL, rtol: float = GRADIENT_RTOL
) -> None:
    """Compares two pytrees, by default within the tolerance of gradients, naming what differs."""
    expected = dict(jax.tree_util.tree_leaves_with_path(expected))
    actual = dict(jax.tree_util.tree_leaves_with_path(actual))
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        assert actual[path].dtype == value.dtype
        np.testing.assert_allclose(
            actual[path], value, atol=atol, rtol=rtol, err_msg=jax.tree_util.keystr(path)
        )
