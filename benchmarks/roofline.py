"""Measured limits of the machine, and how close a program comes to them."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.flops import Work
from benchmarks.jax_programs import matmul_precision
from benchmarks.settings import DTYPES

SIZES = {"cpu": (1536, 1 << 25), "gpu": (8192, 1 << 28), "tpu": (8192, 1 << 28)}
"""Rows of the square product, and elements of the vector for bandwidth."""

CHAIN = 8, 256
"""Dependent small products: their number per iteration, and the iterations."""

_REPEATS = 7

Program = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The best measurements of a machine in one dtype.

    Attributes:
      flops_per_second: operations per second of a large product.
      bytes_per_second: bytes read and written by an elementwise operation on a large vector.
      launch_seconds: time of a tiny product that depends on the previous one, within a loop.
    """

    flops_per_second: float
    bytes_per_second: float
    launch_seconds: float

    def or_better(self, other: "Limits") -> "Limits":
        """The better of both for each limit."""
        return Limits(
            max(self.flops_per_second, other.flops_per_second),
            max(self.bytes_per_second, other.bytes_per_second),
            min(self.launch_seconds, other.launch_seconds),
        )


def measure_limits(dtype: str) -> Limits:
    """Measures the machine in one of `settings.DTYPES`; takes a few seconds."""
    size, elements = SIZES[jax.default_backend()]
    product, stream, launch = _compiled(dtype, size, elements)
    array_dtype = DTYPES[dtype]
    vector = jnp.ones((elements,), jnp.float32)
    square = jnp.full((size, size), 1 / size, array_dtype)
    small = jnp.full((8, 8), 1 / 8, array_dtype)
    return Limits(
        flops_per_second=2 * size**3 / _fastest(product, square),
        bytes_per_second=2 * vector.nbytes / _fastest(stream, vector),
        launch_seconds=_fastest(launch, small) / (CHAIN[0] * CHAIN[1]),
    )


@functools.cache
def _compiled(dtype: str, size: int, elements: int) -> tuple[Program, Program, Program]:
    """A large product, an operation on a large vector, and a chain of small products."""

    def compiled(function: Program, shape: tuple[int, ...], dtype: str) -> Program:
        return jax.jit(function).lower(jax.ShapeDtypeStruct(shape, dtype)).compile()

    array_dtype = DTYPES[dtype]
    with matmul_precision(dtype):
        return (
            compiled(lambda x: x @ x, (size, size), array_dtype),
            compiled(lambda x: x * 1.5 + 1.0, (elements,), "float32"),
            compiled(_chain, (8, 8), array_dtype),
        )


def roofline(work: Work, limits: Limits, seconds: float) -> dict[str, Any]:
    """Compares a program's time with the machine's limits.

    Args:
      work: its least work.
      limits: the machine's limits.
      seconds: its time.

    Returns:
      The least time by each limit; ``bound``, the name of the highest; ``share``, the time of the
      products alone divided by the measured time; ``share_of_bound``, the same for the highest.
    """
    least = {
        "compute": work.flops / limits.flops_per_second,
        "launch": work.chain * limits.launch_seconds,
    }
    if work.bytes is not None:
        least["memory"] = work.bytes / limits.bytes_per_second
    bound = max(least, key=lambda name: least[name])
    return {
        **dataclasses.asdict(work),
        "limits": dataclasses.asdict(limits),
        "least_seconds": least,
        "bound": bound,
        "share": least["compute"] / seconds,
        "share_of_bound": least[bound] / seconds,
    }


def _chain(x: jax.Array) -> jax.Array:
    def body(carry: jax.Array, nothing: None) -> tuple[jax.Array, None]:
        for _ in range(CHAIN[0]):
            carry = carry @ x
        return carry, nothing

    return jax.lax.scan(body, x, None, length=CHAIN[1])[0]


def _fastest(program: Program, x: jax.Array) -> float:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program(x))
        times.append(time.perf_counter() - start)
    return min(times)
