"""The presets do what the README says (minutes long)."""

import dataclasses

import pytest

from experiments.nth_farthest import PRESETS, train


@pytest.mark.slow
def test_the_memory_core_learns_the_small_task(tmp_path):
    preset = dataclasses.replace(PRESETS["small"], model="rmc")
    summary = train(preset, tmp_path, progress=False)
    assert min(summary["rmc"]["evaluation"]["accuracy"]) >= 0.9
