r"""The value of a program in exact Python integers, which defines the answers.

Programs, in which an operand is a literal or a program in parentheses:

===================  =====================================================
program              value
===================  =====================================================
``a+b  a-b  a*b``    the sum, difference, product
``aifb<celsed``      a if b < c, else d (``>`` likewise)
``x=afor[k]x+=b``    a + k b, with one digit k from 1 to 9
===================  =====================================================

The answer is the value modulo :math:`10^{\mathrm{length} + 1}`, which is never negative;
intermediate values are not reduced.
"""

import operator
import re

from rrnn_jax.checks import check_positive
from rrnn_jax.tasks.characters import check_text

_OPERAND = r"(\$?[0-9]+)"  # A literal, or the index of a known value.
_GROUP = re.compile(r"\(([^()]*)\)")
_ARITHMETIC = re.compile(rf"{_OPERAND}([-+*]){_OPERAND}")
_BRANCH = re.compile(rf"{_OPERAND}if{_OPERAND}([<>]){_OPERAND}else{_OPERAND}")
_LOOP = re.compile(rf"x={_OPERAND}for\[([1-9])\]x\+={_OPERAND}")

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_COMPARATORS = {"<": operator.lt, ">": operator.gt}


def evaluate(program: str, length: int) -> str:
    """The answer to a program.

    >>> evaluate("(25*4)if3<2else7", length=1), evaluate("1-2", length=1)
    ('7', '99')
    >>> evaluate("x=(2+3)for[4]x+=10", length=2)
    '45'

    Args:
      program: see the module's description.
      length: sets the modulus, ``10**(length + 1)``.

    Returns:
      Its digits, without leading zeros.

    Raises:
      ValueError: `program` is malformed, or `length` below 1.
      TypeError: `program` is not a string, or `length` not an integer.
    """
    check_text("program", program)
    check_positive(length=length)
    values: list[int] = []
    if "$" in program:
        raise ValueError(f"program must not hold '$', got {program!r}")
    text = program
    # Innermost parentheses first: the index of their value replaces them.
    while match := _GROUP.search(text):
        values.append(_value(match[1], values, program))
        text = f"{text[: match.start()]}${len(values) - 1}{text[match.end() :]}"
    return str(_value(text, values, program) % 10 ** (int(length) + 1))


def _value(text: str, values: list[int], program: str) -> int:
    """The value of a program without parentheses."""

    def operand(part: str) -> int:
        return values[int(part[1:])] if part[0] == "$" else int(part)

    if match := _ARITHMETIC.fullmatch(text):
        return _OPERATORS[match[2]](operand(match[1]), operand(match[3]))
    if match := _BRANCH.fullmatch(text):
        holds = _COMPARATORS[match[3]](operand(match[2]), operand(match[4]))
        return operand(match[1]) if holds else operand(match[5])
    if match := _LOOP.fullmatch(text):
        return operand(match[1]) + int(match[2]) * operand(match[3])
    raise ValueError(f"program {program!r} is malformed at {re.sub(r'[$][0-9]+', '(...)', text)!r}")
