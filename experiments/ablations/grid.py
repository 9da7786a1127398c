"""The rows of the grid: the base, and rows with one change each."""

import dataclasses
from typing import Any, Literal

from experiments.ablations.config import Config, CoreConfig, misfit
from experiments.nth_farthest.curriculum import CurriculumConfig

BASE = "base"
GATES = {"unit": "per unit", "memory": "per slot", "none": "none"}
LABELS = {"output_gate": "on (eq. 3 to 9)"}
"""Labels that explain a row's `value`; a run's config contains `value`."""


@dataclasses.dataclass(frozen=True)
class RowConfig:
    """All that a row's numbers depend on.

    Attributes:
      row: its name.
      factor: the changed setting; '' for the base.
      value: its value.
      model: 'rmc' or 'lstm'.
      config: the grid's config with the row's change.
    """

    row: str
    factor: str
    value: str
    model: Literal["rmc", "lstm"]
    config: Config

    @property
    def label(self) -> str:
        """The display text of its value; numbers do not depend on it."""
        return LABELS.get(self.row, self.value)

    @property
    def name(self) -> str:
        """The display text of factor and value."""
        return self.label if self.factor in ("", "model") else f"{self.factor} {self.label}"


def make_rows(config: Config) -> dict[str, RowConfig]:
    """All rows by name, the base first.

    The width of a slot is fixed: more heads are narrower. More slots mean more units (but not more
    parameters in the core), and one row has a single slot with all the base's units (paper A.1
    compares at equal units).

    >>> from experiments.ablations.config import PRESETS
    >>> rows = make_rows(PRESETS["quick"])
    >>> list(rows)[:4]
    ['base', 'slots_1', 'slots_2', 'slots_8']
    >>> rows["heads_1"].config.core.head_size
    64

    Args:
      config: the base.

    Returns:
      The rows, without those that equal the base (one slot with a base of one slot) or are
      incompatible with it, see `misfit` (no gates with an output gate). A row without the
      curriculum is there if the base has one.
    """
    core = config.core
    rows = {BASE: RowConfig(BASE, "", BASE, "rmc", config)}
    for name, factor, value, changes in _departures(core):
        settings = vars(core) | changes
        if misfit(settings["gate_style"], settings["output_gate"]):
            continue
        changed = dataclasses.replace(core, **changes)
        if changed != core and name not in rows:
            departed = dataclasses.replace(config, core=changed)
            rows[name] = RowConfig(name, factor, value, "rmc", departed)
    if config.task == "nth_farthest" and config.nth_farthest.staged:
        unstaged = dataclasses.replace(config.nth_farthest, staged=False)
        departed = dataclasses.replace(config, nth_farthest=unstaged)
        rows["no_curriculum"] = RowConfig("no_curriculum", "curriculum", "off", "rmc", departed)
    lstm = config.lstm
    units = f"LSTM, {lstm.lstm_layers} x {lstm.lstm_features}"
    rows["lstm"] = RowConfig("lstm", "model", units, "lstm", config)
    return rows


def base_values(config: Config) -> dict[str, str]:
    """The base's value of each factor.

    >>> from experiments.ablations.config import PRESETS
    >>> list(base_values(PRESETS["quick"]).items())[:2]
    [('memory slots', '4'), ('heads', '2 of 32')]
    """
    core = config.core
    values = {
        "memory slots": str(core.mem_slots),
        "heads": f"{core.num_heads} of {core.head_size}",
        "attention blocks": str(core.num_blocks),
        "gates": GATES.get(core.gate_style, core.gate_style),
        "forget bias": f"{core.forget_bias:g}",
        "output gate": LABELS["output_gate"] if core.output_gate else "off",
        "MLP layers": str(core.mlp_layers),
        "key size": str(core.head_size if core.key_size is None else core.key_size),
        "LayerNorm of q, k, v": "on" if core.qkv_norm else "off",
        "input row attends": "yes" if core.input_queries else "no (eq. 2)",
        "initial memory": core.initial_memory,
    }
    staged = config.nth_farthest.staged
    if config.task == "nth_farthest" and (staged or config.curriculum != CurriculumConfig()):
        values["curriculum"] = "on" if staged else "off"
    return values | {"model": "RMC"}


def _departures(core: CoreConfig) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Name, factor, value and changed fields of each row."""
    slots, width = core.mem_slots, core.slot_size
    key = core.head_size if core.key_size is None else core.key_size
    found: list[tuple[str, str, str, dict[str, Any]]] = []

    def add(name: str, factor: str, value: str, **changes: Any) -> None:
        found.append((name, factor, value, changes))

    for count in sorted({1, max(1, slots // 2), 2 * slots}):
        add(f"slots_{count}", "memory slots", str(count), mem_slots=count)
    add(
        "slots_1_wide",
        "memory slots",
        f"1, {slots} times as wide",
        mem_slots=1,
        head_size=slots * core.head_size,
    )
    for heads in (1, 2, 4, 8):
        if width % heads == 0:
            add(f"heads_{heads}", "heads", str(heads), num_heads=heads, head_size=width // heads)
    for blocks in (1, 2, 3):
        add(f"blocks_{blocks}", "attention blocks", str(blocks), num_blocks=blocks)
    for style, value in GATES.items():
        add(f"gates_{style}", "gates", value, gate_style=style)
    for bias in (0.0, 1.0, 2.0):
        add(f"forget_bias_{bias:g}", "forget bias", f"{bias:g}", forget_bias=bias)
    add("output_gate", "output gate", "on", output_gate=True)
    for layers in (1, 2, 4):
        add(f"mlp_{layers}", "MLP layers", str(layers), mlp_layers=layers)
    for size in (max(1, key // 4), 4 * key):
        add(f"key_{size}", "key size", str(size), key_size=size)
    add("no_qkv_norm", "LayerNorm of q, k, v", "off", qkv_norm=False)
    add("no_input_queries", "input row attends", "no (eq. 2)", input_queries=False)
    for start in ("identity", "random", "learned", "zeros"):
        add(f"initial_{start}", "initial memory", start, initial_memory=start)
    return found
