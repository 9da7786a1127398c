"""The recurrent cores that agents are compared with, by name."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from experiments.common.actor_critic.agent import Agent
from rrnn_jax import RelationalMemoryCell
from rrnn_jax.baselines import StackedLSTMCell
from rrnn_jax.checks import check_positive

TITLES = {
    "rmc": "Relational Memory Core",
    "lstm": "LSTM",
    "conv_lstm": "ConvLSTM",
    "none": "no memory",
}
"""What the cores are called in plots and tables."""


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """The agent; the defaults are the paper's (appendix A.3) where it says."""

    mem_slots: int = 4
    """Memory slots of the Relational Memory Core."""
    num_heads: int = 4
    """Its attention heads."""
    head_size: int = 64
    """Size of a head; a slot is num_heads * head_size wide."""
    gate_style: Literal["unit", "memory"] = "memory"
    """A gate per memory unit, or per slot."""
    lstm_features: int = 1024
    """Width of the LSTM."""
    conv_features: int = 64
    """Channels of the ConvLSTM, with kernels of 2 x 2."""
    width: int = 256
    """Width of the dense layers before and after the core."""
    last_action: bool = True
    """Whether the core sees the last action and reward."""

    def __post_init__(self) -> None:
        check_positive(
            mem_slots=self.mem_slots,
            num_heads=self.num_heads,
            head_size=self.head_size,
            lstm_features=self.lstm_features,
            conv_features=self.conv_features,
            width=self.width,
        )


def make_agent(config: AgentConfig, model: str, num_actions: int, dtype: str = "float32") -> Agent:
    """The agent with the core that `model` names.

    Raises:
      ValueError: an unknown name.
    """
    products = None if dtype == "float32" else jnp.dtype(dtype)
    cell: nn.RNNCellBase | None = None
    if model == "rmc":
        cell = RelationalMemoryCell(
            mem_slots=config.mem_slots,
            head_size=config.head_size,
            num_heads=config.num_heads,
            gate_style=config.gate_style,
            dtype=products,
        )
    elif model == "lstm":
        cell = StackedLSTMCell(config.lstm_features, dtype=products)
    elif model == "conv_lstm":
        cell = nn.ConvLSTMCell(config.conv_features, (2, 2), dtype=products)
    elif model != "none":
        raise ValueError(f"model must be one of {', '.join(TITLES)}; got {model!r}")
    return Agent(num_actions, cell, config.width, config.last_action, products)
