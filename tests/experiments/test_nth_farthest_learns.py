"""The quick preset does what its README says (minutes long)."""

import pytest

from experiments.nth_farthest import PRESETS, train


@pytest.mark.slow
def test_quick_preset_tells_rmc_and_lstm_apart(tmp_path):
    summary = train(PRESETS["quick"], tmp_path, progress=False)
    assert min(summary["rmc"]["evaluation"]["accuracy"]) >= 0.9
    assert max(summary["lstm"]["evaluation"]["accuracy"]) <= 0.65
