"""Learning to execute in plain Python and NumPy, to compare with the jitted generator.

Strings are assembled operation by operation, values are Python integers, and a batch is filled row
by row. The batch has the form of `rrnn_jax.tasks.learn_to_execute.sample`, with other random
numbers.
"""

import random

import numpy as np

from rrnn_jax.tasks.learn_to_execute import PAD, VOCABULARY, Batch, Config

_TOKENS = {character: token for token, character in enumerate(VOCABULARY)}


def draw_batch(generator: random.Random, config: Config, batch_size: int) -> Batch:
    """A batch of NumPy arrays; curricula "fixed" and "mix".

    >>> batch = draw_batch(random.Random(0), Config("addition"), 4)
    >>> batch.inputs.shape, batch.targets.shape
    ((4, 57), (4, 10))
    """
    inputs = np.full((batch_size, config.input_steps), PAD, np.int32)
    targets = np.full((batch_size, config.output_steps), PAD, np.int32)
    input_lengths = np.empty((batch_size,), np.int32)
    target_lengths = np.empty((batch_size,), np.int32)
    for row in range(batch_size):
        program, answer = draw_program(generator, config)
        inputs[row, : len(program)] = [_TOKENS[character] for character in program]
        targets[row, : len(answer)] = [_TOKENS[character] for character in answer]
        input_lengths[row], target_lengths[row] = len(program), len(answer)
    input_mask = np.arange(config.input_steps) < input_lengths[:, None]
    target_mask = np.arange(config.output_steps) < target_lengths[:, None]
    fields = (inputs, input_mask, input_lengths, targets, target_mask, target_lengths)
    return Batch._make(fields)


def draw_program(generator: random.Random, config: Config) -> tuple[str, str]:
    """A program and its answer."""
    length, nesting = config.length, config.nesting
    if config.curriculum == "mix":
        length, nesting = generator.randint(1, length), generator.randint(1, nesting)
    low, high = 10 ** (length - 1), 10**length - 1
    value = generator.randint(low, high)
    text = str(value)
    for depth in range(nesting):
        if depth > 0:
            text = f"({text})"
        name = generator.choice(config.operators)
        other = generator.randint(low, high)
        if name == "+":
            text, value = f"{text}+{other}", value + other
        elif name == "-":
            text, value = f"{text}-{other}", value - other
        elif name == "*":
            text, value = f"{text}*{other}", value * other
        elif name == "for":
            times = generator.randint(1, 9)
            text, value = f"x={text}for[{times}]x+={other}", value + times * other
        else:
            b, c = generator.randint(low, high), generator.randint(low, high)
            symbol = generator.choice("<>")
            text = f"{text}if{b}{symbol}{c}else{other}"
            value = value if (b < c if symbol == "<" else b > c) else other
    return text, str(value % 10 ** (length + 1))
