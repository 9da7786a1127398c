"""Ctrl-C, SIGTERM and a closed terminal: stop after the current chunk, or immediately."""

import os
import signal
import stat
import sys
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_INTERRUPTED = 130
_is_command = False
_is_kept = False
PARENT = "RRNN_JAX_PARENT"
"""Environment variable with the parent process; this process ends when it does."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """Training stopped on request, after saving."""


class StopRequest:
    """Within the context, the first signal requests a stop; a second one has its usual effect.

    >>> with StopRequest() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    ...     stop.requested
    True
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # Ignored under nohup.
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGHUP:
            leave_terminal()
        if self.requested:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
        self.requested = True


def keep_request(requested: bool) -> None:
    """Keeps a request that came when a run was done, so that the next run does not begin."""
    global _is_kept
    _is_kept = _is_kept or requested


def kept_request() -> bool:
    """Whether a request was kept; the answer is given once."""
    global _is_kept
    found, _is_kept = _is_kept, False
    return found


def exit_at_once() -> None:
    """From now on signals end this process immediately, with one line and exit code 130.

    For command lines outside training. Files are written atomically there, so it is not necessary
    to wait for a compiler or the thread of a library, which might not end.
    """
    global _is_command
    _is_command = True
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _exit)
    parent = os.environ.get(PARENT)
    if parent is not None:
        threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()


def end_command(code: int) -> int:
    """Ends a command line immediately, so that nothing is printed after its last message.

    Returns:
      The code, if this process is not a command.
    """
    if _is_command:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def is_command(package: str) -> bool:
    """Whether this process was started as ``python -m package...`` and is importing it."""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    return sys.argv[:1] == ["-m"] and module[:1] != [] and module[0].split(".")[0] == package


def leave_terminal() -> None:
    """Discards output if its terminal was closed."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        # `isatty` is False for a closed terminal.
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _exit(number: int, frame: FrameType | None) -> None:
    del number, frame
    try:
        os.write(
            2, b"\nstopped immediately; the same command resumes a run from its last checkpoint\n"
        )
    finally:
        os._exit(EXIT_INTERRUPTED)


def _follow(parent: int) -> None:
    """Stops this process like Ctrl-C once its parent has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
