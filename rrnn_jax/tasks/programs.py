r"""Random programs and their values.

The batch is the last axis everywhere, so that CPUs vectorise over it: an operation on a batch of
thousands costs little more than its random bits.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rrnn_jax.tasks import decimals
from rrnn_jax.typing import Array


class Form(Protocol):
    """The settings of programs in a config."""

    @property
    def length(self) -> int:
        """L, the digits of the longest literals."""
        ...

    @property
    def nesting(self) -> int:
        """N, the operations of the longest programs."""
        ...

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators to draw from: ``+ - * if for``."""
        ...


class Programs(NamedTuple):
    """The draws of a batch of programs. The innermost operation is the first.

    An operation has M new literals: those that a branch compares, if the task has branches (then
    M = 3, else M = 1), and last the right operand, increment, or value of the branch not taken.

    Attributes:
      length: ``[B]`` int32, the digits of every literal.
      exists: ``[N, B]`` bool, whether a program has this nesting level.
      operator: ``[N, B]`` uint32, index into the task's operators.
      times: ``[N, B]`` uint32, 1..9, the iterations of a loop.
      greater: ``[N, B]`` bool, whether a branch compares with ``>``.
      first: ``[L, B]`` uint32, digits of the first operand of the innermost operation.
      literals: ``[N, M, L, B]`` uint32, digits of the others. Digits begin with the most
        significant one; literals shorter than L have leading zeros.
    """

    length: Array
    exists: Array
    operator: Array
    times: Array
    greater: Array
    first: Array
    literals: Array


def words_per_literal(length: int) -> int:
    """Random words per literal: each gives four digits, the first also the leading one."""
    return max(1, decimals.number_of_limbs(length - 1))


def literals_per_operation(form: Form) -> int:
    """M; see `Programs`."""
    return 3 if "if" in form.operators else 1


def number_of_words(form: Form) -> int:
    """Random words per program."""
    literals = 1 + form.nesting * literals_per_operation(form)
    return form.nesting + literals * words_per_literal(form.length)


def draw_literals(words: Array, length: Array, max_length: int) -> Array:
    """Digits of literals, uniform over all numbers with exactly `length` digits.

    They are remainders of random words, so probabilities have errors of up to 10^5 / 2^32, or
    0.002 %.

    Args:
      words: ``[*K, P, B]`` uint32 with P from `words_per_literal`.
      length: ``[B]`` int32.
      max_length: L.

    Returns:
      ``[*K, L, B]`` uint32, the most significant digit first, after ``L - length`` zeros.
    """
    rest, low = decimals.divide(words, decimals.BASE)
    leading = 1 + decimals.divide(rest[..., :1, :], 9)[1]
    digits = decimals.fit(decimals.to_digits(low), max_length)
    place = jax.lax.broadcasted_iota(jnp.int32, digits.shape, digits.ndim - 2)
    start = jnp.broadcast_to(max_length - length, digits.shape)
    zero = jnp.zeros_like(digits)
    return jnp.where(place > start, digits, jnp.where(place == start, leading, zero))


def draw(bits: Array, length: Array, nesting: Array, form: Form) -> Programs:
    """Draws programs.

    Args:
      bits: ``[W, B]`` uint32, random, with W from `number_of_words`.
      length: ``[B]`` int32, digits of literals.
      nesting: ``[B]`` int32, operations.
      form: the settings of programs.

    Returns:
      `Programs`.
    """
    N, M, B = form.nesting, literals_per_operation(form), bits.shape[-1]
    # One random word for all choices of an operation.
    rest, operator = decimals.divide(bits[:N], len(form.operators))
    rest, times = decimals.divide(rest, 9)
    words = bits[N:].reshape(1 + N * M, -1, B)
    digits = jax.lax.optimization_barrier(draw_literals(words, length, form.length))
    depth = jax.lax.broadcasted_iota(jnp.int32, (N, B), 0)
    return Programs(
        length=length,
        exists=depth < nesting[None],
        operator=operator,
        times=1 + times,
        greater=rest % 2 == 1,
        first=digits[0],
        literals=digits[1:].reshape(N, M, form.length, B),
    )


def answers(programs: Programs, form: Form) -> tuple[Array, Array]:
    """Digits of the values modulo ``10**(length + 1)``, and their number.

    Returns:
      ``[L + 1, B]`` uint32, the most significant digit first, with leading zeros; ``[B]`` int32.
    """
    digits = decimals.to_digits(decimals.to_limbs(values(programs, form)))
    digits = decimals.fit(digits, form.length + 1)
    place = jax.lax.broadcasted_iota(jnp.int32, digits.shape, 0)
    digits = jnp.where(place < form.length - programs.length[None], jnp.zeros_like(digits), digits)
    counts = jnp.where(digits > 0, form.length + 1 - place, 1)
    return digits, jnp.max(counts, axis=0)


def values(programs: Programs, form: Form) -> decimals.Number:
    """Values modulo :math:`10^{4n}` with :math:`4n > L`.

    This is exact. Remainders commute with ``+``, ``-``, ``*``, loops and the selection of a branch.
    The selection does not depend on values, because only an operation's first operand is a program
    and a branch compares literals.
    """
    limbs = decimals.number_of_limbs(form.length + 1)
    literals = jax.lax.optimization_barrier(decimals.from_digits(programs.literals, limbs))
    value = decimals.to_number(decimals.from_digits(programs.first, limbs))
    for k in range(form.nesting):
        after = decimals.carry(_operate(value, k, programs, literals[k], form))
        value = tuple(decimals.select(programs.exists[k], after, value))
    return value


def _operate(
    value: decimals.Number, k: int, programs: Programs, literals: Array, form: Form
) -> decimals.Columns:
    """Columns of the k-th operation's value, given its first operand."""
    *compared, other = (decimals.to_number(literal) for literal in literals)
    results: dict[str, decimals.Columns] = {
        "+": decimals.add(value, other),
        "-": decimals.subtract(value, other),
        "*": decimals.multiply(value, other),
        "for": decimals.add_times(value, other, programs.times[k]),
    }
    if compared:
        b, c = compared
        holds = jnp.where(programs.greater[k], decimals.less(c, b), decimals.less(b, c))
        results["if"] = decimals.select(holds, value, other)
    columns = results[form.operators[0]]
    for i, name in enumerate(form.operators[1:], start=1):
        columns = decimals.select(programs.operator[k] == i, results[name], columns)
    return columns
