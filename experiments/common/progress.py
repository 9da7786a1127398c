"""Progress of training: a bar on a terminal, otherwise one line for each evaluation."""

import datetime
import sys
import time

from tqdm import tqdm

BAR_FORMAT = "{desc}: {n_fmt}/{total_fmt}{postfix} [{elapsed}<{remaining}, {rate_fmt}] {bar}"
"""The most important values come first, because a narrow terminal cuts off the end."""


class Progress:
    """A progress bar, or lines. A context manager.

    Args:
      name: label at the beginning.
      step: updates that are already done.
      steps: total number of updates.
      shown: whether to show anything.
    """

    def __init__(self, name: str, step: int, steps: int, shown: bool) -> None:
        self._name, self._first, self._steps = name, step, steps
        has_terminal = sys.stderr.isatty()
        self._prints = shown and not has_terminal
        self._started = time.perf_counter()
        self._bar = tqdm(
            total=steps,
            initial=step,
            desc=name,
            unit="step",
            bar_format=BAR_FORMAT,
            dynamic_ncols=True,
            disable=not (shown and has_terminal),
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def update(self, step: int, text: str, evaluated: bool) -> None:
        """Shows the current state.

        Args:
          step: updates done.
          text: the newest numbers.
          evaluated: whether they include a new evaluation.
        """
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(text)
        if self._prints and evaluated:
            rate = (step - self._first) / max(time.perf_counter() - self._started, 1e-9)
            left = datetime.timedelta(seconds=round((self._steps - step) / max(rate, 1e-9)))
            at = f"{self._name}: step {step}/{self._steps}"
            print(f"{at}, {text}, {rate:.3g} updates/s, {left} left", flush=True)
