"""The models: a recurrent core over the objects, and the paper's read-out of its last output."""

import jax.numpy as jnp
from flax import linen as nn

from experiments.common.modules import MLP
from experiments.nth_farthest.config import Config
from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.baselines import StackedLSTMCell
from rrnn_jax.typing import Array, Dtype


class Model(nn.Module):
    """A core over a sequence, and an MLP on its last output.

    Attributes:
      cell: the recurrent core.
      num_objects: N, the number of answers.
      implementation: how the core runs, see `rrnn_jax.RNN`.
      dtype: dtype of the products.
    """

    cell: nn.RNNCellBase
    num_objects: int
    implementation: str = "auto"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Logits ``[B, N]`` in float32 for inputs ``[B, T, I]``."""
        core = RNN(self.cell, implementation=self.implementation, name="core")
        last = core(inputs)[..., -1, :]
        logits = MLP(self.num_objects, dtype=self.dtype, name="readout")(last)
        return logits.astype(jnp.float32)


def make_model(config: Config) -> Model:
    """The model that a config asks for.

    Raises:
      ValueError: `config.model` does not name one model.
    """
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    implementation = config.implementation
    if config.model == "rmc":
        rmc = config.rmc
        cell: nn.RNNCellBase = RelationalMemoryCell(
            mem_slots=rmc.mem_slots,
            head_size=rmc.head_size,
            num_heads=rmc.num_heads,
            num_blocks=rmc.num_blocks,
            attention_mlp_layers=rmc.mlp_layers,
            gate_style=None if rmc.gate_style == "none" else rmc.gate_style,
            dtype=dtype,
        )
    elif config.model == "lstm":
        lstm = config.lstm
        cell = StackedLSTMCell(lstm.lstm_features, lstm.lstm_layers, dtype=dtype)
        implementation = "auto"
    else:
        raise ValueError(f"model must be 'rmc' or 'lstm', got {config.model!r}")
    return Model(cell, config.task.num_objects, implementation, dtype)
