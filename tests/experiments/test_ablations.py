"""The rows of a grid: their differences from the base, and their cells."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.ablations import PRESETS, make_rows
from experiments.ablations.__main__ import main
from experiments.ablations.grid import base_values
from experiments.ablations.problems import make_cell, make_problem
from experiments.nth_farthest.config import PRESETS as NTH_FARTHEST
from experiments.nth_farthest.curriculum import CurriculumConfig
from experiments.nth_farthest.train import make_problem as make_nth_farthest
from rrnn_jax import RelationalMemoryCell
from tests.core.random_variables import random_variables
from tests.experiments.ablation_runs import CONFIG, ROWS


def differences(row, base) -> set[str]:
    one, other = (
        dataclasses.asdict(r.config.core) | dataclasses.asdict(r.config.nth_farthest)
        for r in (row, base)
    )
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_row_departs_from_the_base_in_one_thing(preset):
    rows = make_rows(PRESETS[preset])
    base = rows["base"]
    assert next(iter(rows)) == "base"
    assert base.config == PRESETS[preset]
    for name, row in rows.items():
        assert row.row == name
        if name in ("base", "lstm"):
            assert row.config == base.config
        elif name.startswith("heads"):
            assert row.config.core.slot_size == base.config.core.slot_size
        elif name == "slots_1_wide":
            core = row.config.core
            assert core.mem_slots * core.slot_size == (
                base.config.core.mem_slots * base.config.core.slot_size
            )
        else:
            assert len(differences(row, base)) == 1, name
    assert [name for name, row in rows.items() if row.model == "lstm"] == ["lstm"]
    factors = {row.factor for row in rows.values()}
    assert factors == {
        *("", "memory slots", "heads", "attention blocks", "gates", "forget bias", "output gate"),
        *("MLP layers", "key size", "LayerNorm of q, k, v", "input row attends", "initial memory"),
        "model",
    } | ({"curriculum"} if PRESETS[preset].nth_farthest.staged else set())
    assert PRESETS[preset].train.num_seeds >= 3


def test_rows_of_the_quick_grid():
    assert list(make_rows(PRESETS["quick"])) == [
        *("base", "slots_1", "slots_2", "slots_8", "slots_1_wide", "heads_1", "heads_4", "heads_8"),
        *("blocks_2", "blocks_3", "gates_memory", "gates_none", "forget_bias_0", "forget_bias_2"),
        *("output_gate", "mlp_1", "mlp_4", "key_8", "key_128", "no_qkv_norm", "no_input_queries"),
        *("initial_random", "initial_learned", "initial_zeros", "lstm"),
    ]


ONE_STAGE = dataclasses.replace(
    PRESETS["quick"],
    nth_farthest=dataclasses.replace(PRESETS["quick"].nth_farthest, staged=True),
    curriculum=CurriculumConfig(correlation=(0.5,)),
)


@pytest.mark.parametrize("config", [*PRESETS.values(), ONE_STAGE])
def test_the_base_has_a_value_of_every_factor(config):
    rows = make_rows(config)
    assert list(base_values(config)) == list(
        dict.fromkeys(row.factor for row in rows.values() if row.factor)
    )
    for row in rows.values():
        if row.factor and row.model == "rmc":
            assert base_values(row.config)[row.factor].startswith(row.label.split(",")[0])


def test_rows_that_cannot_be_made_are_left_out(tmp_path, capsys):
    """Of a base with an output gate, and of one without gates."""
    usual = set(make_rows(CONFIG))
    for changes, missing in (
        ({"output_gate": True}, {"output_gate", "gates_none"}),
        ({"gate_style": "none"}, {"output_gate", "gates_none"}),
    ):
        config = dataclasses.replace(CONFIG, core=dataclasses.replace(CONFIG.core, **changes))
        rows = make_rows(config)
        assert usual - set(rows) == missing
        for row in rows.values():
            make_cell(row)
    for options in ("--output-gate", "--gate-style none"):
        assert main(["--list", *options.split()]) == 0
    capsys.readouterr()


def test_a_label_is_no_part_of_what_is_compared():
    """Runs that were made before there were labels go on."""
    row = ROWS["output_gate"]
    assert (row.value, row.label) == ("on", "on (eq. 3 to 9)")
    assert set(dataclasses.asdict(row)) == {"row", "factor", "value", "model", "config"}


def parameters(row) -> int:
    shapes = jax.eval_shape(make_problem(row).init, jax.random.key(0)).params
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.slow
def test_every_row_has_a_model():
    sizes = {name: parameters(row) for name, row in make_rows(PRESETS["quick"]).items()}
    base = sizes["base"]
    # The core's weights are shared by all slots; the read-out reads every slot.
    assert sizes["slots_8"] - base == 4 * 64 * 256
    assert sizes["heads_4"] == sizes["initial_zeros"] == sizes["initial_random"] == base
    assert sizes["initial_learned"] == base + 4 * 64
    assert sizes["no_qkv_norm"] < base < sizes["lstm"]
    assert len(set(sizes.values())) > 10


@pytest.mark.slow
def test_the_curriculum_is_that_of_nth_farthest():
    """The base trains what `experiments.nth_farthest` does, one row on the evaluated task alone."""
    config, own = PRESETS["curriculum"], NTH_FARTHEST["quick"]
    assert config.curriculum == own.curriculum
    assert dataclasses.replace(config.train, num_seeds=1, learning_rate=2e-2) == own.train
    rows = make_rows(config)
    key = jax.random.key(0)

    def step(problem):
        state = problem.init(key)
        return state.params, problem.update(state, key, None)[1]

    same = make_nth_farthest(dataclasses.replace(own, model="rmc"))
    params, metrics = jax.eval_shape(lambda: step(make_problem(rows["base"])))
    assert (params, metrics) == jax.eval_shape(lambda: step(same))
    assert "stage" in metrics
    params, metrics = jax.eval_shape(lambda: step(make_problem(rows["no_curriculum"])))
    assert params == jax.eval_shape(lambda: same.init(key).params)
    assert "stage" not in metrics


def test_a_row_of_the_program_grid_has_the_same_core():
    config = PRESETS["quick_program"]
    problem = make_problem(make_rows(config)["initial_learned"])
    shapes = jax.eval_shape(problem.init, jax.random.key(0)).params["params"]["cell"]
    assert shapes["initial_memory"].shape == (config.core.mem_slots, config.core.slot_size)
    assert 0 < problem.score.trivial < 1


@pytest.mark.slow
def test_slots_that_start_equal_stay_equal():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    for start, is_equal in (("zeros", True), ("random", False), ("identity", False)):
        cell = make_cell(ROWS["base" if start == "identity" else f"initial_{start}"])
        memory = cell.initialize_carry(jax.random.key(0), x.shape)
        variables = random_variables(cell, memory, x)
        step = jax.jit(cell.apply)
        for _ in range(2):
            memory, _ = step(variables, memory, x)
        gap = float(jnp.abs(memory[:, 0] - memory[:, 1]).max())
        assert (gap < 1e-6) == is_equal, start


def test_a_learned_start_begins_as_the_base():
    base, learned = make_cell(ROWS["base"]), make_cell(ROWS["initial_learned"])
    assert isinstance(learned, RelationalMemoryCell)
    assert learned.learned_carry
    assert learned.clone(learned_carry=False) == base
