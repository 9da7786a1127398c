"""Which implementation runs a layer, without running it."""

from typing import Any

import jax
import jax.numpy as jnp

from rrnn_jax import RNN
from rrnn_jax.scan.dispatch import Request, choose
from rrnn_jax.scan.plain import Lifting
from rrnn_jax.scan.sequence import SequenceInputs


def chosen(rnn: RNN, x: Any, capture: bool = False, **flags: Any) -> str:
    """The name of what runs `rnn` over batch-major inputs of the shape of `x`."""
    batch = x.shape[: -1 - rnn.cell.num_feature_axes]
    step = (*batch, *x.shape[len(batch) + 1 :])
    lifting = Lifting(
        rnn.unroll, rnn.variable_axes, rnn.variable_broadcast, rnn.variable_carry, rnn.split_rngs
    )
    found: list[str] = []

    def look(x: jax.Array) -> jax.Array:
        carry = rnn.cell.initialize_carry(jax.random.key(0), step)
        request = Request(
            rnn.cell,
            SequenceInputs(x, **flags),
            carry,
            carry,
            time_axis=len(batch),
            lifting=lifting,
            remat=rnn.remat,
            capture=capture,
        )
        found.append(choose(rnn.implementation, request).implementation)
        return jnp.zeros(())

    jax.eval_shape(look, x)
    return found[0]
