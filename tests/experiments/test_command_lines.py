"""Invalid options: every experiment reports them in one line and writes nothing."""

import dataclasses
import importlib

import pytest

from experiments import ablations, nth_farthest, program_evaluation
from experiments.common.cells import recipe
from experiments.common.cli import parse
from experiments.common.options import changed_options, checked, without_checks
from experiments.common.refused import RefusedError
from experiments.common.run_directory import open_run
from experiments.nth_farthest.config import RMCConfig

REFUSED = {
    "--steps 0": "--steps must be at least 1, got 0",
    "--lstm-layers 0": "--lstm-layers must be at least 1, got 0",
    "--mem-slots 0": "--mem-slots must be at least 1, got 0",
    "--batch-size 8 --micro-batch-size 7": "--micro-batch-size must divide --batch-size=8, got 7",
    "--steps 5 --warmup-steps 100": "--warmup-steps must lie between 0 and --steps=5, got 100",
    "--steps 5 --warmup_steps=100": "--warmup-steps must lie between 0 and --steps=5, got 100",
}
PROGRAMS = {
    "--length 200": "--length must be at most 167, got 200",
    "--memorization-length 0": "--memorization-length must be at least 1, got 0",
    "--curriculum-window 1": "--curriculum-window must be at least 2, got 1",
}
EXCLUDED = {
    "--resume --fresh": "--resume and --fresh exclude each other",
    "--eval-only --fresh": "--eval-only and --fresh exclude each other",
}
JOBS = {"--jobs 0": "--jobs must be at least 1, got 0"}
CASES = {
    "nth_farthest": {
        **(REFUSED | EXCLUDED),
        "--num-objects 1": "--num-objects must be at least 2, got 1",
        "--preset small --correlation 0.5": "--staged must be True with options of the curriculum, "
        "got False",
        "--preset small --staged": "--staged must be False without options of the curriculum, "
        "got True",
    },
    "program_evaluation": {
        **(REFUSED | EXCLUDED | PROGRAMS),
        "--task copy --model dnc --num-writes 0": "--num-writes must be at least 1, got 0",
        "--task copy --length 9": "--length must be left out for copy, got 9",
        "--task control --memorization-length 9": "--memorization-length must be left out for "
        "control, got 9",
        "--curriculum-threshold 0.2": "--curriculum-threshold must be left out with "
        "--curriculum='mix', got 0.2",
    },
    "language_model": {
        "--eval-samples 9": "--eval-samples must be left as it is: evaluations read whole texts"
    },
    "ablations": {
        **(REFUSED | JOBS),
        "--key-size 0": "--key-size must be at least 1, got 0",
        "--target 0.9": "--target must be left out: rows have equal updates, got 0.9",
        "--program-task reverse": "--program-task must be left out with --task=nth_farthest, "
        "got reverse",
        "--ranks 4": "--staged must be True with options of the curriculum, got False",
        "--output-gate --gate-style none": "--gate-style must be 'unit' or 'memory' with "
        "--output-gate=True, got 'none'",
    },
    "ablations --preset quick_program --program-task addition": PROGRAMS
    | {
        "--num-objects 5": "--num-objects must be left out with --task=program_evaluation, got 5",
        "--ranks 4": "--ranks must be left out with --task=program_evaluation, got (4,)",
        "--memorization-length 9": "--memorization-length must be left out for addition, got 9",
    },
}
PRESETS = {
    "nth_farthest": nth_farthest.PRESETS,
    "program_evaluation": program_evaluation.PRESETS,
    "ablations": ablations.PRESETS,
}


def test_a_core_that_cannot_run_here_is_refused_before_a_directory_is_made(tmp_path, capsys):
    options = "--preset small --model rmc --dtype bfloat16 --implementation cuda --steps 1"
    main = importlib.import_module("experiments.nth_farthest.__main__").main
    assert main([*options.split(), "--run-dir", str(tmp_path / "run")]) == 2
    assert "error: --implementation='cuda' needs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", CASES)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(command, tmp_path, capsys):
    experiment, *start = command.split()
    main = importlib.import_module(f"experiments.{experiment}.__main__").main
    for options, message in CASES[command].items():
        with pytest.raises(SystemExit) as stop:
            main([*start, *options.split(), "--run-dir", str(tmp_path / "run")])
        assert stop.value.code == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err) == ("", f"error: {message}\n")
        assert not list(tmp_path.iterdir()), options


