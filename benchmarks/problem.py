"""The weights, inputs and loss shared by all variants of a setting."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.settings import Setting
from rrnn_jax import RelationalMemoryCell


@dataclasses.dataclass(frozen=True)
class Problem:
    """A setting with its arrays.

    Attributes:
      setting: the sizes.
      cell: the relational memory of these sizes.
      params: its weights as for `flax.linen.RNN`, ``{"cell": ...}``.
      inputs: ``[B, T, I]``.
      loss_weights: ``[B, T, S*F]`` float32; the loss is ``mean(outputs * loss_weights)``.
    """

    setting: Setting
    cell: RelationalMemoryCell
    params: Any
    inputs: jax.Array
    loss_weights: jax.Array


def make_problem(setting: Setting, seed: int = 0) -> Problem:
    """Draws the arrays of a setting.

    Biases and scales are random too: with their initial zeros and ones, a variant that omits one
    would not be detected.
    """
    rng = np.random.default_rng(seed)
    cell = make_cell(setting)
    shape = (setting.batch, setting.steps)
    inputs = rng.standard_normal((*shape, setting.features), np.float32)
    loss_weights = rng.standard_normal((*shape, cell.output_size), np.float32)
    one_step = jnp.zeros((1, 1, setting.features), setting.array_dtype)
    init = jax.jit(lambda: nn.RNN(cell).init(jax.random.key(seed), one_step)["params"])

    def perturb(leaf: jax.Array) -> jax.Array:
        if leaf.ndim > 1:
            return leaf
        noise = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(np.asarray(leaf) + 0.1 * noise, leaf.dtype)

    return Problem(
        setting,
        cell,
        jax.tree.map(perturb, init()),
        jnp.asarray(inputs, setting.array_dtype),
        jnp.asarray(loss_weights),
    )


def make_cell(setting: Setting) -> RelationalMemoryCell:
    """The relational memory of a setting's sizes."""
    return RelationalMemoryCell(
        mem_slots=setting.slots,
        head_size=setting.head_size,
        num_heads=setting.heads,
        num_blocks=setting.blocks,
        attention_mlp_layers=setting.mlp_layers,
        gate_style=setting.gate_style,
        dtype=jnp.dtype(setting.array_dtype),
    )
