"""The guided tour: its executed notebook matches the text, and it runs without warnings."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from experiments import tour

ROOT = Path(__file__).parents[2]
SECTIONS = [
    *("Multi-head attention", "The relational memory core", "The RNN cell"),
    *("Sequential-reasoning tasks", "LSTM baseline", "Training", "Results and comparison"),
    *("Visualisations of attention and memory", "Ablations", "Conclusions"),
]


@pytest.fixture(scope="module")
def executed():
    return nbformat.read(tour.NOTEBOOK, as_version=4)


def sources(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_executed_notebook_is_that_of_the_text(executed):
    assert sources(executed) == sources(tour.read_text())
    nbformat.validate(executed)


def test_every_cell_was_run_in_order_without_errors_and_warnings(executed):
    counts = [cell.execution_count for cell in executed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert tour.complaints(executed) == []


def test_ten_sections():
    headings = re.findall(r"^## (\d+)\. (.*)$", tour.TEXT.read_text(), re.M)
    assert headings == [(str(i + 1), name) for i, name in enumerate(SECTIONS)]


def test_small_and_without_places(executed):
    assert tour.NOTEBOOK.stat().st_size < tour.LARGEST
    text = tour.NOTEBOOK.read_text()
    assert str(ROOT) not in text
    shown = "".join(str(output) for output in outputs(executed))
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work)/", shown)


def test_figures_are_there(executed):
    images = [output for output in outputs(executed) if "image/png" in output.get("data", {})]
    assert len(images) >= 7


def test_only_public_names_are_imported():
    notebook = tour.read_text()
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "%%" not in code  # A fenced block of another language would be run by a shell.
    modules = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
    ours = {name for name in modules if name.split(".")[0] in ("rrnn_jax", "experiments")}
    assert ours == {"rrnn_jax", "rrnn_jax.baselines", "rrnn_jax.tasks"}
    assert "._" not in code


def test_complaints_are_found():
    cells = [
        nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text="fine")]),
        nbformat.v4.new_code_cell(
            outputs=[nbformat.v4.new_output("stream", name="stderr", text="UserWarning: no")]
        ),
        nbformat.v4.new_code_cell(
            outputs=[nbformat.v4.new_output("error", ename="ValueError", evalue="bad")]
        ),
    ]
    found = tour.complaints(nbformat.v4.new_notebook(cells=cells))
    assert [text.split(": ", 1)[1] for text in found] == ["UserWarning: no", "ValueError: bad"]


def test_a_cell_that_warns_is_refused(tmp_path, monkeypatch):
    text = tmp_path / "experiments" / "tour.md"
    text.parent.mkdir()
    header = tour.TEXT.read_text().split("# A guided tour")[0]
    monkeypatch.setattr(tour, "TEXT", text)
    text.write_text(header + "# One cell\n\n```python\n1 + 1\n```\n")
    executed = tour.execute(timeout=300)
    assert executed.cells[1].outputs[0]["data"]["text/plain"] == "2"
    assert set(executed.metadata) == {"jupytext", "kernelspec", "language_info"}
    text.write_text(header + "```python\nimport warnings\nwarnings.warn('mind this')\n```\n")
    with pytest.raises(ValueError, match=r"(?s)cell-0: .*mind this"):
        tour.execute(timeout=300)


def test_links_exist():
    links = set(re.findall(r"\]\(([^)#:]+)\)", tour.TEXT.read_text()))
    assert len(links) > 3
    for target in links:
        assert (tour.TEXT.parent / target).exists(), target


@pytest.mark.slow
def test_runs_top_to_bottom(tmp_path, capsys):
    target = tmp_path / "tour.ipynb"
    assert tour.main(["--out", str(target)]) == 0  # Raises at an error or a warning.
    assert sources(nbformat.read(target, as_version=4)) == sources(tour.read_text())
    printed = capsys.readouterr().out
    assert f"wrote {target} after " in printed
    # Minutes on an idle machine; twice as long, if other programs run beside it.
    assert int(re.findall(r"after (\d+) s$", printed.strip())[0]) < 2 * 720
