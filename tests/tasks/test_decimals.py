"""Long decimal numbers in 32-bit limbs against Python's integers."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrnn_jax.tasks import decimals

BATCH = 6
SIZES = (1, 3)


def to_number(values: list[int], limbs: int) -> decimals.Number:
    return tuple(
        jnp.array([value // decimals.BASE**i % decimals.BASE for value in values], jnp.uint32)
        for i in range(limbs)
    )


def to_integers(number: decimals.Number) -> list[int]:
    limbs = np.stack([np.asarray(limb) for limb in number])
    assert limbs.dtype == np.uint32
    assert limbs.max() < decimals.BASE
    return [sum(int(x) * decimals.BASE**i for i, x in enumerate(column)) for column in limbs.T]


@st.composite
def operands(draw):
    """Limbs, and two batches of numbers with so many, small and large ones alike."""
    limbs = draw(st.sampled_from(SIZES))
    top = decimals.BASE**limbs - 1
    value = st.integers(0, top) | st.integers(0, 99) | st.integers(top - 99, top)
    batch = st.lists(value, min_size=BATCH, max_size=BATCH)
    return limbs, draw(batch), draw(batch)


@settings(max_examples=40, deadline=None)
@given(given=operands(), times=st.integers(0, 99_999))
def test_arithmetic(given, times):
    limbs, a, b = given
    modulus = decimals.BASE**limbs
    x, y = to_number(a, limbs), to_number(b, limbs)
    times_array = jnp.full((BATCH,), times, jnp.uint32)
    for columns, expected in (
        (decimals.add(x, y), [p + q for p, q in zip(a, b, strict=True)]),
        (decimals.subtract(x, y), [p - q for p, q in zip(a, b, strict=True)]),
        (decimals.multiply(x, y), [p * q for p, q in zip(a, b, strict=True)]),
        (
            decimals.add_times(x, y, times_array),
            [p + times * q for p, q in zip(a, b, strict=True)],
        ),
    ):
        assert to_integers(decimals.carry(columns)) == [value % modulus for value in expected]


@settings(max_examples=40, deadline=None)
@given(given=operands())
def test_comparison_and_selection(given):
    limbs, a, b = given
    b[0] = a[0]
    x, y = to_number(a, limbs), to_number(b, limbs)
    smaller = decimals.less(x, y)
    assert smaller.tolist() == [p < q for p, q in zip(a, b, strict=True)]
    least = to_integers(tuple(decimals.select(smaller, x, y)))
    assert least == [min(p, q) for p, q in zip(a, b, strict=True)]


@settings(max_examples=20, deadline=None)
@given(given=operands())
def test_digits_and_limbs(given):
    limbs, a, _ = given
    number = to_number(a, limbs)
    digits = decimals.to_digits(decimals.to_limbs(number))
    assert digits.shape == (4 * limbs, BATCH)
    text = ["".join(str(digit) for digit in column) for column in np.asarray(digits).T]
    assert text == [f"{value:0{4 * limbs}d}" for value in a]
    assert to_integers(decimals.to_number(decimals.from_digits(digits, limbs))) == a
    # With leading axes, more limbs than are needed, and fewer than there are.
    stacked = decimals.from_digits(jnp.stack([digits, digits]), limbs + 1)
    assert stacked.shape == (2, limbs + 1, BATCH)
    assert to_integers(decimals.to_number(stacked[1])) == a
    low = decimals.to_number(decimals.from_digits(digits, 1))
    assert to_integers(low) == [value % decimals.BASE for value in a]


def test_the_largest_numbers_fit():
    largest = decimals.BASE**decimals.MAX_LIMBS - 1
    number = to_number([largest] * BATCH, decimals.MAX_LIMBS)
    square = to_integers(decimals.carry(decimals.multiply(number, number)))
    assert square == [1] * BATCH  # (-1)^2 modulo 10^168.
    largest_limb = decimals.BASE - 1
    assert decimals.MAX_LIMBS * (largest_limb**2 + 2 * largest_limb) < 2**32
    assert (decimals.MAX_LIMBS + 1) * largest_limb**2 > 2**32


@pytest.mark.parametrize("by", [9, 10, decimals.BASE])
def test_divide(by):
    values = np.array([0, 1, by - 1, by, by + 1, 12_345_678, 2**31, 2**32 - 1], np.uint32)
    quotient, remainder = decimals.divide(jnp.asarray(values), by)
    assert quotient.tolist() == (values // by).tolist()
    assert remainder.tolist() == (values % by).tolist()


def test_fit_and_number_of_limbs():
    digits = jnp.array([[[3], [1], [4]]], jnp.uint32)
    assert decimals.fit(digits, 5)[0, :, 0].tolist() == [0, 0, 3, 1, 4]
    assert decimals.fit(digits, 2)[0, :, 0].tolist() == [1, 4]
    assert [decimals.number_of_limbs(count) for count in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]
