"""The shared command line of experiments: presets, run options, exit codes."""

import argparse
import dataclasses
import errno
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from experiments.common import parallel
from experiments.common.cells import Core
from experiments.common.checkpoint import StorageError
from experiments.common.interrupts import EXIT_INTERRUPTED, Interrupted, end_command
from experiments.common.loop import NonFiniteError
from experiments.common.options import checked, is_given, name_options, option_of, without_checks
from experiments.common.refused import RefusedError
from experiments.common.run_directory import RunFailedError

ConfigT = TypeVar("ConfigT")
OptionsT = TypeVar("OptionsT", bound="DirectoryOptions")

EXIT_REFUSED = 2
EXIT_NON_FINITE = 3

_PLACES = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE),
}
"""System errors about a path: missing, no permission, full, broken."""


@dataclasses.dataclass(frozen=True)
class DirectoryOptions:
    """Where to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the run. An unfinished run in it resumes."""
    progress: bool = True
    """Draw a progress bar."""


@dataclasses.dataclass(frozen=True)
class RunOptions(DirectoryOptions):
    """Where and how to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the run: config, metrics, checkpoints, plots; with --model all, of the runs, in
    <model> below it. Unfinished runs in an existing directory resume. Default:
    runs/<experiment>/<preset>, or <model> in it if one is named."""
    resume: bool = False
    """Fail unless there is a run to resume."""
    fresh: bool = False
    """Fail if there is a run already."""
    eval_only: bool = False
    """Do not train, but evaluate the newest checkpoint on the evaluation data of the run's seeds;
    give the options of the run. Writes evaluation.json."""
    distributed: bool = False
    """This is one of several processes, as SLURM, Open MPI or Kubernetes started them; see
    experiments/README.md."""
    coordinator: str | None = None
    """Alternative to --distributed: HOST:PORT of the first process."""
    num_processes: int | None = None
    """With --coordinator: the number of processes."""
    process_id: int | None = None
    """With --coordinator: the index of this process, from 0."""

    def __post_init__(self) -> None:
        if self.fresh and (self.resume or self.eval_only):
            other = "--resume" if self.resume else "--eval-only"
            raise ValueError(f"{other} and --fresh exclude each other")
        by_hand = (self.coordinator, self.num_processes, self.process_id)
        if any(each is None for each in by_hand) and any(each is not None for each in by_hand):
            raise ValueError("--coordinator, --num-processes and --process-id go together")

    @property
    def must_resume(self) -> bool | None:
        """True: there must be a run; False: there must be none; None: either."""
        return True if self.resume else False if self.fresh else None


def model_dir(config: Any) -> Path:
    """The default run directory of one model: where a run of all would put it."""
    directory = Path(config.preset)
    return directory if config.model == "all" else directory / config.model


def parse(
    presets: Mapping[str, ConfigT],
    experiment: str,
    description: str,
    args: Sequence[str] | None,
    run_options: OptionsT = RunOptions(),
    check: Callable[[ConfigT], object] = lambda config: None,
    default_dir: Callable[[ConfigT], Path] = model_dir,
) -> tuple[ConfigT, OptionsT]:
    """Parses the command line: options override the defaults of the preset.

    Args:
      presets: configs by name; the first is the default. Each has a field `preset`.
      experiment: the name of the experiment's package, and optionally of its command.
      description: the description in the help.
      args: the arguments; None means those of the process.
      run_options: the defaults of the options that are not in the config.
      check: ``check(config)`` raises ValueError for a config without a valid task or model, in
        addition to the config's own checks.
      default_dir: the default run directory below runs/<experiment>.

    Returns:
      The config, and the run options including the run directory.

    Raises:
      SystemExit: for help, or (code 2) for unknown or invalid options; the message has been
        printed.
    """
    tyro = _import_tyro()
    args = list(sys.argv[1:] if args is None else args)
    first = next(iter(presets))
    pre = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre.add_argument("--preset", default=first)
    preset = pre.parse_known_args(args)[0].preset
    # Tyro rejects an unknown preset; this function rejects invalid values.
    default: Any = without_checks(presets.get(preset, presets[first]))
    run_options = without_checks(run_options)

    @dataclasses.dataclass(frozen=True)
    class Options:
        config: Annotated[Any, tyro.conf.arg(name="")]
        run: Annotated[Any, tyro.conf.arg(name="")]

    Options.__annotations__["config"] = Annotated[type(default), tyro.conf.arg(name="")]
    Options.__annotations__["run"] = Annotated[type(run_options), tyro.conf.arg(name="")]
    options = tyro.cli(
        tyro.conf.OmitArgPrefixes[Options],
        prog=f"python -m experiments.{experiment}",
        description=description,
        default=Options(default, run_options),
        args=args,
    )
    run = options.run
    try:
        run = checked(run)
        fitted = _fit_micro_batch(_fit_warmup(_fit_cores(options.config, args), args), args)
        config = checked(fitted)
        check(config)
    except ValueError as error:
        print(f"error: {name_options(str(error), options.config)}", file=sys.stderr)
        raise SystemExit(EXIT_REFUSED) from None
    _connect(run)
    if run.run_dir is None:
        directory = Path("runs") / experiment.split()[0] / default_dir(config)
        run = dataclasses.replace(run, run_dir=directory)
    return config, run


