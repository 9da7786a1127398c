"""The quick preset does what its README says (minutes long)."""

import dataclasses

import pytest

from experiments.program_evaluation import PRESETS, train


@pytest.mark.slow
@pytest.mark.parametrize("task", ["copy", "reverse", "double"])
def test_quick_preset_teaches_the_rmc_to_memorize(tmp_path, task):
    config = dataclasses.replace(PRESETS["quick"], task=task, model="rmc")
    summary = train(config, tmp_path, progress=False)
    assert summary[task]["rmc"]["evaluation"]["accuracy"][0] >= 0.99
