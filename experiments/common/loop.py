"""The training loop: the device trains; Python logs, evaluates, saves and updates the bar."""

import contextlib
import math
import time
from pathlib import Path
from typing import NamedTuple

from experiments.common import parallel
from experiments.common.checkpoint import Writer, read_latest
from experiments.common.interrupts import Interrupted, StopRequest, keep_request, kept_request
from experiments.common.metrics import METRICS_FILE, MetricsWriter
from experiments.common.problem import Problem, Score
from experiments.common.progress import Progress
from experiments.common.records import Row, RowWriter, read_rows
from experiments.common.run_directory import (
    check_not_failed,
    check_shared,
    hold,
    note_failure,
    note_session,
)
from experiments.common.samples import SamplesWriter
from experiments.common.steps import Programs, TrainState, Values, to_values
from experiments.common.train_config import TrainConfig

TIMINGS_FILE = "timings.jsonl"
BEST = "best"
"""The directory of the best checkpoint, beside ``checkpoints``."""


class NonFiniteError(FloatingPointError):
    """The loss, a metric or the gradient became NaN or infinite."""


class Begins(NamedTuple):
    """The start of training: step and rows of metrics of the checkpoint; -1 and None without."""

    step: int
    rows: int | None


class Outcome(NamedTuple):
    """The result of training.

    Attributes:
      state: the final state, on the host.
      metrics: the last evaluation's means by name, one value per seed.
      test: likewise for "test"; None without such an evaluation.
      seconds: total time of training chunks over all sessions, without compilation, evaluation and
        saving.
      wall_seconds: total time of training over all sessions, to the end of each one's last chunk.
      score: the score.
    """

    state: TrainState
    metrics: Values
    test: Values | None
    seconds: float
    wall_seconds: float
    score: Score


def train(
    problem: Problem,
    config: TrainConfig,
    run_dir: Path,
    name: str = "",
    progress: bool = True,
    until: float | None = None,
) -> Outcome:
    """Trains from the newest checkpoint in `run_dir`, or from the start, to the last step.

    All processes of a run call it; the first one writes.

    Args:
      problem: task and model.
      config: how to train, and when to end: at `config.steps`, at `config.target`.
      run_dir: an open run directory (`run_directory.open_run`).
      name: label of the progress bar.
      progress: whether to draw the bar.
      until: the `time.perf_counter` at which to save and end (default: in `config.minutes`).

    Returns:
      The `Outcome`.

    Raises:
      NonFiniteError: NaN or infinity; the last good checkpoint stays.
      RefusedError: the processes do not share `run_dir`.
      Interrupted: Ctrl-C, SIGTERM, or the end of `config.minutes`; the state has been saved.
    """
    started = time.perf_counter()
    until = end_of(config) if until is None else until
    programs = Programs(problem, config)
    with contextlib.ExitStack() as stack:
        checkpoints = best = restored = None

        def begin() -> None:
            nonlocal checkpoints, best, restored
            stack.enter_context(hold(run_dir))
            checkpoints = stack.enter_context(contextlib.closing(Writer(run_dir / "checkpoints")))
            best = stack.enter_context(contextlib.closing(Writer(run_dir / BEST, keep=1)))
            restored = checkpoints.restore_latest(programs.shapes)
            # Later ones are of updates that are made again, perhaps with other evaluations.
            best.clear(-1 if restored is None else restored.step)

        parallel.first(begin)  # The others wait until it has removed damaged checkpoints.
        if not parallel.is_main():
            with contextlib.suppress(FileNotFoundError):
                restored = read_latest(run_dir / "checkpoints", programs.shapes)
        check_shared(run_dir, -1 if restored is None else restored.step)
        if parallel.agree(kept_request())[0]:
            raise Interrupted(f"stopped before {name or 'a run'}; run the same command to resume")
        begins = Begins(-1, None)
        if restored is None:
            state = programs.init()
        else:
            state = programs.place(restored.state)
            begins = Begins(restored.step, restored.notes.get("rows"))
            if restored.step < config.steps:
                print(f"{name}: resumes at step {restored.step}")
        session = _Session(programs, run_dir, begins, checkpoints, best, name, started, until)
        stack.callback(session.close)
        try:
            return session.run(state, progress)
        except NonFiniteError as error:
            note_failure(run_dir, str(error))
            raise


def end_of(config: TrainConfig) -> float:
    """The `time.perf_counter` at the end of `config.minutes` from now."""
    return math.inf if config.minutes is None else time.perf_counter() + 60 * config.minutes


def evaluate_run(
    problem: Problem, config: TrainConfig, run_dir: Path, name: str = "valid"
) -> tuple[int, Values]:
    """Evaluates the newest checkpoint of a run.

    Returns:
      Its step, and the means by name, one value per seed.

    Raises:
      FileNotFoundError: the run has no checkpoint.
    """
    programs = Programs(problem, config)
    restored = read_latest(run_dir / "checkpoints", programs.shapes)
    return restored.step, programs.evaluate(programs.place(restored.state), name)


