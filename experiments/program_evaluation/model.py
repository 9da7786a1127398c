"""The model: a recurrent core that reads the characters, then writes the answer's.

One core is encoder and decoder: it reads the input, then continues from its carry for the largest
length of an answer. An MLP computes the logits of each of these steps.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.common import cells
from experiments.common.modules import MLP
from experiments.program_evaluation.config import MEMORIZATION, Config
from rrnn_jax import RNN
from rrnn_jax.typing import Array, Carry, Dtype, Implementation

Decoding = Literal["non_autoregressive", "teacher_forced", "autoregressive"]


class Model(nn.Module):
    """A core over the input's characters and over the answer's, and an MLP on the latter.

    The input of the decoder (at the first step always zeros):

    - ``non_autoregressive``: zeros (paper 4.2: the best);
    - ``teacher_forced``: the previous character of the target, if it is given; else as
    - ``autoregressive``: the most likely previous character.

    Attributes:
      cell: the recurrent core.
      vocab_size: V.
      output_steps: steps of the decoder.
      decoding: see above.
      implementation: how the core runs, see `rrnn_jax.RNN`.
      dtype: dtype of the products.
    """

    cell: nn.RNNCellBase
    vocab_size: int
    output_steps: int
    decoding: Decoding = "non_autoregressive"
    implementation: Implementation = "auto"
    dtype: Dtype | None = None

    def setup(self) -> None:
        """Creates the submodules."""
        self.core = RNN(self.cell, implementation=self.implementation)
        self.readout = MLP(self.vocab_size, dtype=self.dtype)

    def __call__(self, inputs: Array, input_mask: Array, targets: Array | None = None) -> Array:
        """Logits ``[B, T_out, V]`` in float32.

        Args:
          inputs: ``[B, T_in]`` characters.
          input_mask: ``[B, T_in]`` bool: False at padding.
          targets: ``[B, T_out]`` characters for teacher forcing.
        """
        encoder_inputs = self._one_hot(inputs)
        decoder_inputs = jnp.zeros(
            (inputs.shape[0], self.output_steps, self.vocab_size), encoder_inputs.dtype
        )
        # Initialising makes the same parameters either way, and this is the simpler one.
        if self.decoding != "non_autoregressive" and not self.is_initializing():
            if self.decoding == "autoregressive" or targets is None:
                carry, _ = self.core(encoder_inputs, mask=input_mask, return_carry=True)
                return self._feed_back(carry, decoder_inputs[:, 0])
            before = self._one_hot(targets[:, :-1])
            decoder_inputs = decoder_inputs.at[:, 1:].set(before)
        # Encoder and decoder are one scan with one carry.
        outputs = self.core(
            jnp.concatenate([encoder_inputs, decoder_inputs], axis=1),
            mask=jnp.pad(input_mask, ((0, 0), (0, self.output_steps)), constant_values=True),
        )
        return self.readout(outputs[:, inputs.shape[1] :]).astype(jnp.float32)

    def _one_hot(self, characters: Array) -> Array:
        return jax.nn.one_hot(characters, self.vocab_size, dtype=self.dtype or jnp.float32)

    def _feed_back(self, carry: Carry, start: Array) -> Array:
        """Decodes step by step, each with the most likely character of the previous step."""

        def step(self: "Model", state: tuple[Carry, Array], _: None) -> tuple:
            carry, before = state
            carry, output = self.cell(carry, before)
            logits = self.readout(output).astype(jnp.float32)
            return (carry, self._one_hot(jnp.argmax(logits, axis=-1))), logits

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False},
            length=self.output_steps,
            out_axes=1,
        )
        return scan(self, (carry, start), None)[1]


def make_cell(config: Config) -> nn.RNNCellBase:
    """The core of a config; the DNC has the controller of paper A.2 for the task.

    Raises:
      ValueError: `config.model` does not name one model.
    """
    if config.dnc.controller == "auto" and config.task in MEMORIZATION:
        dnc = dataclasses.replace(config.dnc, controller="feedforward")
        config = dataclasses.replace(config, dnc=dnc)
    return cells.make_cell(config, config.model, config.dtype)


def make_model(config: Config, vocab_size: int, output_steps: int) -> Model:
    """The model of a config.

    Args:
      config: a config with one task and one model.
      vocab_size: V.
      output_steps: steps of the decoder.

    Returns:
      A `Model`.
    """
    return Model(
        make_cell(config),
        vocab_size,
        output_steps,
        config.decoding,
        config.implementation if config.model == "rmc" else "auto",
        cells.products(config.dtype),
    )
