"""The quick preset does what its README says (minutes long)."""

import dataclasses

import pytest

from experiments.program_evaluation import PRESETS, train


@pytest.mark.slow
@pytest.mark.parametrize(("task", "steps"), [("copy", 3000), ("reverse", 3000), ("double", 4500)])
def test_quick_preset_teaches_the_rmc_to_memorize(tmp_path, task, steps):
    quick = PRESETS["quick"]
    train_config = dataclasses.replace(quick.train, steps=steps)
    config = dataclasses.replace(quick, task=task, model="rmc", train=train_config)
    summary = train(config, tmp_path, progress=False)
    assert summary[task]["rmc"]["evaluation"]["accuracy"][0] >= 0.99
