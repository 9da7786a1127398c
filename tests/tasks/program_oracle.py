"""Evaluates programs independently of the package, with Python itself."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rrnn_jax.tasks.characters import PAD, VOCABULARY, Batch

FOLDER = Path(__file__).parent.parent / "golden"
TASKS = {"ADDITION": "addition", "CONTROL": "control", "ALL": "program"}
MEMORIZATION = {"COPY": "copy", "REVERSE": "reverse", "DOUBLE": "double"}

# 99.99 % quantiles of chi-square by degrees of freedom.
QUANTILES = {
    **{0: 1e-9, 1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51},
    **{5: 25.74, 6: 27.86, 7: 29.88, 8: 31.83, 9: 33.72},
}

_NAMES = {"+": "add", "-": "subtract", "*": "multiply", "if": "if", "for": "for"}
_CHARACTERS = np.array(list(VOCABULARY))
_LITERAL = re.compile(r"(?<![\[\d])\d+")  # Not the count of a loop.


LITERAL_BRANCH = re.compile(r"if\d+[<>]\d+else\d+")


@cache
def golden_records() -> list[dict]:
    lines = (FOLDER / "learn_to_execute.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@cache
def golden_meta() -> dict:
    return json.loads((FOLDER / "learn_to_execute_meta.json").read_text())


def decode_rows(tokens: np.ndarray) -> list[str]:
    """The text of every row at once."""
    characters = np.ascontiguousarray(_CHARACTERS[np.asarray(tokens)])
    return [row.rstrip(".") for row in characters.view(f"U{characters.shape[1]}")[:, 0].tolist()]


def python_value(program: str) -> int:
    """The value of a program, by translation to Python.

    Loops become products, for which the increment must be a literal: it always is in samples.
    """
    text = program.replace("x=", "").replace("if", " if ").replace("else", " else ")
    return eval(re.sub(r"for\[(\d)\]x\+=", r"+\1*", text))


def python_answer(program: str, length: int) -> str:
    return str(python_value(program) % 10 ** (length + 1))


def literals(program: str) -> list[str]:
    return _LITERAL.findall(program)


def literal_lengths(program: str) -> set[int]:
    return {len(literal) for literal in literals(program)}


def count_operations(program: str) -> int:
    return len(re.findall(r"[-*]|(?<!x)\+|if|for", program))


def is_in_grammar(program: str, operators: tuple[str, ...], length: int, nesting: int) -> bool:
    """Whether a program could be drawn: only first operands nest, literals have one length."""
    literal = f"[1-9][0-9]{{{length - 1}}}"
    forms = {
        "for": rf"x=A(?:for\[[1-9]\]x\+={literal})",
        "if": f"A(?:if{literal}[<>]{literal}else{literal})",
    }
    pattern, inner = "", literal
    for _ in range(nesting):
        choices = [forms.get(name, f"A(?:{re.escape(name)}{literal})") for name in operators]
        pattern = "|".join(choices).replace("A", inner)
        inner = rf"\((?:{pattern})\)"
    return re.fullmatch(pattern, program) is not None


@dataclass
class Statistics:
    """Counts as the golden file has them."""

    program_lengths: np.ndarray
    target_lengths: np.ndarray
    operators: Counter
    comparators: Counter
    loops: Counter
    first_digits: Counter

    @staticmethod
    def of(programs: list[str], answers: list[str]) -> "Statistics":
        text = " ".join(programs)
        operators = Counter(re.findall(r"[-*]|(?<!x)\+|if|for", text))
        return Statistics(
            program_lengths=np.array([len(program) for program in programs]),
            target_lengths=np.array([len(answer) for answer in answers]),
            operators=Counter({_NAMES[name]: count for name, count in operators.items()}),
            comparators=Counter(re.findall("[<>]", text)),
            loops=Counter(re.findall(r"\[(\d)\]", text)),
            first_digits=Counter(answer[0] for answer in answers),
        )


def check_batch(batch: Batch, inputs: list[str], targets: list[str], config: Any) -> None:
    """Shapes, dtypes, lengths and masks of a batch on the host are those of its texts."""
    for tokens, mask, lengths, texts, steps in (
        (batch.inputs, batch.input_mask, batch.input_lengths, inputs, config.input_steps),
        (batch.targets, batch.target_mask, batch.target_lengths, targets, config.output_steps),
    ):
        assert tokens.shape == mask.shape == (len(texts), steps)
        assert (tokens.dtype, mask.dtype, lengths.dtype) == (np.int32, np.bool_, np.int32)
        np.testing.assert_array_equal(lengths, [len(text) for text in texts])
        np.testing.assert_array_equal(mask, np.arange(steps) < lengths[:, None])
        np.testing.assert_array_equal(tokens == PAD, ~mask)


def check_lengths(lengths: np.ndarray, golden: dict, samples: int) -> None:
    """Mean, deviation and percentiles agree with those of `samples` recorded ones, within noise."""
    scale = (1 / len(lengths) + 1 / samples) ** 0.5
    variance, fourth = lengths.var(), ((lengths - lengths.mean()) ** 4).mean()
    error_of_std = (max(fourth - variance**2, 0.0) / max(4 * variance, 1e-9)) ** 0.5
    assert abs(lengths.mean() - golden["mean"]) <= 4 * scale * variance**0.5
    assert abs(lengths.std() - golden["std"]) <= 4 * scale * error_of_std
    for percent, length in golden["percentiles"].items():
        share = float(percent) / 100
        # Of the smallest and the largest, ten out of the recorded number could be missed.
        error = 4 * scale * (share * (1 - share)) ** 0.5 if 0 < share < 1 else 10 / samples
        assert (lengths < length).mean() <= share + error, (percent, length)
        assert (lengths <= length).mean() >= share - error, (percent, length)


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """Of counts against expected counts; cells that cannot occur must be empty."""
    possible = expected > 0
    assert not observed[~possible].any()
    observed, expected = observed[possible], expected[possible]
    return float(((observed - expected) ** 2 / expected).sum())


def chi_square_of_two(first: Counter, second: dict[str, int]) -> tuple[float, int]:
    """Whether two samples come from one distribution: the statistic and its degrees of freedom.

    Rare values are pooled, so that every cell is expected to hold five or more.
    """
    names = [name for name in second if first[name] + second[name] >= 20]
    rare = [name for name in {*first, *second} if name not in names]
    table = np.array([[first[name], second[name]] for name in names], float)
    pooled = np.array([sum(first[n] for n in rare), sum(second.get(n, 0) for n in rare)], float)
    if pooled.sum() >= 20:
        table = np.vstack([table, pooled])
    if len(table) < 2:
        return 0.0, 0
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum()), len(table) - 1