class _Session:
    """One process's part of a run, from its start to a stop or the end."""

    def __init__(
        self,
        programs: Programs,
        run_dir: Path,
        begins: Begins,
        checkpoints: Writer | None,
        best: Writer | None,
        name: str,
        started: float,
        until: float,
    ) -> None:
        self.programs, self.config = programs, programs.config
        self.begins, self.step = begins, max(begins.step, 0)
        self.score = programs.problem.score
        self.run_dir, self.name = run_dir, name
        self.checkpoints, self.best = checkpoints, best
        self.best_score = None if best is None else best.note("score")
        self.saved_step = begins.step
        self.saved, self.until = started, until
        self.clock = _Clock(run_dir / TIMINGS_FILE, begins.step, started)
        self.writer = MetricsWriter(run_dir, *begins)
        has_samples = programs.problem.show is not None
        self.samples = SamplesWriter(run_dir, begins.step) if has_samples else None
        self.evaluation: Values = {}
        self.test: Values | None = None

    def run(self, state: TrainState, progress: bool) -> Outcome:
        """Trains to the end."""
        config, programs = self.config, self.programs
        batches = None
        if self.step < config.steps:
            check_not_failed(self.run_dir)
        is_done = self._begin(state)
        if not is_done:
            note_session(self.run_dir, self.step)
            # Compile before the bar starts: its estimate would count compilation.
            started = time.perf_counter()
            batches = programs.batches(self.step, self._next_steps())
            programs.compile(state, self._next_steps(), batches)
            print(f"{self.name}: compiled in {time.perf_counter() - started:.1f} s", flush=True)
        shown = progress and parallel.is_main()
        with Progress(self.name, self.step, config.steps, shown) as bar, StopRequest() as stop:
            while not is_done:
                num_steps = self._next_steps()
                programs.compile(state, num_steps, batches)  # The last chunk may be shorter.
                started = time.perf_counter()
                state, metrics = programs.train_chunk(state, num_steps, batches)
                self.step += num_steps
                if self.step < config.steps:  # While the device computes.
                    batches = programs.batches(self.step, self._next_steps())
                values = to_values(metrics)
                self.clock.add(self.step, num_steps, time.perf_counter() - started)
                _check_finite(values, config, self.step, self.saved_step)
                self.writer.write(self.step, "train", config.seeds, values)
                is_due = self._due(num_steps, config.eval_every)
                if is_due:
                    self._evaluate(state)
                is_done = is_due and self._is_done()
                if is_done and "test" in programs.problem.evaluations:
                    self.test = programs.evaluate(state, "test")
                    self.writer.write(self.step, "test", config.seeds, self.test)
                stops = self._save(state, num_steps, stop.requested, is_done)
                bar.update(self.step, self._describe(values), is_due)
                if stops and not is_done:
                    raise Interrupted(
                        f"stopped at step {self.step}; run the same command to resume"
                    )
            keep_request(stop.requested)
        final = parallel.to_host(state)
        clock = self.clock
        return Outcome(
            final, self.evaluation, self.test, clock.seconds, clock.wall_seconds, self.score
        )

    def close(self) -> None:
        """Closes the files."""
        self.clock.close()
        self.writer.close()

    def _next_steps(self) -> int:
        return min(self.config.chunk_steps, self.config.steps - self.step)

    def _begin(self, state: TrainState) -> bool:
        """Evaluates the first state or reads its evaluation; returns whether the run is done."""
        if self.begins.step < 0:
            self._evaluate(state)
            return self._is_done()
        # The written evaluation equals the original exactly.
        self.evaluation = self._recorded("valid") or self.programs.evaluate(state)
        # A target is for the evaluations of the run, which a stop in between does not add to.
        (is_due,) = parallel.agree(self.checkpoints is not None and self._rows("valid") != {})
        is_done = self.step >= self.config.steps or (is_due and self._is_done())
        if is_done:
            print(f"{self.name}: finished before, at step {self.step}")
            if "test" in self.programs.problem.evaluations:
                self.test = self._recorded("test") or self.programs.evaluate(state, "test")
        return is_done

    def _recorded(self, split: str) -> Values | None:
        """An evaluation of this step in the metrics; None without, or of other samples."""
        if self.checkpoints is None or parallel.count() > 1:
            return None  # The first process may be writing; all processes must do the same.
        samples = self.config.eval_samples
        if self.checkpoints.note("eval_samples") not in (None, samples):
            return None
        if split == "test" and self.checkpoints.note("test_samples") != self._test_samples:
            return None
        rows = self._rows(split)
        if self.score.name not in set().union(*rows.values()) or len(rows) < self.config.num_seeds:
            return None
        names = dict.fromkeys(name for row in rows.values() for name in row)
        return {
            name: [rows[seed].get(name) for seed in self.config.seeds]
            for name in names
            if name not in ("step", "split", "seed")
        }

    def _rows(self, split: str) -> dict[int, Row]:
        """The rows of an evaluation of this step, by seed."""
        return {
            row["seed"]: row
            for row in read_rows(self.run_dir / METRICS_FILE)
            if (row["step"], row["split"]) == (self.step, split)
        }

    @property
    def _test_samples(self) -> int | None:
        test = self.programs.problem.evaluations.get("test")
        return None if test is None else test.samples

    def _evaluate(self, state: TrainState) -> None:
        self.evaluation = self.programs.evaluate(state)
        score = {self.score.name: self.evaluation[self.score.name]}
        at = f"in the evaluation at step {self.step}"
        _refuse_non_finite(score, self.config, at, self.saved_step)
        self.writer.write(self.step, "valid", self.config.seeds, self.evaluation)
        if self.samples is not None:
            self.samples.write(self.step, str(self.programs.show(state)))
        value = self.score.mean(self.evaluation[self.score.name])
        if not self.step or value is None:
            return
        is_better = self.best is not None and self.score.is_better(value, self.best_score)
        if parallel.agree(is_better)[0]:
            whole = parallel.to_host(state)
            if self.best is not None:
                self.best_score = value
                self.best.save(self.step, whole, {"score": value})
            parallel.wait()

    def _is_done(self) -> bool:
        """Whether the last update is done or the target is reached."""
        value = self.score.mean(self.evaluation[self.score.name])
        target = self.config.target
        if target is None or value is None or self.step == 0:
            return self.step >= self.config.steps
        return self.step >= self.config.steps or self.score.reaches(value, target)

    def _save(self, state: TrainState, num_steps: int, requested: bool, is_done: bool) -> bool:
        """Saves if due; returns whether to stop, at the same update in all processes."""
        now, config = time.perf_counter(), self.config
        due = config.checkpoint_minutes
        late = due is not None and now - self.saved > 60 * due
        stops, late = parallel.agree(requested or now > self.until, late)
        if stops or late or is_done or self._due(num_steps, config.checkpoint_every):
            self.writer.flush()
            self.clock.flush()
            notes = {"rows": self.writer.count, "eval_samples": config.eval_samples}
            notes |= {"test_samples": self._test_samples}
            whole = parallel.to_host(state)
            if self.checkpoints is not None:
                self.checkpoints.save(self.step, whole, notes)
            parallel.wait()
            self.saved_step, self.saved = self.step, time.perf_counter()
        return stops

    def _due(self, num_steps: int, every: int) -> bool:
        """Whether the last chunk contains a multiple of `every`, or ends training."""
        before = self.step - num_steps
        return self.step >= self.config.steps or self.step // every > before // every

    def _describe(self, values: Values) -> str:
        name = self.score.name
        parts = [f"valid {self.score.write(self.evaluation[name])}"]
        if "loss" in values:
            parts.append(f"loss {self.score.mean(values['loss']):.3f}")
        if name in values:
            parts.append(f"{name} {self.score.write(values[name])}")
        return ", ".join(parts)


