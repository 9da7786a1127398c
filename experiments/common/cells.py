"""The recurrent cores of all experiments, with a config each for sizes and training options.

`register` adds your own core to every experiment.
"""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn

from experiments.common.train_config import Schedule, TrainConfig
from rrnn_jax import RelationalMemoryCell
from rrnn_jax.baselines import DNCCell, EntNetCell, LSTMBankCell, StackedLSTMCell
from rrnn_jax.checks import check_positive
from rrnn_jax.gating import GateStyle
from rrnn_jax.typing import Dtype


class Core(abc.ABC):
    """The base class of the configs of cores.

    A config may have fields ``..._learning_rate`` and ``..._schedule``, see `recipe`.

    Attributes:
      TITLE: its display name.
    """

    TITLE: ClassVar[str]

    def __post_init__(self) -> None:
        sizes = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int) and not isinstance(value, bool)
        }
        check_positive(**sizes)  # Before anything is written.

    @abc.abstractmethod
    def make(self, dtype: Dtype | None) -> nn.RNNCellBase:
        """The cell, with an `output_size` or `features`; `dtype` is the dtype of its products."""

    def recipe(self, train: TrainConfig) -> TrainConfig:
        """The training config with this core's own learning rate and schedule.

        >>> LSTMConfig(lstm_learning_rate=0.01).recipe(TrainConfig()).learning_rate
        0.01
        >>> RMCConfig().recipe(TrainConfig()) == TrainConfig()
        True
        """
        own: dict[str, Any] = {
            field: value
            for field in ("learning_rate", "schedule")
            for name, value in vars(self).items()
            if name.endswith(f"_{field}") and value is not None
        }
        return dataclasses.replace(train, **own)


@dataclasses.dataclass(frozen=True)
class RMCConfig(Core):
    """The Relational Memory Core."""

    TITLE = "Relational Memory Core"

    mem_slots: int = 8
    """Memory slots."""
    num_heads: int = 8
    """Attention heads."""
    head_size: int = 32
    """Size of a head; a slot is num_heads * head_size wide."""
    num_blocks: int = 1
    """Attention blocks per step."""
    mlp_layers: int = 2
    """Layers of the row-wise MLP."""
    gate_style: Literal[GateStyle, "none"] = "unit"
    """A gate per memory unit, per slot, or none."""
    key_size: int | None = None
    """Size of queries and keys. None: that of a head."""
    qkv_norm: bool = True
    """LayerNorm of queries, keys and values."""
    rmc_learning_rate: float | None = None
    """Its peak learning rate. None: learning_rate."""
    rmc_schedule: Schedule | None = None
    """Its schedule. None: schedule."""

    def make(self, dtype: Dtype | None) -> nn.RNNCellBase:
        """The cell."""
        return RelationalMemoryCell(
            mem_slots=self.mem_slots,
            head_size=self.head_size,
            num_heads=self.num_heads,
            num_blocks=self.num_blocks,
            key_size=self.key_size,
            attention_mlp_layers=self.mlp_layers,
            gate_style=None if self.gate_style == "none" else self.gate_style,
            qkv_norm=self.qkv_norm,
            dtype=dtype,
        )


