"""The DNC learns to copy: with a feed-forward controller, which has nothing but the memory.

Run with ``pytest -m slow tests/baselines``.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

from rrnn_jax import RNN
from rrnn_jax.baselines import DNCCell

LENGTH, SYMBOLS, BATCH = 6, 8, 32


def sample(key, batch):
    """Symbols, then as many empty steps, in which the symbols are due in their order."""
    targets = jax.random.randint(key, (batch, LENGTH), 0, SYMBOLS)
    shown = jax.nn.one_hot(targets, SYMBOLS + 1)
    asked = jnp.zeros_like(shown).at[..., SYMBOLS].set(1.0)
    return jnp.concatenate([shown, asked], axis=1), targets


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")  # Optax promotes dtypes on its own.
@pytest.mark.parametrize(("controller", "num_steps"), [("feedforward", 3000), ("lstm", 3000)])
def test_learns_to_copy(controller, num_steps):
    rnn = RNN(
        DNCCell(
            memory_size=12,
            word_size=12,
            num_reads=1,
            num_writes=1,
            controller_size=64,
            output_size=SYMBOLS,
            controller=controller,
        )
    )
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(3e-3))
    variables = jax.jit(rnn.init)(jax.random.key(0), sample(jax.random.key(0), 1)[0])

    def loss(variables, x, targets):
        logits = rnn.apply(variables, x)[:, LENGTH:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.mean(losses), jnp.mean(jnp.argmax(logits, -1) == targets, dtype=jnp.float32)

    def train_step(state, key):
        variables, optimizer_state = state
        grads, accuracy = jax.grad(loss, has_aux=True)(variables, *sample(key, BATCH))
        updates, optimizer_state = optimizer.update(grads, optimizer_state, variables)
        return (optax.apply_updates(variables, updates), optimizer_state), accuracy

    @partial(jax.jit, static_argnums=1)
    def train(variables, num_steps):
        keys = jax.random.split(jax.random.key(1), num_steps)
        return jax.lax.scan(train_step, (variables, optimizer.init(variables)), keys)

    (variables, _), accuracies = train(variables, num_steps)
    assert accuracies[0] < 0.3
    _, accuracy = jax.jit(loss)(variables, *sample(jax.random.key(2), 512))
    assert accuracy > 0.95
