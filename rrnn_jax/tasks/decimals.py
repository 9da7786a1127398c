r"""Exact arithmetic on long decimal numbers in 32-bit integers.

A `Number` is a tuple of limbs, each of which holds four digits, the least significant first:
:math:`x = \sum_i x_i \, 10^{4i}` with :math:`0 \le x_i < 10^4`. All results are modulo
:math:`10^{4n}` for n limbs. The sums of products in `multiply` are the largest numbers that occur;
they fit into 32 bits for up to `MAX_LIMBS` limbs:
:math:`42 \cdot 9999^2 + 42 \cdot 9999 < 2^{32}`.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array

DIGITS = 4
"""Digits in a limb."""

BASE = 10**DIGITS
"""What a limb counts up to."""

MAX_LIMBS = 42
"""Limbs that `multiply` is exact for."""

Number: TypeAlias = tuple[Array, ...]
"""Limbs ``[*B]`` uint32, the least significant first."""

Columns: TypeAlias = Sequence[Array]
"""Like a number's limbs, but not yet below `BASE`: sums whose carries are due."""


def number_of_limbs(digits: int) -> int:
    """Limbs that hold as many digits."""
    return -(-digits // DIGITS)


def carry(columns: Columns) -> Number:
    """The number that columns stand for; what is carried out of the last one is dropped."""
    limbs, rest = [], jnp.zeros_like(columns[0])
    for column in columns:
        total = column + rest
        rest = jax.lax.div(total, jnp.full_like(total, BASE))
        limbs.append(total - rest * BASE)
    return tuple(limbs)


def add(a: Number, b: Number, times: Array | int = 1) -> Columns:
    """Columns of a + times b, for `times` below 10^5."""
    return [x + y * times for x, y in zip(a, b, strict=True)]


def subtract(a: Number, b: Number) -> Columns:
    """Columns of a - b, by adding the complement of b: :math:`10^{4n} - b`."""
    return [x + (BASE - 1 - y) + int(i == 0) for i, (x, y) in enumerate(zip(a, b, strict=True))]


def multiply(a: Number, b: Number) -> Columns:
    """Columns of a b. Limbs that `b` lacks are zero."""
    columns = []
    for i in range(len(a)):
        products = [a[i - j] * b[j] for j in range(min(i + 1, len(b)))]
        columns.append(sum(products[1:], start=products[0]))
    return columns


def less(a: Number, b: Number) -> Array:
    """``[*B]`` bool, whether a < b."""
    result = a[0] < b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        result = (x < y) | ((x == y) & result)
    return result


def from_digits(digits: Sequence[Array]) -> Number:
    """The number with these digits, the least significant first."""
    limbs = []
    for start in range(0, len(digits), DIGITS):
        limb = digits[start]
        for i, digit in enumerate(digits[start + 1 : start + DIGITS], start=1):
            limb = limb + digit * 10**i
        limbs.append(limb)
    return tuple(limbs)


def to_digits(number: Number) -> list[Array]:
    """All digits of a number, the least significant first."""
    digits = []
    for limb in number:
        quotients = [limb] + [jax.lax.div(limb, jnp.full_like(limb, 10**i)) for i in (1, 2, 3)]
        digits += [x - 10 * y for x, y in zip(quotients, quotients[1:])] + [quotients[-1]]
    return digits


def resize(number: Number, limbs: int) -> Number:
    """The number with zero limbs on top, or without its topmost limbs."""
    missing = max(0, limbs - len(number))
    return (*number[:limbs], *([jnp.zeros_like(number[0])] * missing))
