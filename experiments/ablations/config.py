"""Options and presets of the ablations: the task, and the base of all rows.

``quick``: ``python -m experiments.ablations``; ``quick_program``: the same on reverse, one of the
memorization tasks of program evaluation; each an hour or so on 2 CPU cores. ``curriculum``: the
paper's Nth Farthest with the curriculum, the core of ``experiments.nth_farthest`` and ten seeds,
for a GPU. ``paper`` and ``paper_program``: the paper's sizes, for a GPU.
README.md has results and the hardware they were measured on.
"""

import dataclasses
from typing import Literal

from experiments.common.cells import CellConfigs, LSTMConfig, RMCConfig
from experiments.common.train_config import TrainConfig
from experiments.nth_farthest.config import PRESETS as NTH_FARTHEST
from experiments.nth_farthest.config import STAGES, TaskConfig
from experiments.nth_farthest.curriculum import CurriculumConfig
from experiments.program_evaluation.config import PRESETS as PROGRAMS
from experiments.program_evaluation.config import DifficultyConfig
from rrnn_jax.checks import check_positive

InitialMemory = Literal["identity", "random", "learned", "zeros"]


@dataclasses.dataclass(frozen=True)
class NthFarthestConfig(TaskConfig):
    """Nth Farthest, its training and its read-out."""

    staged: bool = False
    """Train with the curriculum; otherwise on the evaluated task from the start."""
    readout_features: int = 256
    """Width of each of the read-out's four layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(readout_features=self.readout_features)


@dataclasses.dataclass(frozen=True)
class ProgramConfig(DifficultyConfig):
    """The program task."""

    program_task: Literal["addition", "control", "program", "copy", "reverse", "double"] = (
        "addition"
    )
    """Which task of program evaluation."""


@dataclasses.dataclass(frozen=True)
class CoreConfig(RMCConfig):
    """The Relational Memory Core, with additional options that rows change."""

    mem_slots: int = 4
    """Memory slots."""
    num_heads: int = 2
    """Attention heads."""
    head_size: int = 16
    """Size of a head; a slot is num_heads * head_size wide."""
    forget_bias: float = 1.0
    """Constant added to the forget gate."""
    output_gate: bool = False
    """The paper's equations 3 to 9 instead of the authors' code: an output gate (6 and 8), gates
    that depend on h instead of tanh(M), and no tanh of the candidate."""
    input_queries: bool = True
    """The input's row attends too, and changes from block to block. False: the paper's eq. 2."""
    initial_memory: InitialMemory = "identity"
    """Rows of the identity, one random draw, learned, or zeros."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if problem := misfit(self.gate_style, self.output_gate):
            raise ValueError(problem)

    @property
    def slot_size(self) -> int:
        """F, the width of a slot."""
        return self.num_heads * self.head_size


def misfit(gate_style: str, output_gate: bool) -> str | None:
    """Why settings of a core are incompatible; None if they are not.

    >>> misfit("none", True)
    "gate_style must be 'unit' or 'memory' with output_gate=True, got 'none'"
    """
    if output_gate and gate_style == "none":
        return "gate_style must be 'unit' or 'memory' with output_gate=True, got 'none'"
    return None


@dataclasses.dataclass(frozen=True)
class Config:
    """The base of a grid: everything that the numbers of its rows depend on."""

    preset: Literal["quick", "quick_program", "curriculum", "paper", "paper_program"] = "quick"
    """Which defaults: Nth Farthest or a task of program evaluation ("..._program"); on 2 CPU cores
    ("quick..."), at the paper's sizes ("paper..."), or the paper's Nth Farthest with a small core
    ("curriculum")."""
    task: Literal["nth_farthest", "program_evaluation"] = "nth_farthest"
    """Which experiment's task."""
    nth_farthest: NthFarthestConfig = dataclasses.field(default_factory=NthFarthestConfig)
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    program: ProgramConfig = dataclasses.field(default_factory=ProgramConfig)
    core: CoreConfig = dataclasses.field(default_factory=CoreConfig)
    lstm: LSTMConfig = dataclasses.field(default_factory=LSTMConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def _core(config: CellConfigs) -> CoreConfig:
    """The core of an experiment's preset."""
    return CoreConfig(**vars(config.rmc))


QUICK_TRAIN = TrainConfig(
    steps=1500,
    batch_size=256,
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=100,
    clip_norm=1.0,
    num_seeds=3,
    chunk_steps=50,
    eval_every=100,
    eval_samples=8192,
    checkpoint_every=250,
)
PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick",
        nth_farthest=NthFarthestConfig(num_objects=3, num_features=2),
        core=CoreConfig(head_size=32),
        lstm=LSTMConfig(lstm_features=128),
        train=QUICK_TRAIN,
    ),
    "quick_program": Config(
        preset="quick_program",
        task="program_evaluation",
        program=ProgramConfig(program_task="reverse"),
        core=CoreConfig(num_heads=4, gate_style="memory"),
        lstm=LSTMConfig(lstm_features=64, lstm_layers=2),
        train=dataclasses.replace(QUICK_TRAIN, steps=1000, batch_size=128),
    ),
    "curriculum": Config(
        preset="curriculum",
        nth_farthest=NthFarthestConfig(
            staged=True, readout_features=NTH_FARTHEST["quick"].readout_features
        ),
        curriculum=STAGES,
        core=_core(NTH_FARTHEST["quick"]),
        lstm=NTH_FARTHEST["laptop"].lstm,
        # Half the rate of `quick`, as in results/nth_farthest/rows.json.
        train=dataclasses.replace(NTH_FARTHEST["quick"].train, learning_rate=1e-2, num_seeds=10),
    ),
    "paper": Config(
        preset="paper",
        nth_farthest=NthFarthestConfig(
            staged=True, readout_features=NTH_FARTHEST["paper"].readout_features
        ),
        curriculum=STAGES,
        core=_core(NTH_FARTHEST["paper"]),
        lstm=NTH_FARTHEST["paper"].lstm,
        train=NTH_FARTHEST["paper"].train,
    ),
    "paper_program": Config(
        preset="paper_program",
        task="program_evaluation",
        core=_core(PROGRAMS["paper"]),
        lstm=PROGRAMS["paper"].lstm,
        train=dataclasses.replace(PROGRAMS["paper"].train, num_seeds=3),
    ),
}
"""The presets by name."""
