"""The presets do what the README says (minutes long)."""

import pytest

from experiments.nth_farthest import PRESETS, train


@pytest.mark.slow
def test_small_preset_tells_rmc_and_lstm_apart(tmp_path):
    summary = train(PRESETS["small"], tmp_path, progress=False)
    assert min(summary["rmc"]["evaluation"]["accuracy"]) >= 0.9
    assert max(summary["lstm"]["evaluation"]["accuracy"]) <= 0.65
