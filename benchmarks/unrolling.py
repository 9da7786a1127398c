"""Several steps of a sequence in one iteration of the hoisted scan's loops: does it pay?"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax

from rrnn_jax.scan import backward, hoisted
from rrnn_jax.scan.loop import loop_over_time


@contextlib.contextmanager
def unrolled_hoisted_scan(steps: int) -> Iterator[None]:
    """Within the context, the hoisted scan is traced with so many steps to an iteration.

    `rrnn_jax.RNN`'s own ``unroll`` is for the plain scan; this finds out whether the hoisted one
    wants it too. No other loop is touched.

    Args:
      steps: steps in an iteration; 1 leaves all as it is.
    """
    scan = functools.partial(jax.lax.scan, unroll=steps)

    def loop(*args: Any, **options: Any) -> Any:
        with mock.patch.object(jax.lax, "scan", scan):
            return loop_over_time(*args, **options)

    with (
        mock.patch.object(hoisted, "loop_over_time", loop),
        mock.patch.object(backward, "loop_over_time", loop),
    ):
        yield
