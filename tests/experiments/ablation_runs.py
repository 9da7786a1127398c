"""A small grid for tests, and fake runs of it."""

import dataclasses

from experiments.ablations import PRESETS, make_rows
from experiments.common.run_directory import note_failure, note_session, open_run
from tests.experiments.toys import write_run

CONFIG = dataclasses.replace(
    PRESETS["quick"],
    core=dataclasses.replace(PRESETS["quick"].core, mem_slots=2, num_heads=2, head_size=4),
    lstm=dataclasses.replace(PRESETS["quick"].lstm, lstm_features=8),
    train=dataclasses.replace(
        PRESETS["quick"].train,
        **{"steps": 4, "batch_size": 4, "chunk_steps": 2, "eval_every": 2, "eval_samples": 8},
        **{"checkpoint_every": 2, "warmup_steps": 0, "num_seeds": 2},
    ),
)
TINY = [
    *("--mem-slots", "2", "--head-size", "4", "--lstm-features", "8", "--steps", "4"),
    *("--batch-size", "4", "--chunk-steps", "2", "--eval-every", "2", "--eval-samples", "8"),
    *("--checkpoint-every", "2", "--warmup-steps", "0", "--num-seeds", "2", "--no-progress"),
]
ROWS = make_rows(CONFIG)


def make_run(run_dir, name, accuracy, *, curves=None, rows=ROWS, seconds=8.0):
    """What a trained row leaves, by seed."""
    row = rows[name]
    directory = run_dir / name
    open_run(directory, row)
    note_session(directory, 0)
    evaluations = curves or [[0.7, value, value] for value in accuracy]
    lines = [
        {"step": 2 * i, "split": "valid", "seed": seed, "accuracy": value}
        for seed, values in zip(row.config.train.seeds, evaluations, strict=True)
        for i, value in enumerate(values)
    ]
    summary = {
        **{"steps": 4, "seeds": list(row.config.train.seeds), "parameters": 1000},
        **{"train_seconds": seconds / 2, "wall_seconds": seconds, "trivial_accuracy": 2 / 3},
        "evaluation": {"accuracy": accuracy},
    }
    write_run(directory, lines, summary=summary)


def make_grid(run_dir):
    """A grid that is done but for a few rows."""
    make_run(run_dir, "base", [0.92, 0.96])
    make_run(run_dir, "slots_1", [0.71, 0.69])
    make_run(run_dir, "heads_1", [0.93, 0.99])
    make_run(run_dir, "blocks_2", [0.97, 0.98], curves=[[0.7, 0.84, 0.97], [0.7, 0.8, 0.98]])
    make_run(run_dir, "initial_zeros", [0.66, 0.67])
    make_run(run_dir, "lstm", [0.8, 0.9], curves=[[0.7, 0.75, 0.8], [0.7, 0.9, 0.9]])
    fail_run(run_dir, "gates_none")


def fail_run(run_dir, name):
    """What a row leaves whose loss became NaN."""
    open_run(run_dir / name, ROWS[name])
    note_session(run_dir / name, 0)
    note_failure(run_dir / name, "loss became nan")