@dataclasses.dataclass(frozen=True)
class LSTMConfig(Core):
    """The LSTM baseline."""

    TITLE = "LSTM"

    lstm_features: int = 512
    """Width of a layer."""
    lstm_layers: int = 1
    """Layers, with skip connections."""
    lstm_learning_rate: float | None = None
    """Its peak learning rate. None: learning_rate."""
    lstm_schedule: Schedule | None = None
    """Its schedule. None: schedule."""

    def make(self, dtype: Dtype | None) -> nn.RNNCellBase:
        """The cell."""
        return StackedLSTMCell(self.lstm_features, self.lstm_layers, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class DNCConfig(Core):
    """The Differentiable Neural Computer."""

    TITLE = "DNC"

    memory_size: int = 80
    """Rows of its memory."""
    word_size: int = 64
    """Width of a row."""
    num_reads: int = 4
    """Read heads."""
    num_writes: int = 1
    """Write heads."""
    controller: Literal["auto", "lstm", "feedforward"] = "auto"
    """Kind of controller; "auto": feed-forward for memorization, else an LSTM."""
    controller_layers: int = 2
    """Layers of the controller."""
    lstm_size: int = 256
    """Width of a layer of an LSTM controller."""
    feedforward_size: int = 256
    """Width of a layer of a feed-forward controller."""
    dnc_outputs: int = 256
    """Width of the output."""
    dnc_learning_rate: float | None = None
    """Its peak learning rate. None: learning_rate."""
    dnc_schedule: Schedule | None = None
    """Its schedule. None: schedule."""

    def make(self, dtype: Dtype | None) -> nn.RNNCellBase:
        """The cell."""
        controller = "lstm" if self.controller == "auto" else self.controller
        return DNCCell(
            memory_size=self.memory_size,
            word_size=self.word_size,
            num_reads=self.num_reads,
            num_writes=self.num_writes,
            controller_size=self.lstm_size if controller == "lstm" else self.feedforward_size,
            output_size=self.dnc_outputs,
            controller=controller,
            controller_layers=self.controller_layers,
            dtype=dtype,
        )


@dataclasses.dataclass(frozen=True)
class EntNetConfig(Core):
    """The Recurrent Entity Network."""

    TITLE = "EntNet"

    variant: Literal["lstm_bank", "henaff"] = "lstm_bank"
    """"lstm_bank": the paper's bank of LSTMs; "henaff": the cell of Henaff et al. 2017."""
    num_cells: int = 4
    """Cells (entities)."""
    cell_size: int = 256
    """Width of each."""
    entnet_learning_rate: float | None = None
    """Its peak learning rate. None: learning_rate."""
    entnet_schedule: Schedule | None = None
    """Its schedule. None: schedule."""

    def make(self, dtype: Dtype | None) -> nn.RNNCellBase:
        """The cell."""
        cell = LSTMBankCell if self.variant == "lstm_bank" else EntNetCell
        return cell(self.cell_size, self.num_cells, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class CellConfigs:
    """The cores by name; the base of the config of an experiment with recurrent cores."""

    rmc: RMCConfig = dataclasses.field(default_factory=RMCConfig)
    lstm: LSTMConfig = dataclasses.field(default_factory=LSTMConfig)
    dnc: DNCConfig = dataclasses.field(default_factory=DNCConfig)
    entnet: EntNetConfig = dataclasses.field(default_factory=EntNetConfig)


TITLES: dict[str, str] = {
    field.name: field.default_factory.TITLE  # type: ignore[union-attr, misc]
    for field in dataclasses.fields(CellConfigs)
}
"""The cores' display names, by name."""

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[("all", *TITLES)]
    """What ``--model`` takes: a core, or "all" of those that the experiment compares."""


def register(name: str, config: type[Core]) -> None:
    """Registers your own core with all experiments; call it before importing an experiment.

    The config is a dataclass whose `make` returns a `flax.linen.RNNCellBase`; its fields become
    options. A script that registers it and then calls an experiment's ``main`` accepts its name as
    ``--model``. For ``python -m experiments.<experiment>`` add the same lines at the end of this
    module::

        @dataclasses.dataclass(frozen=True)
        class GRUConfig(Core):
            TITLE = "GRU"
            gru_features: int = 128

            def make(self, dtype):
                return flax.linen.GRUCell(self.gru_features, dtype=dtype)

        register("gru", GRUConfig)

    Args:
      name: the name for ``--model``.
      config: a frozen dataclass with defaults for all fields.

    Raises:
      ValueError: the name is taken, or that of a field, which would be two options.
      RuntimeError: an experiment was already imported, which fixes its options.
    """
    if name in TITLES or name == "all":
        raise ValueError(f"name must differ from {', '.join(TITLES)}, got {name!r}")
    others = (TrainConfig, *(field.default_factory for field in dataclasses.fields(CellConfigs)))
    for other in others:
        fields = [{x.name for x in dataclasses.fields(one)} for one in (config, other)]  # type: ignore[arg-type]
        if both := sorted(set.intersection(*fields)):
            raise ValueError(
                f"fields of core {name!r} must have names of their own, got {', '.join(both)}, "
                f"which {other.__name__} has"  # type: ignore[union-attr]
            )
    if CellConfigs.__subclasses__():
        raise RuntimeError(f"core {name!r} must be registered before an experiment is imported")
    field = (name, config, dataclasses.field(default_factory=config))
    TITLES[name] = config.TITLE
    globals()["ModelName"] = Literal[("all", *TITLES)]
    globals()["CellConfigs"] = dataclasses.make_dataclass(
        "CellConfigs", [field], bases=(CellConfigs,), frozen=True
    )


def make_cell(configs: CellConfigs, model: str, dtype: str = "float32") -> nn.RNNCellBase:
    """The core with a given name.

    >>> type(make_cell(CellConfigs(), "lstm")).__name__
    'StackedLSTMCell'

    Args:
      configs: the configs of all cores.
      model: its name.
      dtype: dtype of its products; parameters are always float32.

    Returns:
      The cell.

    Raises:
      ValueError: the core is unknown, or cannot be made.
    """
    core = getattr(configs, model, None)
    if not isinstance(core, Core):
        names = [name for name, value in vars(configs).items() if isinstance(value, Core)]
        raise ValueError(f"model must be one of {', '.join(names)}, got {model!r}")
    return core.make(products(dtype))


def products(dtype: str) -> Dtype | None:
    """A config's dtype for modules: None, the parameters' dtype, for float32."""
    return None if dtype == "float32" else jnp.dtype(dtype)


def output_size(cell: nn.RNNCellBase) -> int:
    """Width of a core's output, from its `output_size` or `features`."""
    return getattr(cell, "output_size", None) or cell.features  # type: ignore[attr-defined]


def recipe(configs: CellConfigs, model: str, train: TrainConfig) -> TrainConfig:
    """The training config of the core with a given name; unchanged for other names."""
    core = getattr(configs, model, None)
    return core.recipe(train) if isinstance(core, Core) else train
