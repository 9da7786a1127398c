"""The protocol's statistics against hand-computed numbers, and the comparison of finished runs."""

import csv
import io

import numpy as np
import pytest

from experiments.common.refused import RefusedError
from experiments.common.report import (
    compare,
    paired_interval,
    read_run,
    to_csv,
    to_markdown,
    verdict,
)
from tests.experiments.toys import write_run
from tests.grids import mostly_slow


def make_run(directory, values, tests, seconds, seeds=(7, 8, 9, 10, 11)):
    """Evaluations at updates 0, 10 and 20, by seed."""
    rows = [
        {"step": 10 * i, "split": "valid", "seed": seed, "nats": value}
        for seed, curve in zip(seeds, values, strict=True)
        for i, value in enumerate(curve)
    ]
    walls = [{"step": 10 * i, "seconds": i * seconds, "wall_seconds": 0} for i in (1, 2)]
    summary = {
        **{"seeds": seeds, "parameters": 100, "core_parameters": 60},
        **{"train_seconds": seconds, "steps": 20},
        **{"score": {"name": "nats", "goal": "min"}, "test": {"nats": tests}},
    }
    return read_run(write_run(directory, rows, walls, summary=summary))


def test_the_interval_of_paired_differences_by_hand():
    # Two pairs, .4 and .1: means .4, .25, .25 and .1, a quarter each.
    assert paired_interval([0.9, 0.8], [0.5, 0.7]) == (0.1, 0.4)
    # The quantile is Phi(sqrt(2) tan(-.1 pi)) = .32.
    assert paired_interval([0.9, 0.8], [0.5, 0.7], level=0.2) == (0.25, 0.25)
    # Three pairs, 0, 0, 3: of 27 draws 8 have no 3, 12 one, 6 two, and 1 three: means 0 to 3.
    # The quantile is Phi(-sqrt(3 / 2) sqrt(2 / 3)) = Phi(-1) = .16.
    assert paired_interval([0, 0, 3], [0, 0, 0], level=0.5) == (0.0, 2.0)
    assert paired_interval([0, 0, 3], [0, 0, 0]) == (0.0, 3.0)
    assert paired_interval([1.0], [0.0]) is None
    # Pairs count: seeds that differ from each other more than models do.
    wide = [1.0, 5.0, 9.0, 2.0, 7.0]
    assert paired_interval([x + 0.5 for x in wide], wide) == (0.5, 0.5)
    # Many pairs are drawn: near the mean plus or minus two standard errors.
    many = paired_interval([1.0, -1.0] * 50, [0.0] * 100)
    assert many == (pytest.approx(-0.2, abs=0.03), pytest.approx(0.2, abs=0.03))
    assert paired_interval([1.0, -1.0] * 50, [0.0] * 100) == many


@pytest.mark.parametrize(
    ("count", "is_skewed", "level", "share"),
    mostly_slow(
        [
            (5, False, 0.95, 0.07),
            (10, False, 0.95, 0.05),
            (5, True, 0.95, 0.12),
            (10, True, 0.95, 0.11),
            (5, False, 0.8457, 0.15),  # The middle 95 % of all means.
        ],
        keep=[(5, False, 0.95, 0.07)],
    ),
)
def test_of_equal_models_few_are_told_apart(count, is_skewed, level, share):
    rng = np.random.default_rng(0)
    size = (600, count)
    draws = rng.exponential(size=size) - 1 if is_skewed else rng.normal(size=size)
    found = [paired_interval(list(pairs), [0.0] * count, level) or (0, 0) for pairs in draws]
    told_apart = np.mean([not low <= 0 <= high for low, high in found])
    assert told_apart == pytest.approx(share, abs=0.025)


def test_better_is_said_only_where_zero_is_excluded_with_five_seeds():
    assert verdict((0.1, 0.2), 5) == "better"
    assert verdict((-0.2, -0.1), 5) == "worse"
    assert verdict((-0.2, -0.1), 5, "min") == "better"
    assert verdict((0.0, 0.2), 5) == verdict((0.1, 0.2), 4) == verdict(None, 5) == "not told apart"


def test_models_at_equal_updates_and_at_equal_time(tmp_path):
    """The second is better after 20 updates; in the first one's time it makes 10, and is not."""
    quick = make_run(tmp_path / "quick", [[3.0, 2.0, 1.0]] * 5, [1.0, 1.1, 1.2, 1.3, 1.4], 50)
    slow = make_run(
        tmp_path / "slow", [[3.0, 1.0, 0.5]] * 4 + [[3.0, 0.9, 0.5]], [0.5, 0.5, 0.8, 0.7, 0.8], 100
    )
    rows = compare({"quick": quick, "slow": slow})
    assert [(row["at"], row["model"], row["stream"]) for row in rows] == [
        *(("updates", "quick", "test"), ("updates", "slow", "test")),
        *(("time", "quick", "valid"), ("time", "slow", "valid")),
    ]
    updates, time = rows[1], rows[3]
    assert updates["values"] == [0.5, 0.5, 0.8, 0.7, 0.8]
    assert updates["difference"] == pytest.approx(-0.54)
    assert updates["interval"][1] < 0
    assert updates["verdict"] == "better"
    # A seed of the quick one has 20 seconds; by then the slow one is at update 10.
    assert time["seconds"] == 20
    assert time["values"] == [1.0] * 4 + [0.9]
    assert (time["interval"], time["verdict"]) == ((-0.08, 0.0), "not told apart")
    assert updates["seconds_per_update"] == pytest.approx(1.0)
    table = to_markdown(rows)
    assert "At equal time, after 20.0 seconds of each seed:" in table
    assert "| slow | 0.66 (0.5 to 0.8) | 5 | -0.54 (" in table
    assert "| 100 (60) | 1e+03 |" in table
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["verdict"] for row in read] == ["", "better", "", "not told apart"]
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        read_run(tmp_path)
    apart = {7 + i: seed._replace(steps=[0, 5, 15]) for i, seed in enumerate(slow.seeds.values())}
    with pytest.raises(RefusedError, match="not evaluated after any update in common"):
        compare({"quick": quick, "slow": slow._replace(seeds=apart)})
    (tmp_path / "slow" / "timings.jsonl").write_text("")
    with pytest.raises(RefusedError, match=r"timings\.jsonl must .* lacks 2 of 2, such as 10"):
        read_run(tmp_path / "slow")
    (tmp_path / "quick" / "metrics.jsonl").write_text("")
    with pytest.raises(RefusedError, match=r"metrics\.jsonl must hold nats of seeds \[7, 8"):
        read_run(tmp_path / "quick")
