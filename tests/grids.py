"""Grids of cases: the default suite runs a case of each kind, `pytest -m slow` the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], *, keep: Iterable[Any]) -> list[Any]:
    """The values of a parametrisation, tuples for several arguments: all but `keep` are slow."""
    cases, keep = list(cases), list(keep)
    unknown = [case for case in keep if case not in cases]
    if unknown:
        raise ValueError(f"keep must be among the cases, got {unknown}; there are {cases}")
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in keep else pytest.mark.slow,
        )
        for case in cases
    ]
