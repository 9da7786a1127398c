"""The evaluator of programs against golden records, and against values known by construction."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrnn_jax.tasks.learn_to_execute import evaluate
from tests.tasks import program_oracle as oracle


def test_golden_answers():
    tested = 0
    for record in oracle.golden_records():
        if record["task"] in oracle.TASKS:
            assert evaluate(record["program"], record["length"]) == record["target"], record
            tested += 1
    assert tested == 1800


def test_golden_branches_compare_literals():
    """What the sampler's arithmetic rests on: no value decides which branch is chosen."""
    programs = [record["program"] for record in oracle.golden_records()]
    branches = sum(program.count("if") for program in programs)
    assert branches > 600
    assert branches == sum(len(oracle.LITERAL_BRANCH.findall(program)) for program in programs)


class Node(NamedTuple):
    """A program and its value, put together side by side."""

    text: str
    value: int


def as_operand(node: Node) -> str:
    return node.text if node.text.isdigit() else f"({node.text})"


LITERALS = st.integers(0, 10**12).map(lambda value: Node(str(value), value))


def operations(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def arithmetic(a: Node, b: Node, symbol: str) -> Node:
        value = {"+": a.value + b.value, "-": a.value - b.value, "*": a.value * b.value}[symbol]
        return Node(f"{as_operand(a)}{symbol}{as_operand(b)}", value)

    def branch(a: Node, b: Node, c: Node, d: Node, symbol: str) -> Node:
        holds = b.value < c.value if symbol == "<" else b.value > c.value
        text = f"{as_operand(a)}if{as_operand(b)}{symbol}{as_operand(c)}else{as_operand(d)}"
        return Node(text, a.value if holds else d.value)

    def loop(a: Node, b: Node, times: int) -> Node:
        text = f"x={as_operand(a)}for[{times}]x+={as_operand(b)}"
        return Node(text, sum([b.value] * times, start=a.value))

    return st.one_of(
        st.builds(arithmetic, children, children, st.sampled_from("+-*")),
        st.builds(branch, *[children] * 4, st.sampled_from("<>")),
        st.builds(loop, children, children, st.integers(1, 9)),
    )


PROGRAMS = operations(st.recursive(LITERALS, operations, max_leaves=12))


@settings(max_examples=300, deadline=None)
@given(program=PROGRAMS, length=st.integers(1, 20))
def test_values_of_programs_nested_anywhere(program, length):
    """Also where samples never nest: comparisons are of whole values, not of remainders."""
    assert evaluate(program.text, length) == str(program.value % 10 ** (length + 1))


@pytest.mark.parametrize(
    ("program", "length", "answer"),
    [
        ("3-5", 1, "98"),  # Never negative.
        ("5-5", 1, "0"),
        ("(99*99)-99", 2, "702"),  # 9702, without a leading zero.
        ("5if(9*9)>(3*3)else7", 1, "5"),
        ("5if(90*90)>(3*3)else7", 1, "5"),  # 8100 > 9, although 00 < 09.
        ("5if3<3else7", 1, "7"),
        ("x=(x=1for[9]x+=2)for[2]x+=3", 1, "25"),
        ("((((1+2)*3)-4)if5<6else7)+8", 1, "13"),
        ("007+1", 1, "8"),
    ],
)
def test_by_hand(program, length, answer):
    assert evaluate(program, length) == answer


def test_integers_of_numpy_do_not_overflow():
    for program, length in (("1-2", 20), ("1-2", 19), ("99999999999*99999999999", 5)):
        assert evaluate(program, np.int64(length)) == evaluate(program, length)


@pytest.mark.parametrize(
    "program",
    [
        "", "5", "(5)", "(5+6)", "5+", "+5", "5++6", "5+6+7", "(5+6", "5+6)", "()+1", "(5)+1",
        "5/6", "-5+6", "5 + 6", "5+6.", "x", "x+1", "x=5for[0]x+=6", "x=5for[12]x+=6",
        "x5for[2]x+=6", "x=5for[2]x+=", "x=5for[2]6", "5if6=7else8", "5if6<7", "5if6<7else",
        "5if6<7else8else9", "$0+1", "(1+2)+$0", "٣+4", "5+6\n",
    ],
)  # fmt: skip
def test_malformed_programs(program):
    with pytest.raises(ValueError, match="program"):
        evaluate(program, 2)


@pytest.mark.parametrize("program", [5, None, b"1+2"])
def test_programs_that_are_no_text(program):
    with pytest.raises(TypeError, match=r"program must be a string, got .* of type (int|None|byt)"):
        evaluate(program, 1)


def test_bad_length():
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        evaluate("1+2", 0)
