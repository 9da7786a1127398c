"""The models: a recurrent core over the objects, and the paper's read-out of its last output."""

import jax.numpy as jnp
from flax import linen as nn

from experiments.common.cells import make_cell, products
from experiments.common.modules import MLP
from experiments.nth_farthest.config import Config
from rrnn_jax import RNN
from rrnn_jax.typing import Array, Dtype, Implementation


class Model(nn.Module):
    """A core over a sequence, and an MLP on its last output or on all outputs.

    Attributes:
      cell: the recurrent core.
      num_objects: N, the number of answers.
      readout_features: width of the MLP's four layers (default: the paper's 256).
      implementation: how the core runs, see `rrnn_jax.RNN`.
      dtype: dtype of the products.
    """

    cell: nn.RNNCellBase
    num_objects: int
    readout_features: int = 256
    implementation: Implementation = "auto"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, inputs: Array, every_step: bool = False) -> Array:
        """Logits ``[B, N]``, or ``[B, T, N]`` at every step, in float32, for ``[B, T, I]``."""
        core = RNN(self.cell, implementation=self.implementation, name="core")
        outputs = core(inputs)
        if not every_step:
            outputs = outputs[..., -1, :]
        hidden = (self.readout_features,) * 4
        readout = MLP(self.num_objects, hidden, dtype=self.dtype, name="readout")
        return readout(outputs).astype(jnp.float32)


def make_model(config: Config) -> Model:
    """The model of a config.

    Raises:
      ValueError: `config.model` does not name one model.
    """
    return Model(
        make_cell(config, config.model, config.dtype),
        config.task.num_objects,
        config.readout_features,
        config.implementation if config.model == "rmc" else "auto",
        products(config.dtype),
    )
