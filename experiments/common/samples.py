"""Examples with the model's answers, printed in training and stored in ``samples.txt``."""

import re
from pathlib import Path

from tqdm import tqdm

from experiments.common.records import write_text, writes

SAMPLES_FILE = "samples.txt"


class SamplesWriter:
    """Prints and stores a model's answers.

    The file contains a block for each evaluation, with the heading ``== step 100 ==``. It contains
    no times, so a resumed run writes the same file as an uninterrupted one.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        """Drops blocks that are later than `step`.

        Args:
          run_dir: the run's directory.
          step: the update that the run starts from; -1 for a new run.
        """
        self._path = run_dir / SAMPLES_FILE
        if self._path.exists():
            with self._path.open(encoding="utf-8", errors="replace", newline="") as file:
                text = file.read()  # With the ends of lines that it has.
            write_text(self._path, _drop_blocks_after(text, step))

    def write(self, step: int, text: str) -> None:
        """Prints a block above the progress bar, and appends it to the file."""
        block = f"== step {step} ==\n{text.rstrip()}\n"
        tqdm.write(block, end="")
        if writes():
            with self._path.open("a", encoding="utf-8", newline="") as file:
                file.write(block)


def _drop_blocks_after(text: str, step: int) -> str:
    r"""The blocks up to a step.

    >>> _drop_blocks_after("== step 5 ==\na\n== step 10 ==\nb\n", 5)
    '== step 5 ==\na\n'
    """
    heads = re.finditer(r"^== step (\d+) ==$", text, flags=re.MULTILINE)
    later = [head.start() for head in heads if int(head[1]) > step]
    return text[: min(later, default=len(text))]
