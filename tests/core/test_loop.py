"""The loops over time of a compiled program: what they must not do to arrays of all steps."""

import re

import jax
import jax.numpy as jnp
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from tests.grids import mostly_slow


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


OPTIONS = [{}, {"time_major": True}, {"remat": "full"}, {"remat": "chunked"}]


@pytest.mark.parametrize("options", mostly_slow(OPTIONS, keep=[{}]))
def test_a_step_copies_no_array_of_all_steps(options):
    """Else the time of a step grows with the number of steps."""
    steps, batch = 23, 16
    rnn = RNN(RelationalMemoryCell(4, 8, 2), implementation="hoisted", **options)
    x = jnp.zeros((steps, batch, 3) if options.get("time_major") else (batch, steps, 3))
    params = jax.eval_shape(rnn.init, jax.random.key(0), x)

    def loss(params, x):
        return jnp.sum(jnp.square(rnn.apply(params, x)))

    program = jax.jit(jax.grad(loss)).lower(params, x).compile().as_text()
    assert "body=" in program
    assert copies_in_loops(program, steps) == []
