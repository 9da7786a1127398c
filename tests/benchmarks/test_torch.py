"""The core in PyTorch is the core in JAX; PyTorch is not among the development dependencies."""

import doctest

import pytest

pytest.importorskip("torch")

from benchmarks import torch_programs, torch_rmc, variants
from benchmarks.agreement import errors, worst
from benchmarks.problem import make_cell, make_problem
from benchmarks.settings import Setting

SIZES = {"batch": 2, "steps": 3, "slots": 3, "heads": 2, "head_size": 4, "features": 5}
SETTINGS = [
    Setting("unit", **SIZES, input_gradients=True),
    Setting("blocks", **SIZES, blocks=2, mlp_layers=3, gate_style="memory"),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
@pytest.mark.parametrize("mode", ["train", "streaming"])
def test_agrees(setting, mode):
    problem = make_problem(setting)
    wanted = variants.build("plain", problem, mode).results()
    for name in ("torch", "torch_bmm", "torch_port"):
        program = variants.build(name, problem, mode)
        program.run()
        array, error = worst(errors(program.results(), wanted))
        assert error < 1e-5, (name, array)


def test_the_dropped_input_row_changes_nothing():
    problem = make_problem(SETTINGS[1])
    inputs = torch_programs.tensor(problem.inputs, "cpu")
    outputs = []
    for skip in (True, False):
        model = torch_rmc.TorchRMC(problem.cell, skip_input_row=skip)
        model.load_flax(problem.params["cell"])
        outputs.append(model(inputs).detach().numpy())
    assert outputs[0] == pytest.approx(outputs[1], abs=1e-5)


def test_products_in_bfloat16():
    setting = SETTINGS[0].replace(dtype="bfloat16")
    problem = make_problem(setting)
    wanted = variants.build("plain", make_problem(SETTINGS[0]), "forward").results()
    found = variants.build("torch", problem, "forward").results()
    _, error = worst(errors(found, wanted))
    assert 1e-5 < error < 0.05


def test_what_it_cannot_do():
    cell = make_cell(SETTINGS[0]).clone(output_gate=True)
    with pytest.raises(ValueError, match="output_gate=True"):
        torch_rmc.TorchRMC(cell)


def test_examples():
    assert doctest.testmod(torch_rmc).failed == 0
