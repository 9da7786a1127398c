"""Options of the command line and the corresponding fields of configs."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from experiments.common.run_directory import flatten

ConfigT = TypeVar("ConfigT")


def option_of(field: str) -> str:
    """The option that sets a field; sections are not named.

    >>> option_of("train.micro_batch_size")
    '--micro-batch-size'
    """
    return "--" + field.rpartition(".")[2].replace("_", "-")


def changed_options(config: Any, usual: Any) -> list[str]:
    """The options that change one config into another.

    >>> from experiments.common.train_config import TrainConfig
    >>> changed_options(TrainConfig(steps=5, clip_norm=0.5), TrainConfig())
    ['--steps', '5', '--clip-norm', '0.5']

    Args:
      config: a dataclass.
      usual: the defaults of the command line, of the same type.

    Returns:
      Arguments.
    """
    values, before = (flatten(dataclasses.asdict(one)) for one in (config, usual))
    found: list[str] = []
    for name, value in values.items():
        if value == before[name]:
            continue
        option = option_of(name)
        if isinstance(value, bool):
            found.append(option if value else option.replace("--", "--no-", 1))
        else:
            found += [option, *map(str, value if isinstance(value, tuple | list) else [value])]
    return found


def is_given(field: str, args: Sequence[str]) -> bool:
    """Whether arguments set a field.

    >>> is_given("warmup_steps", ["--warmup-steps=3"]), is_given("steps", ["--warmup-steps", "3"])
    (True, False)
    """
    return any(arg.partition("=")[0].replace("_", "-") == option_of(field) for arg in args)


def name_options(message: str, config: Any) -> str:
    """A message of a config's check, with options instead of fields.

    >>> from experiments.common.train_config import TrainConfig
    >>> name_options("micro_batch_size must divide batch_size=8, got 3", TrainConfig())
    '--micro-batch-size must divide --batch-size=8, got 3'
    """
    names = "|".join(sorted(_fields(config), key=len, reverse=True))
    # A field is at the beginning of a message or has a value; "the steps" is not a field.
    return re.sub(rf"(?<![\w-])({names})(?= must\b|=)", lambda match: option_of(match[1]), message)


def without_checks(config: ConfigT) -> ConfigT:
    """A copy of a config with a type, and types of its sections, that do not check values.

    The parser of the command line can create it with invalid values; `checked` then converts it to
    a config, or raises.
    """
    cls = type(config)
    content = {"__post_init__": lambda self: None, "__doc__": cls.__doc__}
    # The help finds the docstrings of the fields by name and module.
    twin: Any = type(cls.__name__, (cls,), content | {"__module__": cls.__module__})
    return twin(**{name: _map(without_checks, value) for name, value in _values(config)})


def checked(twin: ConfigT) -> ConfigT:
    """Converts a config of `without_checks` back.

    Raises:
      ValueError, TypeError: from the config's own checks.
    """
    values = {name: _map(checked, value) for name, value in _values(twin)}
    return type(twin).__mro__[1](**values)


def _map(function: Any, value: Any) -> Any:
    return function(value) if dataclasses.is_dataclass(value) else value


def _values(config: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        yield field.name, getattr(config, field.name)


def _fields(config: Any) -> Iterator[str]:
    for name, value in _values(config):
        if dataclasses.is_dataclass(value):
            yield from _fields(value)
        else:
            yield name
