"""What is captured over a sequence is what the NumPy reference attends to, step by step."""

import jax
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.interop import to_sonnet
from rrnn_jax.visualize import attention_of, captured_array
from tests.core import reference
from tests.core.random_variables import normal, random_variables

BATCH, STEPS, BLOCKS, HEADS, SLOTS = 3, 4, 2, 2, 3


@pytest.fixture(scope="module")
def run():
    """A run's captures, nested as in a model, and the reference's steps."""
    cell = RelationalMemoryCell(
        mem_slots=SLOTS, head_size=2, num_heads=HEADS, num_blocks=BLOCKS, key_size=3
    )
    rnn = RNN(cell, return_carry=True)
    x = normal(np.random.default_rng(0), (BATCH, STEPS, 5))
    variables = random_variables(rnn, x)
    apply = jax.jit(lambda variables, x: rnn.apply(variables, x, mutable=["intermediates"]))
    _, captured = apply(variables, x)

    arrays = to_sonnet(variables["params"]["cell"])
    params = {name: np.asarray(value, np.float64) for name, value in arrays.items()}
    memory, steps = reference.initial_memory(BATCH, SLOTS, cell.mem_size), []
    for t in range(STEPS):
        steps.append(reference.step(params, np.asarray(x[:, t], np.float64), memory, heads=HEADS))
        memory = steps[-1].memory
    return captured, steps


def test_captured_attention_is_that_of_the_reference(run):
    captured, steps = run
    weights = captured_array(captured, "attention_weights")
    assert weights.shape == (BATCH, STEPS, BLOCKS, HEADS, SLOTS, SLOTS + 1)
    expected = np.stack([step.attention for step in steps], axis=1)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("gate", ["input", "forget"])
def test_captured_gates_are_those_of_the_reference(run, gate):
    captured, steps = run
    expected = np.stack([step.gates[gate] for step in steps], axis=1)
    np.testing.assert_allclose(captured_array(captured, f"{gate}_gate"), expected, atol=1e-5)


def test_one_matrix_for_each_step(run):
    weights = captured_array(run[0], "attention_weights")
    mean = attention_of(weights)
    np.testing.assert_array_equal(mean, (weights[:, :, 1, 0] + weights[:, :, 1, 1]) / 2)
    np.testing.assert_allclose(mean.sum(-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(attention_of(weights, block=0, head=1), weights[:, :, 0, 1])
    np.testing.assert_array_equal(attention_of(weights[0]), mean[0])


def test_a_name_that_was_not_sown_is_answered_with_those_that_were(run):
    names = "cell/attention_weights, .*cell/forget_gate"
    with pytest.raises(KeyError, match=rf"got 'attention'; captured: intermediates/{names}"):
        captured_array(run[0], "attention")


def test_names_that_are_not_one_array():
    two = {"a": {"w": (np.zeros(1),)}, "b": {"w": (np.ones(1),)}}
    with pytest.raises(KeyError, match="one captured array, or the end of its path, got 'w'"):
        captured_array(two, "w")
    for array in (captured_array(two["b"], "w"), captured_array(two, "b/w")):
        np.testing.assert_array_equal(array, [1.0])
    with pytest.raises(KeyError, match="captured: nothing"):
        captured_array({}, "w")
    with pytest.raises(KeyError, match="captured 2 times; take one entry of the tuple at a/w"):
        captured_array({"a": {"w": (np.zeros(1), np.zeros(1))}}, "w")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 2}, r"block must lie in -2..1, got 2"),
        ({"head": 2}, r"head must be None or lie in 0..1, got 2"),
        ({"head": -1}, r"head must be None or lie in 0..1, got -1"),
    ],
)
def test_no_such_block_or_head(run, options, message):
    weights = captured_array(run[0], "attention_weights")
    with pytest.raises(ValueError, match=message):
        attention_of(weights, **options)
    with pytest.raises(ValueError, match=r"weights must be \[\*B, T, blocks, H, S, S\+R\], got"):
        attention_of(weights[0, 0])
