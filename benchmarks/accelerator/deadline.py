"""Time that is limited: when to stop starting work, and an alarm for work that takes longer."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType


class Deadline:
    """A moment by which all must be done.

    >>> deadline = Deadline(60.0, clock=lambda: 0.0)
    >>> deadline.left(), deadline.share(3).left()
    (60.0, 20.0)
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return self._end - self._clock()

    def share(self, parts: int) -> "Deadline":
        """An equal part of what is left."""
        return Deadline(self.left() / parts, self._clock)

    def within(self, seconds: float) -> "Deadline":
        """In so many seconds, or at this deadline if that comes first."""
        return Deadline(min(seconds, self.left()), self._clock)


class Pace:
    """How long pieces of work take, by kind: is there time for another one?

    >>> pace = Pace(first_guess=30.0)
    >>> deadline = Deadline(60.0, clock=lambda: 0.0)
    >>> pace.fits("train", deadline)
    True
    >>> pace.note("train", 70.0)
    >>> pace.fits("train", deadline), pace.fits("forward", deadline)
    (False, True)
    """

    def __init__(self, first_guess: float) -> None:
        self._first_guess = first_guess
        self._longest: dict[str, float] = {}

    def fits(self, kind: str, deadline: Deadline) -> bool:
        """Whether a piece as long as the longest of its kind would end in time."""
        return deadline.left() > self._longest.get(kind, self._first_guess)

    def note(self, kind: str, seconds: float) -> None:
        """Remembers what one took."""
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))


@contextlib.contextmanager
def alarm(deadline: Deadline) -> Iterator[None]:
    """Interrupts the work within, as Ctrl-C does, once the deadline has passed.

    What runs in compiled code ends first. Without effect outside the main thread.

    Raises:
      KeyboardInterrupt: at the deadline.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(deadline.left(), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
