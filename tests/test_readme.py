"""The README's Python blocks run, and its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) >= 2
    assert any("nn.RNN(" in block for block in BLOCKS)
    assert any("resets=" in block for block in BLOCKS)


def test_python_blocks_run_in_order(tmp_path):
    script = tmp_path / "readme.py"
    script.write_text("\n".join(BLOCKS))
    # A program that another worker has not written to the end yet is compiled.
    shared_cache = "ignore:Error reading persistent compilation cache entry"
    command = [sys.executable, "-W", "error", "-W", shared_cache, script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_into_the_repository_exist(path):
    assert (ROOT / path).exists()


def test_modules_of_the_commands_exist():
    modules = set(re.findall(r"python -m ((?:experiments|benchmarks)[\w.]*)", README))
    assert modules
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
