"""Runs the examples in the docstrings of the benchmarks; those of PyTorch are with its tests."""

import doctest
import importlib
import pkgutil

import pytest

import benchmarks

MODULES = [info.name for info in pkgutil.iter_modules(benchmarks.__path__, prefix="benchmarks.")]


def test_modules_are_found():
    assert {"benchmarks.settings", "benchmarks.timing", "benchmarks.flops"} <= set(MODULES)


@pytest.mark.parametrize("name", [name for name in MODULES if ".torch_" not in name])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
