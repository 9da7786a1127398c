"""Settings of measurements: named sizes, and sweeps that change one size at a time."""

import dataclasses
from collections.abc import Iterator

from rrnn_jax.gating import GateStyle

DTYPES = {"float32": "float32", "tf32": "float32", "bfloat16": "bfloat16"}
"""Dtypes of arrays by that of products; tf32 means TF32 products of a GPU."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes of one measurement; the letters are those of `rrnn_jax.typing`.

    Attributes:
      name: its name on the command line.
      batch: B.
      steps: T.
      slots: S.
      heads: H.
      head_size: D (keys have the same size).
      features: I.
      blocks: attention blocks per step.
      mlp_layers: layers of the row-wise MLP.
      gate_style: "unit", "memory" or None.
      input_gradients: whether training also needs the gradient of the inputs (because a learned
        layer precedes the core).
      dtype: dtype of the products; weights are always float32.
    """

    name: str
    batch: int
    steps: int
    slots: int
    heads: int
    head_size: int
    features: int
    blocks: int = 1
    mlp_layers: int = 2
    gate_style: GateStyle | None = "unit"
    input_gradients: bool = False
    dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = ("batch", "steps", "slots", "heads", "head_size", "features")
        for size in (*sizes, "blocks", "mlp_layers"):
            if getattr(self, size) < 1:
                raise ValueError(f"{size} must be at least 1, got {getattr(self, size)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {self.dtype!r}")

    @property
    def width(self) -> int:
        """F, the width of a memory slot."""
        return self.heads * self.head_size

    @property
    def array_dtype(self) -> str:
        """The dtype of inputs and outputs."""
        return DTYPES[self.dtype]

    def replace(self, **changes: object) -> "Setting":
        """The same setting with some sizes changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def describe(self) -> str:
        """The sizes in one line.

        >>> SETTINGS["cpu"].describe()
        'B 64, T 32, S 8, F 256 (H 8), I 64, L 2, unit gates, float32'
        """
        blocks = f", {self.blocks} blocks" if self.blocks > 1 else ""
        gates = f"{self.gate_style} gates" if self.gate_style else "no gates"
        return (
            f"B {self.batch}, T {self.steps}, S {self.slots}, F {self.width} (H {self.heads}), "
            f"I {self.features}, L {self.mlp_layers}{blocks}, {gates}, {self.dtype}"
        )


# Paper A.1: 8 vectors of 16 features make I = 16 + 3 * 8; 2048 units over 8 slots; 8 heads.
_NTH_FARTHEST = Setting(
    "nth_farthest", batch=1600, steps=8, slots=8, heads=8, head_size=32, features=40
)
# Paper A.4: 2500 units in 4 heads, one slot, 5-layer MLP, BPTT over 100 steps, embedding of 512.
# The gate style is not stated there: unit, the default of the authors' module.
_LANGUAGE = Setting(
    "language",
    batch=64,
    steps=100,
    slots=1,
    heads=4,
    head_size=625,
    features=512,
    mlp_layers=5,
    input_gradients=True,
)
# Paper A.3: 4 slots, 4 heads, 1024 units in total, gates per memory; unroll of 40, batch of 32.
# I is our choice: the paper's convolutions are followed by no stated width.
_RL = Setting(
    "rl",
    batch=32,
    steps=40,
    slots=4,
    heads=4,
    head_size=64,
    features=256,
    gate_style="memory",
    input_gradients=True,
)

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("cpu", batch=64, steps=32, slots=8, heads=8, head_size=32, features=64),
        _NTH_FARTHEST,
        _LANGUAGE,
        _RL,
        # The same, reduced so that a call takes a second or two on two CPU cores: smaller batches,
        # and fewer steps of the language model. `rl_cpu` equals `rl`, for uniform names.
        _NTH_FARTHEST.replace(name="nth_farthest_cpu", batch=128),
        _LANGUAGE.replace(name="language_cpu", batch=4, steps=20),
        _RL.replace(name="rl_cpu"),
        # A size for testing the benchmarks; its times are meaningless.
        Setting("toy", batch=2, steps=3, slots=2, heads=2, head_size=4, features=5),
    )
}
"""Settings by name."""

SWEEPS: dict[str, dict[str, tuple[int, ...]]] = {
    "cpu": {
        "batch": (1, 4, 16, 64, 256),
        # With 128 steps float32 rounding alone is 1 % of a gradient, on either path.
        "steps": (2, 8, 32, 64),
        "slots": (1, 2, 4, 8, 16),
        "head_size": (4, 8, 16, 32, 64),
    },
    "nth_farthest": {
        "batch": (100, 400, 1600, 6400),
        "steps": (4, 8, 16, 32),
        "slots": (1, 4, 8, 16),
        "head_size": (16, 32, 64, 128),
    },
    "nth_farthest_cpu": {
        "batch": (16, 64, 128, 256),
        "steps": (4, 8, 16),
        "slots": (1, 4, 8, 16),
        "head_size": (8, 16, 32, 64),
    },
    "language": {
        "batch": (8, 32, 64, 256),
        "steps": (25, 50, 100, 200),
        "slots": (1, 2, 4),
        "head_size": (160, 320, 625, 640),
    },
    "language_cpu": {
        "batch": (1, 4, 16),
        "steps": (10, 20, 50),
        "slots": (1, 2),
        "head_size": (64, 160, 320),
    },
    "rl": {
        "batch": (8, 32, 128, 512),
        "steps": (10, 20, 40, 80),
        "slots": (1, 2, 4, 8),
        "head_size": (16, 32, 64, 128),
    },
    "rl_cpu": {
        "batch": (1, 8, 32, 128),
        "steps": (10, 40, 80, 320),
        "slots": (1, 4, 8),
        "head_size": (16, 32, 64),
    },
    "toy": {"batch": (1, 2), "steps": (2, 3)},
}
"""Values of each size around a setting, one size at a time. F is swept by the head size."""

AXES = {"batch": "B", "steps": "T", "slots": "S", "head_size": "F"}
"""The letters of swept sizes."""


def sweep(setting: Setting, axes: tuple[str, ...] = tuple(AXES)) -> Iterator[tuple[str, Setting]]:
    """The points of the sweep around a setting: the axis swept, and the sizes.

    >>> [(axis, s.batch, s.steps) for axis, s in sweep(SETTINGS["toy"])]
    [('batch', 1, 3), ('batch', 2, 3), ('steps', 2, 2), ('steps', 2, 3)]
    """
    for axis, values in SWEEPS[setting.name].items():
        if axis in axes:
            for value in values:
                yield axis, setting.replace(**{axis: value})
