"""Runs the examples in docstrings, and checks that public names have one."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import benchmarks
import experiments
import rrnn_jax

# An example may be written without `jax.jit`: each of its operations is a program then.
pytestmark = pytest.mark.programs(300)
MODULES = sorted(
    info.name
    for package in (rrnn_jax, experiments, benchmarks)
    for info in pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.")
    # Commands, and PyTorch, whose examples are with its tests.
    if not info.name.endswith(("__main__", ".tour")) and ".torch_" not in info.name
)


def examples(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


def test_modules_are_found():
    assert {"rrnn_jax.scan.dispatch", "experiments.common.options", "benchmarks.flops"} <= set(
        MODULES
    )


@pytest.mark.parametrize("name", ["rrnn_jax", *MODULES])
def test_examples(name):
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    # As in a user's own session, without the test suite's strict flags.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for test in examples(name):
            runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", rrnn_jax.__all__)
def test_public_names_have_an_example(name):
    public = getattr(rrnn_jax, name)
    assert ">>>" in public.__doc__, f"{name} has no example"
    found = {test.name for test in examples(public.__module__)}
    assert f"{public.__module__}.{name}" in found