@pytest.mark.parametrize("name", ["nth_farthest", "ablations"])
def test_what_cannot_be_made_leaves_no_directory(name, tmp_path, monkeypatch):
    """Of the problem itself, which options alone do not tell."""

    def fail(config):
        raise ValueError("cannot be made")

    module = importlib.import_module(f"experiments.{name}.train")
    monkeypatch.setattr(module, "make_problem", fail)
    config = PRESETS[name]["quick"]
    if name == "ablations":
        train, config = module.train_row, ablations.make_rows(config)["base"]
    else:
        train = module.train
    with pytest.raises(ValueError, match="cannot be made"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def read(name, *args):
    return parse(PRESETS[name], name, "", args, default_dir=lambda config: "")[0]


@pytest.mark.parametrize("name", PRESETS)
def test_a_presets_warm_up_is_cut_to_the_steps(name, capsys):
    quick = PRESETS[name]["quick"]
    config = read(name, "--steps", "5")
    assert config == dataclasses.replace(
        quick, train=dataclasses.replace(quick.train, steps=5, warmup_steps=5)
    )
    assert capsys.readouterr().err == "--warmup-steps 100 of the preset is cut to the 5 steps\n"
    # A command made of the config makes the same one, and has nothing more to say.
    options = changed_options(config, quick)
    assert options == ["--steps", "5", "--warmup-steps", "5"]
    assert read(name, *options) == config
    assert read(name, "--steps", "100").train.warmup_steps == 100
    assert capsys.readouterr().err == ""


def test_a_given_rate_replaces_the_presets_own_of_a_core(capsys):
    start = ("nth_farthest", "--preset", "laptop", "--model")
    config = read(*start, "lstm", "--learning-rate", "0.5")
    assert recipe(config, "lstm", config.train).learning_rate == 0.5
    dropped = "--lstm-learning-rate 0.02 of the preset is dropped: --learning-rate is given\n"
    assert capsys.readouterr().err == dropped
    config = read(*start, "all", "--learning-rate", "0.5", "--lstm-learning-rate", "0.02")
    assert recipe(config, "lstm", config.train).learning_rate == 0.02
    assert read(*start, "rmc", "--learning-rate", "0.5").lstm.lstm_learning_rate == 0.02
    assert read(*start, "lstm", "--schedule", "constant").lstm.lstm_learning_rate == 0.02
    assert capsys.readouterr().err == ""


def test_options_make_the_config_that_they_were_made_of():
    quick = PRESETS["ablations"]["quick"]
    core = dataclasses.replace(quick.core, output_gate=True, qkv_norm=False, key_size=7)
    train = dataclasses.replace(quick.train, clip_norm=None, learning_rate=0.5)
    config = dataclasses.replace(quick, task="program_evaluation", core=core, train=train)
    options = changed_options(config, quick)
    assert options == [
        *("--task", "program_evaluation", "--key-size", "7", "--no-qkv-norm", "--output-gate"),
        *("--learning-rate", "0.5", "--clip-norm", "None"),
    ]
    assert read("ablations", *options) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_typo_is_answered_with_a_suggestion(name, capsys):
    with pytest.raises(SystemExit) as stop:
        read(name, "--learning-rat", "1")
    assert stop.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("experiment", "groups", "default"),
    [
        ("nth_farthest", "task rmc curriculum train", 1600),
        ("program_evaluation", "difficulty rmc lstm dnc entnet train", 200_000),
    ],
)
def test_help_is_grouped_and_shows_the_presets_defaults(experiment, groups, default, capsys):
    main = importlib.import_module(f"experiments.{experiment}.__main__").main
    with pytest.raises(SystemExit) as stop:
        main(["--preset", "paper", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"{group} options" in printed for group in groups.split())
    assert f"(default: {default})" in printed
    assert "--eval-only" in printed


@pytest.mark.parametrize("name", PRESETS)
def test_configs_that_are_read_are_of_the_experiments_own_types(name):
    for preset, config in PRESETS[name].items():
        found = read(name, "--preset", preset)
        assert found == config
        assert list(map(type, vars(found).values())) == list(map(type, vars(config).values()))


def test_a_twin_takes_any_values():
    twin = without_checks(RMCConfig())
    wrong = dataclasses.replace(twin, mem_slots=0)
    with pytest.raises(ValueError, match="mem_slots must be at least 1, got 0"):
        checked(wrong)
    assert checked(dataclasses.replace(twin, mem_slots=3)) == RMCConfig(mem_slots=3)


def test_a_place_that_cannot_be_a_directory_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    main = importlib.import_module("experiments.nth_farthest.__main__").main
    assert main(["--run-dir", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(RefusedError, match=f"there is no run in {tmp_path}"):
        open_run(tmp_path, PRESETS["nth_farthest"]["quick"], resume=True)
