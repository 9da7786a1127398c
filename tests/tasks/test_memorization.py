"""Memorization against golden records, and its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.tasks import learn_to_execute
from rrnn_jax.tasks import memorization as mem
from rrnn_jax.tasks.curriculum import initial_state
from tests.tasks import program_oracle as oracle

SAMPLES = 20_000
TASKS = oracle.MEMORIZATION
STATISTICS = [e for e in oracle.golden_meta()["statistics"] if e["task"] not in oracle.TASKS]
sample = jax.jit(mem.sample, static_argnums=(1, 2))  # Integers: the same to the last bit.


def test_golden_records():
    tested = 0
    for record in oracle.golden_records():
        if record["task"] in TASKS:
            assert mem.evaluate(record["program"], TASKS[record["task"]]) == record["target"]
            tested += 1
    assert tested == 450


def test_golden_encodings():
    tested = 0
    for encoding in oracle.golden_meta()["encodings"]:
        if encoding["task"] not in TASKS:
            continue
        config = mem.Config(TASKS[encoding["task"]], encoding["length"])
        sizes = (config.input_steps, config.output_steps, config.vocab_size)
        assert sizes == tuple(encoding[x] for x in ("input_steps", "output_steps", "vocab_size"))
        for example in encoding["examples"]:
            record = oracle.golden_records()[example["record_index"]]
            assert mem.encode(record["program"], config).tolist() == example["input_ids"]
            assert len(example["target_ids"]) == config.output_steps
            assert mem.decode(np.array(example["target_ids"])) == record["target"]
            tested += 1
    assert tested == 18


@pytest.mark.parametrize("length", [1, 5, 10])
@pytest.mark.parametrize("task", TASKS.values())
def test_samples(task, length):
    config = mem.Config(task, length, "fixed" if length == 5 else "mix")
    batch = jax.device_get(sample(jax.random.key(length), config, SAMPLES))
    numbers, answers = oracle.decode_rows(batch.inputs), oracle.decode_rows(batch.targets)
    assert answers == [mem.evaluate(number, task) for number in numbers]
    oracle.check_batch(batch, numbers, answers, config)
    check_uniform(numbers, config)


def test_all_recorded_settings_are_tested():
    assert len(STATISTICS) == len({(entry["task"], entry["length"]) for entry in STATISTICS}) == 9
    assert {entry["task"] for entry in STATISTICS} == set(TASKS)
    measured = {"task", "length", "nest", "curriculum", "samples", "program_length"}
    assert all(set(entry) == {*measured, "target_length"} for entry in STATISTICS)


@pytest.mark.parametrize("entry", STATISTICS, ids=lambda e: f"{e['task']}-{e['length']}".lower())
def test_statistics_agree_with_the_reference(entry):
    config = mem.Config(TASKS[entry["task"]], entry["length"], entry["curriculum"])
    assert config.nesting == entry["nest"]
    batch = jax.device_get(sample(jax.random.key(entry["length"]), config, SAMPLES))
    assert entry["samples"] == SAMPLES
    for lengths, name in (
        (batch.input_lengths, "program_length"),
        (batch.target_lengths, "target_length"),
    ):
        # Of a fixed length there is no noise: mean, deviation and percentiles are exact.
        assert entry[name]["std"] == 0
        oracle.check_lengths(lengths, entry[name], entry["samples"])
        assert lengths.tolist() == [entry[name]["mean"]] * SAMPLES
    check_uniform(oracle.decode_rows(batch.inputs), config)


def check_uniform(numbers: list[str], config: mem.Config) -> None:
    """Lengths and digits, at the 99.99 % quantiles of chi-square with 8 or 9 degrees of freedom."""
    lengths = np.bincount([len(number) for number in numbers], minlength=config.length + 1)[1:]
    if config.curriculum == "fixed":
        assert lengths.tolist() == [0] * (config.length - 1) + [SAMPLES]
    else:
        expected = np.full(config.length, SAMPLES / config.length)
        assert oracle.chi_square(lengths, expected) < 33.8
    first = np.bincount([int(number[0]) for number in numbers], minlength=10)
    assert oracle.chi_square(first, np.array([0.0] + [SAMPLES / 9] * 9)) < 31.9
    for place in range(1, config.length):
        digits = np.array([int(number[place]) for number in numbers if len(number) > place])
        counts = np.bincount(digits, minlength=10)
        assert oracle.chi_square(counts, np.full(10, len(digits) / 10)) < 33.8


def test_curriculum_sets_the_length():
    for curriculum, lengths in (("naive", {3}), ("combined", {1, 2, 3})):
        config = mem.Config("copy", 6, curriculum)
        level = initial_state(config)._replace(length=jnp.int32(3))
        batch = sample(jax.random.key(0), config, 256, level)
        assert set(batch.input_lengths.tolist()) == lengths


def test_trivial_accuracy():
    # Digits are uniform, of 9 and 9 times of 10. The best of ten counts of 1280 is a few per cent
    # above the mean.
    uniform = (1 / 9 + 9 / 10) / 10
    for task in ("copy", "double"):
        assert uniform < mem.trivial_accuracy(mem.Config(task)) < 1.06 * uniform


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"task": "program"}, ValueError, "task must be one of 'copy', .* got 'program'"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"curriculum": "none"}, ValueError, "curriculum must be one of .* got 'none'"),
        ({"curriculum_window": 2.5}, TypeError, "curriculum_window must be an integer, got 2.5"),
    ],
)
def test_bad_config(arguments, error, message):
    with pytest.raises(error, match=message):
        mem.Config(**arguments)


def test_bad_arguments():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        mem.sample(jax.random.key(0), mem.Config(), 0)
    with pytest.raises(
        TypeError, match=r"an instance of .*memorization.Config, got Config\(task='p"
    ):
        mem.sample(jax.random.key(0), learn_to_execute.Config(), 4)
    with pytest.raises(ValueError, match=r"level must be a CurriculumState .* got None"):
        mem.sample(jax.random.key(0), mem.Config(curriculum="naive"), 1)
    with pytest.raises(ValueError, match=r"number must consist of digits, got '1\+2'"):
        mem.evaluate("1+2", "copy")
    with pytest.raises(ValueError, match=r"task must be one of .* got 'sort'"):
        mem.evaluate("12", "sort")
    with pytest.raises(ValueError, match="at most 3 characters, got 4"):
        mem.encode("1234", mem.Config(length=2))
