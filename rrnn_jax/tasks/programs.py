"""Random programs: what is drawn for them, their value, and their text."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.tasks import decimals
from rrnn_jax.tasks.characters import VOCABULARY, ZERO
from rrnn_jax.typing import Array

Digits = list[Array]


class Operation(NamedTuple):
    """One operation of a program; every field is ``[B]``.

    Attributes:
      exists: bool, whether the program is nested so deeply.
      symbol: uint32, index into the task's operators.
      times: uint32, how often a loop runs, 1..9.
      greater: bool, whether a branch compares with ``>``.
      compared: digits of the two literals that a branch compares; empty for tasks without branches.
      literal: digits of the last literal: the right operand, the branch not taken, the increment.
    """

    exists: Array | bool
    symbol: Array
    times: Array
    greater: Array
    compared: tuple[Digits, ...]
    literal: Digits


class Program(NamedTuple):
    """What is drawn for a batch of programs.

    Attributes:
      length: digits of every literal.
      first: digits of the innermost operation's first operand.
      operations: the innermost first.
    """

    length: Array | int
    first: Digits
    operations: list[Operation]


def words_per_literal(length: int) -> int:
    """Random words that a literal takes: one gives four digits and the leading one."""
    return max(1, decimals.number_of_limbs(length - 1))


def number_of_words(length: int, nesting: int, operators: tuple[str, ...]) -> int:
    """Random words that a program takes."""
    literals = 1 + nesting * (3 if "if" in operators else 1)
    return nesting + literals * words_per_literal(length)


def draw_literal(words: Array, length: Array | int, max_length: int) -> Digits:
    """Digits of a literal of exactly `length` digits, the least significant first.

    Remainders of random words are uniform to within 10^5 / 2^32, about 2e-5.
    """
    low = jax.lax.rem(words, jnp.full_like(words, decimals.BASE))
    digits = decimals.to_digits(tuple(low))
    lead = 1 + jax.lax.rem(
        jax.lax.div(words[0], jnp.full_like(words[0], decimals.BASE)), jnp.full_like(words[0], 9)
    )
    digits = [digits[i] if i < len(digits) else lead for i in range(max_length)]
    if isinstance(length, int):
        return [*digits[: length - 1], lead]
    return [
        jnp.where(length - 1 > i, digit, jnp.where(length - 1 == i, lead, 0))
        for i, digit in enumerate(digits)
    ]


def draw_program(
    bits: Array,
    length: Array | int,
    nesting: Array | int,
    max_length: int,
    max_nesting: int,
    operators: tuple[str, ...],
) -> Program:
    """Draws programs.

    Args:
      bits: ``[W, B]`` uint32, random, with W from `number_of_words`.
      length: digits of literals.
      nesting: operations.
      max_length: L.
      max_nesting: N.
      operators: the task's.
    """
    per_literal = words_per_literal(max_length)
    words = iter(bits)

    def literal() -> Digits:
        return draw_literal(
            jnp.stack([next(words) for _ in range(per_literal)]), length, max_length
        )

    first = literal()
    operations = []
    for k in range(max_nesting):
        word = next(words)
        rest, symbol = _divide(word, len(operators))
        rest, times = _divide(rest, 9)
        rest, greater = _divide(rest, 2)
        compared = (literal(), literal()) if "if" in operators else ()
        operations.append(
            Operation(
                exists=k < nesting,
                symbol=symbol,
                times=1 + times,
                greater=greater == 1,
                compared=compared,
                literal=literal(),
            )
        )
    return Program(length, first, operations)


def _divide(word: Array, by: int) -> tuple[Array, Array]:
    quotient = jax.lax.div(word, jnp.full_like(word, by))
    return quotient, word - quotient * by


def value(program: Program, operators: tuple[str, ...], max_length: int) -> decimals.Number:
    """Values of programs modulo ``10**(4n)`` with 4n > L digits.

    Exact: branches compare literals only, as only an operation's first operand nests, and all
    that happens to values commutes with taking remainders.
    """
    limbs = decimals.number_of_limbs(max_length + 1)
    result = decimals.resize(decimals.from_digits(program.first), limbs)
    for operation in program.operations:
        literal = decimals.resize(decimals.from_digits(operation.literal), limbs)
        candidates: dict[str, decimals.Columns] = {}
        if "+" in operators:
            candidates["+"] = decimals.add(result, literal)
        if "-" in operators:
            candidates["-"] = decimals.subtract(result, literal)
        if "*" in operators:
            candidates["*"] = decimals.multiply(result, literal)
        if "for" in operators:
            candidates["for"] = decimals.add(result, literal, operation.times)
        if "if" in operators:
            b, c = (decimals.from_digits(x) for x in operation.compared)
            holds = jnp.where(operation.greater, decimals.less(c, b), decimals.less(b, c))
            candidates["if"] = [
                jnp.where(holds, x, y) for x, y in zip(result, literal, strict=True)
            ]
        columns = candidates[operators[0]]
        for i, name in enumerate(operators[1:], start=1):
            is_this = operation.symbol == i
            columns = [
                jnp.where(is_this, x, y) for x, y in zip(candidates[name], columns, strict=True)
            ]
        after = decimals.carry(columns)
        if operation.exists is True:
            result = after
        else:
            result = tuple(
                jnp.where(operation.exists, x, y) for x, y in zip(after, result, strict=True)
            )
    return result


def text(
    program: Program, operators: tuple[str, ...], max_length: int, steps: int
) -> tuple[Array, Array]:
    """Tokens ``[B, T]`` of programs, undefined behind their ends, and their lengths ``[B]``.

    Every program is a selection from one sequence that holds all forms of all operations: so many
    characters are skipped at so many places. The place of a character in that sequence is its step
    plus all that was skipped before it.
    """
    writer = Writer(program.first[0].shape)
    length, free = program.length, max_length - program.length
    count = len(program.operations)
    is_form = [
        {name: operation.symbol == i for i, name in enumerate(operators)}
        for operation in program.operations
    ]
    for k in reversed(range(count)):
        operation = program.operations[k]
        parenthesis = 1 if k > 0 else 0
        if "for" in operators:
            loop = is_form[k]["for"]
            before = jnp.where(loop, 0, 2)
            width = 2 + parenthesis
            if operation.exists is True:
                writer.skip(before)
                writer.write("x=(" if parenthesis else "x=", width - before)
            else:
                writer.skip(jnp.where(operation.exists, before, width))
                writer.write(
                    "x=(" if parenthesis else "x=", jnp.where(operation.exists, width - before, 0)
                )
        elif parenthesis:
            if operation.exists is True:
                writer.write("(", 1)
            else:
                writer.skip(jnp.where(operation.exists, 0, 1))
                writer.write("(", jnp.where(operation.exists, 1, 0))
    writer.skip(free)
    writer.write(_tokens(program.first), length)
    end = writer.position
    infix_width = 9 if "for" in operators else (0 if operators == ("if",) else 1)
    for k, operation in enumerate(program.operations):
        if k > 0:
            writer.write(")", 1)
        skip_infix = infix_width
        infix_length = 0
        if "if" in operators:
            branch = is_form[k]["if"]
            writer.write("if", jnp.where(branch, 2, 0))
            writer.skip(jnp.where(branch, free, 2 * max_length + 7))
            writer.write(_tokens(operation.compared[0]), jnp.where(branch, length, 0))
            less, greater = (VOCABULARY.index(x) for x in "<>")
            writer.write([jnp.where(operation.greater, greater, less)], jnp.where(branch, 1, 0))
            writer.skip(jnp.where(branch, free, 0))
            writer.write(_tokens(operation.compared[1]), jnp.where(branch, length, 0))
            writer.write("else", jnp.where(branch, 4, 0))
        if infix_width:
            infix_length = jnp.ones_like(writer.position)
            characters: list[Array | str] = []
            for i in range(infix_width):
                character = jnp.zeros_like(writer.position)
                for name, mask in is_form[k].items():
                    if name == "for":
                        this = (
                            (ZERO + operation.times).astype(jnp.int32)
                            if i == 4
                            else VOCABULARY.index("for[.]x+="[i])
                        )
                    elif name != "if" and i == 0:
                        this = VOCABULARY.index(name)
                    else:
                        continue
                    character = jnp.where(mask, this, character)
                characters.append(character)
            if "for" in operators:
                infix_length = jnp.where(is_form[k]["for"], 9, infix_length)
            if "if" in operators:
                infix_length = jnp.where(is_form[k]["if"], 0, infix_length)
            writer.write(characters, infix_length)
        writer.skip(skip_infix - infix_length + free)
        writer.write(_tokens(operation.literal), length)
        end = jnp.where(operation.exists, writer.position, end)
    return writer.read(steps), end


def _tokens(digits: Digits) -> list[Array]:
    return [(ZERO + digit).astype(jnp.int32) for digit in reversed(digits)]


class Writer:
    """Collects characters, and what is to be skipped among them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._characters: list[Array] = []
        self._gaps: list[tuple[Array, Array]] = []
        self.position = jnp.zeros(shape, jnp.int32)

    def skip(self, count: Array | int) -> None:
        """Leaves out the next `count` characters."""
        if isinstance(count, int) and count == 0:
            return
        self._gaps.append((self.position, jnp.broadcast_to(count, self.position.shape)))

    def write(self, characters: "str | list", shown: Array | int) -> None:
        """Adds characters, `shown` of which take steps."""
        for character in characters:
            if isinstance(character, str):
                character = VOCABULARY.index(character)
            self._characters.append(
                jnp.broadcast_to(jnp.asarray(character, jnp.int32), self.position.shape)
            )
        self.position = self.position + shown

    def read(self, steps: int) -> Array:
        """Tokens ``[B, T]``."""
        step = jax.lax.broadcasted_iota(jnp.int32, (*self.position.shape, steps), 1)
        place = step
        for position, count in self._gaps:
            place = place + jnp.where(step >= position[:, None], count[:, None], 0)
        source = jnp.stack(self._characters, axis=-1)
        place = jnp.minimum(place, len(self._characters) - 1)
        return jnp.take_along_axis(source, place, axis=1, mode="promise_in_bounds")