def _connect(run: Any) -> None:
    """Connects to the other processes of the run, if there are any."""
    if getattr(run, "distributed", False) or getattr(run, "coordinator", None):
        try:
            parallel.connect(run.coordinator, run.num_processes, run.process_id)
        except RefusedError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(EXIT_REFUSED) from None


def _import_tyro() -> Any:
    """Imports tyro, which is only needed for the command line."""
    try:
        import tyro
    except ImportError as error:
        raise SystemExit(
            "error: the command line of experiments needs tyro: pip install -e '.[experiments]' "
            f"(or call the experiment's `train` from Python, which does not): {error}"
        ) from error
    return tyro


def _fit_cores(config: Any, args: Sequence[str]) -> Any:
    """The config, without a core's own rate or schedule of the preset if the general one is given.

    An explicit one is unchanged, and so are cores that the run does not train.
    """
    for field in ("learning_rate", "schedule"):
        for name, core in vars(config).items() if is_given(field, args) else ():
            if not isinstance(core, Core) or getattr(config, "model", "all") not in ("all", name):
                continue
            own = {
                option: value
                for option, value in vars(core).items()
                if option.endswith(f"_{field}") and value is not None and not is_given(option, args)
            }
            for option, value in own.items():
                what = f"{option_of(option)} {value} of the preset is dropped"
                print(f"{what}: {option_of(field)} is given", file=sys.stderr)
            core = dataclasses.replace(getattr(config, name), **dict.fromkeys(own))
            config = dataclasses.replace(config, **{name: core})
    return config


def _fit_warmup(config: Any, args: Sequence[str]) -> Any:
    """The config, with a preset's warm-up reduced to the requested steps.

    An explicit warm-up is unchanged and checked by the config. Giving the reduced value as an
    option results in the same config.
    """
    steps, warmup = config.train.steps, config.train.warmup_steps
    if is_given("warmup_steps", args) or not 0 < steps < warmup:
        return config
    option = option_of("warmup_steps")
    print(f"{option} {warmup} of the preset is cut to the {steps} steps", file=sys.stderr)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, warmup_steps=steps))


def _fit_micro_batch(config: Any, args: Sequence[str]) -> Any:
    """The config, with a preset's micro-batch changed to divide the requested batch."""
    batch, rows = config.train.batch_size, config.train.micro_batch_size
    if is_given("micro_batch_size", args) or rows is None or batch < 1 or batch % rows == 0:
        return config
    fitting = max(n for n in range(1, min(rows, batch) + 1) if batch % n == 0)
    option = option_of("micro_batch_size")
    print(f"{option} {rows} of the preset is {fitting}, for {batch} sequences", file=sys.stderr)
    train = dataclasses.replace(config.train, micro_batch_size=fitting)
    return dataclasses.replace(config, train=train)


def run_command(
    config: Any,
    options: RunOptions,
    train: Callable[..., Any],
    evaluate: Callable[[Any, Path], Any],
    describe: Callable[[Any], str],
) -> int:
    """Trains, or evaluates with ``--eval-only``, and prints the results.

    Args:
      config: the config.
      options: the run options, see `parse`.
      train: ``train(config, run_dir, resume=..., progress=...)`` returns results.
      evaluate: ``evaluate(config, run_dir)`` does, too.
      describe: the text of results.

    Returns:
      The exit code.
    """
    run_dir = options.run_dir
    assert run_dir is not None

    def action() -> None:
        if options.eval_only:
            results = evaluate(config, run_dir)
        else:
            resume, progress = options.must_resume, options.progress
            results = train(config, run_dir, resume=resume, progress=progress)
            print(f"Plots: {run_dir / 'plots'}")
        print(describe(results))

    return exit_code(action)


def exit_code(action: Callable[[], Any]) -> int:
    """Runs `action` and converts errors for users to a message and an exit code.

    Returns:
      0; 2: refused (another config in the directory, nothing to resume, missing path, full
      disk); 3: NaN or infinity; 4: another process of the run ended; 130: stopped by Ctrl-C,
      SIGTERM or a closed terminal, after saving.
    """
    try:
        action()
    except (RefusedError, NonFiniteError, RunFailedError, OSError) as error:
        # Errors of other libraries have only a message.
        if isinstance(error, OSError) and error.errno not in (None, *_PLACES):
            raise
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, NonFiniteError | RunFailedError):
            return EXIT_NON_FINITE
        if isinstance(error, StorageError | OSError):
            return end_command(EXIT_REFUSED)  # Threads of libraries would print more messages.
        return EXIT_REFUSED
    except Interrupted as stop:
        print(f"{stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        parallel.leave_lost(error)
        raise
    return 0
