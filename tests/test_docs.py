"""The documentation's Python blocks run page by page, and its links exist."""

import re
import runpy
from pathlib import Path

import jax
import pytest

# A page may do without `jax.jit`: each of its operations is a program then.
pytestmark = pytest.mark.programs(300)
DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OWN = [page for page in PAGES if not page.is_symlink()]  # The others are READMEs.
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def page_id(path: Path) -> str:
    return str(path.relative_to(DOCS))


@pytest.mark.parametrize(
    "page", [page for page in OWN if BLOCK.search(page.read_text())], ids=page_id
)
def test_blocks_run_in_order(page):
    code = "\n".join(BLOCK.findall(page.read_text()))
    # As in a user's own session, without the test suite's strict flags.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, str(page), "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", OWN, ids=page_id)
def test_relative_links_exist(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_tests_that_a_page_names_exist():
    rows = re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "compatibility.md").read_text())
    assert rows
    for path, name in rows:
        folder = DOCS.parent / "tests" / ("" if "/" in path else "core")
        if path != "test_a.py":
            assert f"def {name}(" in (folder / path).read_text(), f"{path}::{name}"


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(), flags=re.MULTILINE))
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}
    assert listed == pages


def test_attributes_that_share_a_description_get_it_each():
    split = runpy.run_path(str(DOCS / "conf.py"))["split_groups"]
    lines = ["Attributes:", "  a, b: numbers", "    of two lines.", "  c: one, with: marks."]
    split(None, "class", "", None, None, lines)
    both = [line for name in "ab" for line in (f"  {name}: numbers", "    of two lines.")]
    assert lines == ["Attributes:", *both, "  c: one, with: marks."]
