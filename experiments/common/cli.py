"""The command line that experiments share: presets, run options, exit codes."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from experiments.common.loop import Interrupted, NonFiniteError
from experiments.common.run_directory import ConfigMismatchError, RunExistsError

ConfigT = TypeVar("ConfigT")
OptionsT = TypeVar("OptionsT", bound="DirectoryOptions")

EXIT_REFUSED = 2
EXIT_NON_FINITE = 3
EXIT_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class DirectoryOptions:
    """Where to run; the numbers do not depend on it."""

    run_dir: Path | None = None
    """Directory of the run: config, metrics, checkpoints, plots. The same one again goes on with an
    unfinished run. Default: runs/<experiment>/<preset>, and in it <model> if one is named."""
    progress: bool = True
    """Draw a progress bar."""


@dataclasses.dataclass(frozen=True)
class RunOptions(DirectoryOptions):
    """Where and how to run; the numbers do not depend on it."""

    resume: bool = False
    """Refuse to start from nothing: there must be a run to go on with."""
    fresh: bool = False
    """Refuse to go on: there must be no run yet."""
    eval_only: bool = False
    """Evaluate the newest checkpoint on fresh data, and do not train."""

    def __post_init__(self) -> None:
        if self.resume and self.fresh:
            raise ValueError("--resume and --fresh exclude each other")

    @property
    def must_resume(self) -> bool | None:
        """True: there must be a run; False: there must be none; None: either."""
        return True if self.resume else False if self.fresh else None


def parse(
    presets: Mapping[str, ConfigT],
    experiment: str,
    description: str,
    args: Sequence[str] | None,
    default_dir: Callable[[ConfigT], Path],
    run_options: OptionsT = RunOptions(),
) -> tuple[ConfigT, OptionsT]:
    """Reads the command line: options over the defaults of the preset it names.

    Args:
      presets: configs by name; the first is the default one. Each has a field `preset`.
      experiment: the name of the experiment's package, and of a command of it if that is meant.
      description: opens the help.
      args: the arguments; None means those of the process.
      default_dir: the run directory below runs/<experiment> where none is given.
      run_options: the defaults of the options that are not the config's.

    Returns:
      The config, and the run options with the run directory filled in.
    """
    try:
        import tyro  # Here, so that experiments can be imported and run without it.
    except ImportError as error:
        raise SystemExit(
            "error: the command line of experiments needs tyro: pip install -e '.[experiments]' "
            f"(or call the experiment's `train` from Python, which does not): {error}"
        ) from error

    args = list(sys.argv[1:] if args is None else args)
    first = next(iter(presets))
    pre = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre.add_argument("--preset", default=first)
    preset = pre.parse_known_args(args)[0].preset
    default: Any = presets.get(preset, presets[first])  # An unknown one is tyro's to refuse.

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
    if run.run_dir is None:
        directory = Path("runs") / experiment.split()[0] / default_dir(options.config)
        run = dataclasses.replace(run, run_dir=directory)
    return options.config, run


def exit_code(action: Callable[[], Any]) -> int:
    """Runs `action` and turns what users are to be told into a message and an exit code.

    Returns:
      0; 2: refused (another config in the directory, nothing to resume); 3: NaN or infinity;
      130: stopped by Ctrl-C, after saving.
    """
    try:
        action()
    except (ConfigMismatchError, RunExistsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except NonFiniteError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_NON_FINITE
    except Interrupted as stop:
        print(f"{stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0
