"""The counted operations equal those of the traced programs."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.extend import core

from benchmarks import flops, gated_models, jax_programs
from benchmarks.problem import Problem, make_cell
from benchmarks.roofline import Limits, roofline
from benchmarks.settings import Setting
from experiments.common.records import read_rows

SIZES = {"batch": 3, "steps": 4, "slots": 2, "heads": 2, "head_size": 4, "features": 5}
SETTINGS = [
    Setting("unit", **SIZES),
    Setting("blocks", **SIZES, blocks=3, mlp_layers=1, input_gradients=True),
    Setting("memory", **SIZES, gate_style="memory", input_gradients=True),
    Setting("none", **SIZES, gate_style=None, mlp_layers=3),
]


def dot_flops(jaxpr: core.Jaxpr) -> int:
    """Two for each multiplication in the products, a scan's body as often as it runs."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            size = eqn.outvars[0].aval.size
            for axis in contracted:
                size *= eqn.invars[0].aval.shape[axis]
            total += 2 * size
            continue
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        assert eqn.primitive.name not in ("while", "cond"), "runs unknown times"
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * dot_flops(inner)
    return total


def shaped_problem(setting):
    """A problem of shapes alone."""
    cell = make_cell(setting)
    inputs = jax.ShapeDtypeStruct((setting.batch, setting.steps, setting.features), jnp.float32)
    init = functools.partial(nn.RNN(cell).init, jax.random.key(0))
    weights = jax.ShapeDtypeStruct((*inputs.shape[:2], cell.output_size), jnp.float32)
    params = jax.eval_shape(init, inputs)["params"]
    return Problem(setting, cell, params, jnp.zeros(inputs.shape), weights)


def shaped_gated(problem, kind, match):
    """A gated model with the shapes of its weights alone: its initialisers are not compiled."""
    made = []

    def params():
        made.append(gated_models.gated(problem, kind, match))
        return made[0].params

    shapes = jax.eval_shape(params)
    return made[0]._replace(params=shapes)


def counted(model, problem, mode):
    if mode == "forward":
        function = model.apply
    else:
        wanted = (0, 1) if problem.setting.input_gradients else 0
        function = jax.grad(lambda *args: model.apply(*args).sum(), argnums=wanted)
    return dot_flops(jax.make_jaxpr(function)(model.params, problem.inputs).jaxpr)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_relational_memory(setting, mode):
    problem = shaped_problem(setting)
    work = flops.core_work(setting, mode)
    assert counted(jax_programs.plain(problem), problem, mode) == work.flops
    if mode == "forward":
        # Named: "auto" takes the plain scan for so few rows.
        assert counted(jax_programs.ours(problem, "hoisted"), problem, mode) == work.flops


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_kernel_is_read_once(setting):
    """Also those that products share: of memory and input, and of the blocks' MLPs."""
    leaves = jax.tree.leaves(shaped_problem(setting).params)
    size = sum(leaf.size for leaf in leaves if leaf.ndim > 1)
    one, two = (flops.core_work(setting.replace(steps=n), "forward").bytes for n in (1, 2))
    assert 2 * one - two == 4 * size  # Without what every step moves.


@pytest.mark.parametrize(
    ("style", "features", "terms"),
    [
        ("unit", 40, 16 + 16),
        ("memory", 40, 16 + 2),
        (None, 40, 16),
        ("unit", 5, 5),  # The input is smaller than its terms.
    ],
)
def test_moved_bytes_by_hand(style, features, terms):
    setting = Setting("", **SIZES | {"features": features}, gate_style=style)
    for mode, elements in (("forward", 2 * 8 + terms), ("train", 3 * (2 * 8 + terms))):
        one, two = (flops.core_work(setting.replace(steps=n), mode).bytes for n in (1, 2))
        assert two - one == 4 * 3 * elements
    assert flops.core_work(setting, "streaming").bytes is None


def test_moved_bytes_of_an_lstm_by_hand():
    setting = Setting("", **SIZES)
    one, two = (
        flops.gated_work(setting.replace(steps=n), width=7, gates=4, mode="train").bytes
        for n in (1, 2)
    )
    assert two - one == 4 * 3 * (3 * 7 + 3 * 5)
    wide = flops.gated_work(setting.replace(features=90, steps=1), 7, 4, "forward")
    assert wide.bytes == 4 * 3 * (7 + 4 * 7) + 4 * (90 + 7) * 4 * 7


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_gated_cells(kind, mode):
    problem = shaped_problem(SETTINGS[1])
    model = shaped_gated(problem, kind, "width")
    assert counted(model, problem, mode) == model.work(mode).flops


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gated_cells_of_as_many_weights(kind):
    problem = shaped_problem(SETTINGS[0].replace(head_size=32))

    def size(model):
        return sum(leaf.size for leaf in jax.tree.leaves(model.params))

    wanted = sum(leaf.size for leaf in jax.tree.leaves(problem.params))
    model = shaped_gated(problem, kind, "params")
    assert model.width != problem.cell.output_size
    assert abs(size(model) - wanted) < 0.01 * wanted
    # What the width was chosen by is what Flax makes.
    exact = gated_models.width_of_size(
        problem.setting, size(model), gated_models.GATES[kind], gated_models.BIASES[kind]
    )
    assert exact == model.width


def test_work_grows_as_it_should():
    setting = SETTINGS[0]
    short, long = (flops.core_work(setting.replace(steps=steps), "train") for steps in (4, 8))
    assert (long.flops, long.chain) == (2 * short.flops, 2 * short.chain)
    assert short.bytes < long.bytes < 2 * short.bytes  # The weights are read once.
    half = flops.core_work(setting.replace(dtype="bfloat16"), "forward")
    assert 2 * half.bytes == flops.core_work(setting, "forward").bytes
    assert half.chain == 4 * (3 + 2)


def test_no_kept_row_is_faster_than_its_bound():
    results, checked = Path(flops.__file__).parent / "results", 0
    for path in results.rglob("*.jsonl"):
        for row in read_rows(path):
            if "roofline" not in row:
                continue
            sizes = {name: size for name, size in row["setting"].items() if name != "width"}
            gates = gated_models.GATES.get(row["variant"].rpartition("_")[0])
            one = Setting(**sizes), row["mode"]
            work = (
                flops.gated_work(one[0], row["width"], gates, one[1])
                if gates
                else flops.core_work(*one)
            )
            limits = Limits(**row["roofline"]["limits"])
            found = roofline(work, limits, row["seconds"]["median"])
            assert found["share_of_bound"] <= 1, (path, row["variant"], one)
            checked += 1
    assert checked > 500
