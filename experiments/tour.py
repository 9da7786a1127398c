"""Executes the guided tour: ``python -m experiments.tour`` writes ``experiments/tour.ipynb``.

The source is ``tour.md``. It takes a quarter of an hour on 2 CPU cores, and needs the extra
``tour``.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.records import replacing

TEXT = Path(__file__).with_suffix(".md")
NOTEBOOK = Path(__file__).with_suffix(".ipynb")
LARGEST = 1_500_000
"""Maximum size of the executed notebook in bytes."""


def read_text() -> Any:
    """The text as a notebook without outputs, with fixed cell ids."""
    import jupytext

    notebook = jupytext.read(TEXT)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    return notebook


def execute(timeout: float = 7200.0) -> Any:
    """Runs all cells in a fresh kernel, from the repository's root.

    Args:
      timeout: seconds that one cell may take.

    Returns:
      The notebook with its outputs, without times and versions of Jupyter.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an error.
      ValueError: a cell wrote to stderr, which is where warnings go.
    """
    from matplotlib import font_manager  # Prints a message if it creates its cache; not in cells.
    from nbclient import NotebookClient
    from traitlets.config import Config

    assert font_manager.fontManager
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # Avoids a debugger's message.
    notebook = read_text()
    resources = {"metadata": {"path": str(TEXT.parents[1])}}
    with tempfile.TemporaryDirectory() as sockets:  # Files instead of open ports.
        NotebookClient(
            notebook,
            timeout=timeout,
            startup_timeout=600,
            resources=resources,
            record_timing=False,
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        ).execute()
    if faults := complaints(notebook):
        raise ValueError("cells wrote errors or warnings:\n" + "\n".join(faults))
    notebook.metadata = {
        "jupytext": notebook.metadata["jupytext"],
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
    }
    return notebook


def complaints(notebook: Any) -> list[str]:
    """Errors, warnings and other stderr output in a notebook's outputs."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                found.append(f"{cell['id']}: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"{cell['id']}: {output['text']}")
    return found


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tour", description="Executes the guided tour."
    )
    parser.add_argument(
        "--out", type=Path, default=NOTEBOOK, help="where it goes (default: experiments/tour.ipynb)"
    )
    given = parser.parse_args(args)
    try:
        import nbformat
    except ModuleNotFoundError:
        print("The tour needs its extra: pip install -e '.[tour]'", file=sys.stderr)
        return 2
    start = time.perf_counter()
    with replacing(given.out) as temporary:
        nbformat.write(execute(), temporary)
    print(f"wrote {given.out} after {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
