"""The loop over time: what it computes, and what it must not do to its buffers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan.loop import Timed, loop_over_time
from tests.core.compiling import quick_jit


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_by_hand(axis, prefetch, reverse):
    """A running sum; the buffer holds a number for each step, to which the sum is added."""
    xs = np.asarray([1.0, 2.0, 4.0, 8.0], np.float32)
    before = np.asarray([10.0, 20.0, 30.0, 40.0], np.float32)
    inputs, buffer = (jnp.expand_dims(jnp.asarray(x), 1 - axis) for x in (xs, before))

    def step(carry, inputs, t):
        x, standing = inputs
        carry = carry + x
        return carry, (standing + carry + 100 * t.astype(jnp.float32),)

    final, (filled,) = loop_over_time(
        step,
        jnp.zeros((1,)),
        [Timed(inputs, axis)],
        start=3 if reverse else 0,
        num_steps=4,
        buffers=[Timed(buffer, axis)],
        in_place=True,
        reverse=reverse,
        prefetch=prefetch,
    )
    assert final.item() == 15
    sums = [15, 14, 12, 8] if reverse else [1, 3, 7, 15]
    expected = before + np.asarray(sums) + 100 * np.arange(4)
    np.testing.assert_array_equal(jnp.squeeze(filled, 1 - axis), expected)


def copies_in_loops(program: str, steps: int) -> list[str]:
    """The copies within loops, of a compiled program, of arrays that have all steps."""
    bodies = set(re.findall(r"body=%([\w.\-]+)", program))
    found = []
    for computation in re.split(r"\n(?=%|ENTRY )", program):
        name = re.match(r"%([\w.\-]+)", computation)
        if name and name[1] in bodies:
            for shape in re.findall(r" = \w+\[([\d,]*)\]\S* copy\(", computation):
                if str(steps) in shape.split(","):
                    found.append(shape)
    return found


@pytest.mark.parametrize(
    "options", [{}, {"time_major": True}, {"remat": "full"}, {"remat": "chunked"}]
)
def test_a_step_copies_no_array_of_all_steps(options):
    """Else the time of a step grows with the number of steps."""
    steps, batch = 23, 16
    rnn = RNN(RelationalMemoryCell(4, 8, 2), implementation="hoisted", **options)
    x = jnp.zeros((steps, batch, 3) if options.get("time_major") else (batch, steps, 3))
    params = jax.eval_shape(rnn.init, jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(jnp.square(rnn.apply(params, x)))

    program = quick_jit(jax.grad(loss)).lower(params, x).compile().as_text()
    assert "body=" in program
    assert copies_in_loops(program, steps) == []
