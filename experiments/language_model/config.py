"""Options and presets of the language model.

``quick``: ``python -m experiments.language_model``; minutes on 2 CPU cores, on the included plays.
``shakespeare``: the same text, a wider model, longer.
``books``: ``--preset books --path FOLDER --valid NAME --test NAME``; words of a folder of books.
``paper``: ``--preset paper --path FOLDER``; the paper's sizes for WikiText-103, for GPUs.
README.md has results and the hardware they were measured on.
"""

import dataclasses
import math
from typing import Literal

from experiments.common.cells import CellConfigs, LSTMConfig, ModelName, RMCConfig
from experiments.common.train_config import TrainConfig
from experiments.language_model.data.token_files import DataConfig
from rrnn_jax.checks import check_positive, check_rate
from rrnn_jax.typing import Implementation


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Embedding, output and regularisation of text."""

    window: int = 64
    """Tokens of each row per update: gradients stop at its start, the state continues."""
    embedding_size: int = 128
    """Width of the embedding."""
    tied: bool = True
    """One table for the embedding and the output."""
    cutoffs: tuple[int, ...] = ()
    """First word of each cluster of an adaptive softmax. Empty: a full softmax."""
    word_dropout: float = 0.0
    """Share of words that are dropped at all their positions in a window."""
    input_dropout: float = 0.0
    """Share of the embedding's features dropped, one mask for each row and window."""
    output_dropout: float = 0.0
    """Share of the core's outputs dropped, likewise."""
    activation_penalty: float = 0.0
    """Weight of the mean square of the outputs."""
    change_penalty: float = 0.0
    """Weight of the mean square of their changes from step to step."""
    eval_rows: int = 16
    """Parts of the validation and test text that are read in parallel in training, each from a
    fresh state. The report reads the whole text in order."""
    eval_window: int = 256
    """Tokens of each row per step of an evaluation; the score does not depend on it."""

    def __post_init__(self) -> None:
        check_positive(
            window=self.window,
            embedding_size=self.embedding_size,
            eval_rows=self.eval_rows,
            eval_window=self.eval_window,
        )
        check_rate(
            word_dropout=self.word_dropout,
            input_dropout=self.input_dropout,
            output_dropout=self.output_dropout,
        )
        for name in ("activation_penalty", "change_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")


_RMC = RMCConfig(mem_slots=1, num_heads=4)
_LSTM = LSTMConfig(lstm_features=139)
"""As many parameters as the memory core's."""


@dataclasses.dataclass(frozen=True)
class Config(CellConfigs):
    """The settings that determine a run's results."""

    preset: Literal["quick", "shakespeare", "books", "paper"] = "quick"
    """Which defaults: "quick" (minutes on 2 CPU cores), "shakespeare" (longer), "books" (words of a
    folder of books) or "paper" (the paper's sizes)."""
    model: ModelName = "all"
    """Which model; "all" trains the memory core, then the LSTM, and compares them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of products. Parameters, norms, softmax and memory are always float32."""
    implementation: Implementation = "auto"
    """How the memory core runs over a window, see rrnn_jax.RNN."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    rmc: RMCConfig = _RMC
    lstm: LSTMConfig = _LSTM
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


_TRAIN = TrainConfig(
    steps=3000,
    batch_size=32,
    learning_rate=6e-3,
    schedule="cosine",
    warmup_steps=50,
    clip_norm=1.0,
    chunk_steps=50,
    eval_every=500,
    checkpoint_every=500,
)

PRESETS: dict[str, Config] = {
    "quick": Config(
        preset="quick",
        lstm=dataclasses.replace(_LSTM, lstm_learning_rate=1e-2),
        train=_TRAIN,
    ),
    "shakespeare": Config(
        preset="shakespeare",
        text=TextConfig(window=128, embedding_size=192, input_dropout=0.2, output_dropout=0.3),
        rmc=dataclasses.replace(_RMC, head_size=48),
        lstm=LSTMConfig(lstm_features=207, lstm_learning_rate=1e-2),
        train=dataclasses.replace(_TRAIN, steps=10_000, warmup_steps=100),
    ),
    "books": Config(
        preset="books",
        data=DataConfig(format="books", vocabulary="words", min_count=2),
        text=TextConfig(
            window=70,
            embedding_size=128,
            word_dropout=0.1,
            input_dropout=0.4,
            output_dropout=0.4,
            change_penalty=1.0,
        ),
        train=dataclasses.replace(
            _TRAIN,
            steps=1200,
            learning_rate=1.6e-2,
            warmup_steps=100,
            clip_norm=0.25,
            chunk_steps=25,
            eval_every=250,
            checkpoint_every=250,
        ),
    ),
    # Paper A.4: words embedded in 512 features with dropout .5, tied to the softmax; 2,500 units in
    # 4 heads, 1 memory, an MLP of 5 layers; windows of 100, batch 6 x 64, Adam at 1e-3, gradients
    # clipped to .1. Not stated: the number of updates, the cut-offs (fairseq's for WikiText-103).
    "paper": Config(
        preset="paper",
        data=DataConfig(format="wikitext", vocabulary="words", split_punctuation=False),
        text=TextConfig(
            window=100,
            embedding_size=512,
            cutoffs=(10_000, 20_000, 200_000),
            input_dropout=0.5,
        ),
        rmc=dataclasses.replace(_RMC, head_size=625, mlp_layers=5),
        lstm=LSTMConfig(lstm_features=4096),
        train=TrainConfig(
            steps=500_000,
            batch_size=384,
            learning_rate=1e-3,
            clip_norm=0.1,
            chunk_steps=20,
            eval_every=1000,
            checkpoint_every=1000,
        ),
    ),
}
"""The presets by name."""