class _Clock:
    """Training time over sessions, in a separate file because metrics must not depend on it."""

    def __init__(self, path: Path, step: int, started: float) -> None:
        self._started = started
        self.seconds = self.wall_seconds = 0.0
        kept = [row for row in read_rows(path) if row["step"] <= step]
        if kept:
            self.seconds, self.wall_seconds = kept[-1]["seconds"], kept[-1]["wall_seconds"]
        self._rows = RowWriter(path, len(kept))

    def add(self, step: int, num_steps: int, seconds: float) -> None:
        """Adds a chunk."""
        now = time.perf_counter()
        # Rounded as it is written, so that reading a run gives exactly the same summary.
        self.seconds = round(self.seconds + seconds, 3)
        self.wall_seconds = round(self.wall_seconds + now - self._started, 3)
        self._started = now
        row = {
            "step": step,
            "seconds": self.seconds,
            "wall_seconds": self.wall_seconds,
            "steps_per_second": round(num_steps / seconds, 3),
        }
        self._rows.write(row)

    def flush(self) -> None:
        """Writes all rows to the disk, before a checkpoint that relies on them."""
        self._rows.sync()

    def close(self) -> None:
        """Closes the file."""
        self._rows.close()


def _check_finite(metrics: Values, config: TrainConfig, step: int, saved: int) -> None:
    """Checks the metrics of updates."""
    _refuse_non_finite(metrics, config, f"in the updates before step {step}", saved)


def _refuse_non_finite(metrics: Values, config: TrainConfig, at: str, saved: int) -> None:
    """Checks that values are finite; a metric may have no value, but not the loss."""
    for name, values in metrics.items():
        for seed, value in zip(config.seeds, values, strict=True):
            if math.isfinite(math.nan if value is None and name == "loss" else value or 0.0):
                continue
            kept = "there is no checkpoint yet"
            if saved >= 0:
                kept = f"the checkpoint of step {saved} is kept"
            raise NonFiniteError(
                f"{name} became {value} (seed {seed}) {at}; {kept}. A lower "
                "--learning-rate or a --clip-norm, in another --run-dir, may help."
            )
