r"""Exact arithmetic on long decimal numbers in 32-bit integers.

A number consists of limbs of four digits: :math:`x = \sum_i x_i \, 10^{4i}` with
:math:`0 \le x_i < 10^4`. In arithmetic the limbs are a tuple (`Number`), the least significant
first. When drawn or written they are an axis of an array, the most significant first, in reading
order.

Results are modulo :math:`10^{4n}` for n limbs. The largest values are the sums of products in
`multiply`. With the carry, below twice the largest limb per term, they fit into 32 bits for up to
`MAX_LIMBS` limbs: :math:`42 \, (9999^2 + 2 \cdot 9999) < 2^{32}`.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array

DIGITS = 4
"""Digits in a limb."""

BASE = 10**DIGITS
"""The base of a limb."""

MAX_LIMBS = 42
"""The most limbs for which `multiply` is exact."""

Number: TypeAlias = tuple[Array, ...]
"""Limbs ``[*B]`` uint32, the least significant first."""

Columns: TypeAlias = Sequence[Array]
"""Like a number's limbs, but possibly at or above `BASE`, before carries."""


def number_of_limbs(digits: int) -> int:
    """The number of limbs for so many digits."""
    return -(-digits // DIGITS)


def divide(values: Array, by: int) -> tuple[Array, Array]:
    """Quotient and remainder of unsigned integers by a constant."""
    quotient = jax.lax.div(values, jnp.full_like(values, by))
    return quotient, values - quotient * by


def carry(columns: Columns) -> Number:
    """The number that columns represent; the carry out of the last one is dropped."""
    limbs, rest = [], jnp.zeros_like(columns[0])
    for column in columns:
        rest, limb = divide(column + rest, BASE)
        limbs.append(limb)
    return tuple(limbs)


def add(a: Number, b: Number) -> Columns:
    """Columns of a + b."""
    return [x + y for x, y in zip(a, b, strict=True)]


def add_times(a: Number, b: Number, times: Array) -> Columns:
    """Columns of a + times b, for `times` below 10^5."""
    return [x + y * times for x, y in zip(a, b, strict=True)]


def subtract(a: Number, b: Number) -> Columns:
    """Columns of a - b, which adds the complement :math:`10^{4n} - b` to avoid negative values."""
    columns = [x + (BASE - 1 - y) for x, y in zip(a, b, strict=True)]
    return [columns[0] + 1, *columns[1:]]


def multiply(a: Number, b: Number) -> Columns:
    """Columns of a b."""
    columns = []
    for i in range(len(a)):
        products = [a[i - j] * b[j] for j in range(i + 1)]
        columns.append(sum(products[1:], start=products[0]))
    return columns


def less(a: Number, b: Number) -> Array:
    """``[*B]`` bool, whether a < b."""
    result = a[0] < b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        result = (x < y) | ((x == y) & result)
    return result


def select(condition: Array, a: Columns, b: Columns) -> Columns:
    """Columns of a where the condition ``[*B]`` is True, else of b."""
    return [jnp.where(condition, x, y) for x, y in zip(a, b, strict=True)]


def from_digits(digits: Array, limbs: int) -> Array:
    """Limbs ``[..., n, B]`` of digits ``[..., D, B]``, both with the most significant first."""
    digits = fit(digits, limbs * DIGITS)
    split = digits.reshape(*digits.shape[:-2], limbs, DIGITS, digits.shape[-1])
    return sum(
        (split[..., i, :] * 10 ** (DIGITS - 1 - i) for i in range(1, DIGITS)),
        start=split[..., 0, :] * 10 ** (DIGITS - 1),
    )


def to_digits(limbs: Array) -> Array:
    """Digits ``[..., 4 n, B]`` of limbs ``[..., n, B]``, both with the most significant first."""
    digits, rest = [], limbs
    for _ in range(DIGITS):
        rest, digit = divide(rest, 10)
        digits.append(digit)
    split = jnp.stack(digits[::-1], axis=-2)
    return split.reshape(*limbs.shape[:-2], -1, limbs.shape[-1])


def fit(digits: Array, count: int) -> Array:
    """Digits ``[..., count, B]``, with leading zeros added or most significant digits dropped."""
    *lead, present, batch = digits.shape
    if present < count:
        zeros = jnp.zeros((*lead, count - present, batch), digits.dtype)
        return jnp.concatenate([zeros, digits], axis=-2)
    return digits[..., present - count :, :]


def to_number(limbs: Array) -> Number:
    """The number with limbs ``[n, B]``."""
    return tuple(limbs[i] for i in reversed(range(limbs.shape[0])))


def to_limbs(number: Number) -> Array:
    """Limbs ``[n, B]`` of a number, the most significant first."""
    return jnp.stack(number[::-1])
