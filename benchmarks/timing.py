"""Interleaved timing of programs, so that changes of the machine's speed affect all of them."""

import contextlib
import dataclasses
import gc
import math
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType

Run = Callable[[], object]
"""Runs a program once and returns when it has finished."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call.

    Attributes:
      median: the median.
      q1: first quartile.
      q3: third quartile.
      min: the fastest call.
      n: the number of samples.
    """

    median: float
    q1: float
    q3: float
    min: float
    n: int


def summarise(samples: Sequence[float]) -> Timing:
    """Median, quartiles (linearly interpolated), minimum and number of samples.

    >>> summarise([4.0, 1.0, 2.0, 3.0, 10.0])
    Timing(median=3.0, q1=2.0, q3=4.0, min=1.0, n=5)

    Raises:
      ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("samples must hold at least one number, got none")
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], samples[0], 1)
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, q1, q3, min(samples), len(samples))


@dataclasses.dataclass
class Rounds:
    """The results of `interleave`.

    Attributes:
      samples: seconds per call, by program.
      interrupted: whether Ctrl-C ended it early.
    """

    samples: dict[str, list[float]]
    interrupted: bool = False

    def summaries(self) -> dict[str, Timing]:
        """A `Timing` of each program that ran at least once."""
        return {name: summarise(times) for name, times in self.samples.items() if times}


def interleave(
    programs: Mapping[str, Run],
    *,
    rounds: int,
    warmup: int = 3,
    min_seconds: float = 0.2,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Times programs in rounds, each of which runs all programs once in a new random order.

    A sample is the mean of as many calls as fill `min_seconds`. Garbage is collected at the end of
    a round. Ctrl-C ends the measurement and keeps finished samples.

    Args:
      programs: the programs by name; each returns when it has finished.
      rounds: samples per program.
      warmup: calls of each program before its first sample. The first is not timed, because it may
        compile; to fill `min_seconds` there are at least two.
      min_seconds: shortest duration of a sample.
      seed: seed of the order within the rounds.
      progress: wraps the range of rounds, to draw a bar.
      clock: a clock in seconds.

    Returns:
      The samples, in the order taken.
    """
    result = Rounds({name: [] for name in programs})
    order = list(programs)
    shuffle = random.Random(seed).shuffle
    collecting = gc.isenabled()
    try:
        calls = {
            name: _calls_per_sample(run, warmup, min_seconds, clock)
            for name, run in programs.items()
        }
        gc.disable()
        for _ in progress(range(rounds)):
            shuffle(order)
            for name in order:
                result.samples[name].append(_sample(programs[name], calls[name], clock))
            gc.collect()
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        if collecting:
            gc.enable()
    return result


def _sample(run: Run, calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def _calls_per_sample(run: Run, warmup: int, min_seconds: float, clock: Callable[[], float]) -> int:
    """Warms up a program, and returns the number of calls that fill `min_seconds`."""
    run()
    if min_seconds == 0:
        for _ in range(warmup - 1):
            run()
        return 1
    fastest = min(_sample(run, 1, clock) for _ in range(max(warmup - 1, 1)))
    return max(1, math.ceil(min_seconds / fastest)) if fastest > 0 else 1


@contextlib.contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
    """Interrupts the block like Ctrl-C when the time is over; None: no limit.

    Compiled code and compilation finish first. Use it in the main thread.

    Raises:
      KeyboardInterrupt: the time is over.
    """
    if minutes is None:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
