"""Shared configs of experiments with an actor-critic: cores, agent, the paper's settings."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from flax import linen as nn

from experiments.common import cells
from experiments.common.actor_critic.agent import Agent, ConvLSTMCell2x2
from experiments.common.actor_critic.learner import LearnerConfig
from experiments.common.cells import LSTMConfig, RMCConfig
from experiments.common.train_config import TrainConfig
from rrnn_jax.checks import check_positive
from rrnn_jax.typing import Dtype


@dataclasses.dataclass(frozen=True)
class ConvLSTMConfig(cells.Core):
    """The ConvLSTM, whose inputs are images."""

    TITLE = "ConvLSTM"

    conv_features: int = 64
    """Channels of the ConvLSTM, with kernels of 2 x 2."""
    conv_lstm_learning_rate: float | None = None
    """Its peak learning rate. None: learning_rate."""
    conv_lstm_schedule: cells.Schedule | None = None
    """Its schedule. None: schedule."""

    def make(self, dtype: Dtype | None) -> nn.RNNCellBase:
        """The cell."""
        return ConvLSTMCell2x2(self.conv_features, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """The agent around its core; the defaults are the paper's (appendix A.3) where stated."""

    width: int = 256
    """Width of the dense layers before and after the core."""
    last_action: bool = True
    """Whether the core gets the last action and reward."""
    skip: bool = False
    """Whether the layer after the core also gets the core's input."""

    def __post_init__(self) -> None:
        check_positive(width=self.width)


TITLES = {**cells.TITLES, "conv_lstm": ConvLSTMConfig.TITLE, "none": "no memory"}
"""What the cores are called in plots and tables."""
POLICIES = {"random": "random policy", "heuristic": "heuristic"}
"""What the policies that agents are compared with are called there."""
POLICIES_FILE = "policies.json"
MODELS = ("rmc", "lstm", "conv_lstm", "none")
"""What "all" stands for."""

if TYPE_CHECKING:
    AgentName = str
else:
    AgentName = Literal[("all", *TITLES)]
    """What ``--model`` takes."""

_RMC = RMCConfig(mem_slots=4, num_heads=4, head_size=64, gate_style="memory")
_LSTM = LSTMConfig(lstm_features=1024)


@dataclasses.dataclass(frozen=True)
class GameConfig(cells.CellConfigs):
    """The base of the configs of games."""

    model: AgentName = "rmc"
    """Which core; "none" is an agent without memory; "all" trains the memory core, the LSTM, the
    ConvLSTM and none, one after the other."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of products. Parameters, norms, softmax and memory are always float32."""
    rmc: RMCConfig = _RMC
    lstm: LSTMConfig = _LSTM
    conv_lstm: ConvLSTMConfig = dataclasses.field(default_factory=ConvLSTMConfig)
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    learner: LearnerConfig = dataclasses.field(default_factory=LearnerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


SMALL: dict[str, Any] = {
    "rmc": dataclasses.replace(_RMC, head_size=16),
    "lstm": LSTMConfig(lstm_features=64),
    "conv_lstm": ConvLSTMConfig(conv_features=16),
    "agent": AgentConfig(width=64, skip=True),
}
"""Fields of a `GameConfig`: agents for minutes on 2 CPU cores."""
QUICK_TRAIN = TrainConfig(
    steps=600,
    batch_size=256,
    learning_rate=1e-3,
    schedule="linear",
    epsilon=1e-5,
    clip_norm=0.5,
    chunk_steps=5,
    eval_every=25,
    eval_samples=512,
    checkpoint_every=50,
)
# Paper A.3: 100 actors, minibatches of 32 trajectories of 40 steps, entropy cost 0.005, discount
# 0.99, 1e9 frames, rates between 1e-5 and 2e-4. 96 is the next multiple of 32. The optimiser and
# the baseline's cost are not stated; these are IMPALA's. Its loss is a sum over the steps of a
# minibatch, ours a mean, so its clipping (40) and epsilon (0.1, of squared gradients) are divided.
PAPER_LEARNER = LearnerConfig(
    loss="vtrace", minibatch_envs=32, epochs=1, trace=1.0, entropy_cost=0.005
)
_STEPS = PAPER_LEARNER.unroll * PAPER_LEARNER.minibatch_envs
PAPER_TRAIN = TrainConfig(
    steps=260_417,
    batch_size=96,
    optimizer="rmsprop",
    beta2=0.99,
    epsilon=0.1 / _STEPS**2,
    learning_rate=2e-4,
    schedule="linear",
    clip_norm=40.0 / _STEPS,
    chunk_steps=50,
    eval_every=2000,
    eval_samples=960,
    checkpoint_every=2000,
)


def make_agent(config: GameConfig, num_actions: int) -> Agent:
    """The agent with the core that `config.model` names.

    Raises:
      ValueError: an unknown name.
    """
    model, agent = config.model, config.agent
    cell = None if model == "none" else cells.make_cell(config, model, config.dtype)
    products = cells.products(config.dtype)
    return Agent(num_actions, cell, agent.width, agent.last_action, agent.skip, products)


def policy_lines(scores: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The values of a metric of `POLICIES` among `scores`, by title.

    >>> policy_lines({"random": {"return": 9.0}, "frames": 40}, "return")
    {'random policy': 9.0}
    """
    return {title: scores[name][metric] for name, title in POLICIES.items() if name in scores}
