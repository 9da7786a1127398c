"""Runs the examples in the docstrings of the experiments."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import experiments

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(experiments.__path__, prefix="experiments.")
    if not info.name.endswith(("__main__", ".tour"))
)


def test_modules_are_found():
    assert {"experiments.common.options", "experiments.ablations.findings"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert doctest.testmod(importlib.import_module(name)).failed == 0
