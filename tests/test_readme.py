"""The README's Python blocks run, and its commands exist."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) >= 2
    assert any("nn.RNN(" in block for block in BLOCKS)
    assert any("resets=" in block for block in BLOCKS)


def test_python_blocks_run_in_order():
    # As in a user's own session, without the test suite's strict flags.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile("\n".join(BLOCKS), "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_into_the_repository_exist(path):
    assert (ROOT / path).exists()


def test_modules_of_the_commands_exist():
    modules = set(re.findall(r"python -m ((?:experiments|benchmarks)[\w.]*)", README))
    assert modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
