"""EntNet and the LSTM bank against NumPy, one memory at a time; their sizes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.baselines import EntNetCell, LSTMBankCell
from tests.core.random_variables import normal, random_variables

B, I, F, S = 2, 3, 4, 3  # noqa: E741


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def apply(cell, variables, carry, x):
    return jax.jit(cell.apply)(variables, carry, x)


def setup(cell, seed=0):
    """Random variables, a carry of unit rows where that is due, and an input."""
    rng = np.random.default_rng(seed)
    x = normal(rng, (B, I))
    zeros = cell.initialize_carry(jax.random.key(0), (B, I))
    carry = jax.tree.map(lambda leaf: normal(rng, leaf.shape), zeros)
    if isinstance(cell, EntNetCell):
        carry = carry / jnp.linalg.norm(carry, axis=-1, keepdims=True)
    variables = random_variables(cell, carry, x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    return variables, params, carry, x


def entnet_step(params, memory, x, output):
    """The EntNet's next memories and output for one sequence."""

    def prelu(value):
        return np.where(value >= 0, value, params["slope"] * value)

    shown = x @ params["input_projection"]["kernel"] + params["input_projection"]["bias"]
    new = []
    for row, key in zip(memory, params["keys"], strict=True):
        row = row if row.any() else key
        gate = sigmoid(shown @ row + shown @ key)
        candidate = prelu(
            row @ params["hidden"]["kernel"]
            + key @ params["key"]["kernel"]
            + shown @ params["input"]["kernel"]
        )
        row = row + gate * candidate
        new.append(row / np.linalg.norm(row))
    if output == "sum":
        return np.stack(new), sum(new)
    if output == "concatenate":
        return np.stack(new), np.concatenate(new)
    weights = np.exp([shown @ row for row in new])
    found = sum(weight * row for weight, row in zip(weights / weights.sum(), new, strict=True))
    return np.stack(new), prelu(shown + found @ params["found"]["kernel"])


@pytest.mark.parametrize("output", ["sum", "concatenate", "attend"])
@pytest.mark.parametrize("fresh", [False, True])
def test_entnet_step_equals_numpy(output, fresh):
    cell = EntNetCell(F, S, output=output)
    variables, params, carry, x = setup(cell)
    if fresh:
        # One memory that was never written stands for its key.
        carry = carry.at[:, 1].set(0.0)
    new_carry, y = apply(cell, variables, carry, x)
    for b in range(B):
        expected, expected_y = entnet_step(params, np.asarray(carry[b]), np.asarray(x[b]), output)
        np.testing.assert_allclose(new_carry[b], expected, atol=1e-5)
        np.testing.assert_allclose(y[b], expected_y, atol=1e-5)


def test_entnet_starts_at_its_keys_and_keeps_unit_norm():
    cell = EntNetCell(F, S)
    variables, _, _, x = setup(cell)
    zeros = cell.initialize_carry(jax.random.key(0), (B, I))
    keys = jnp.broadcast_to(variables["params"]["keys"], (B, S, F))
    from_zeros, _ = apply(cell, variables, zeros, x)
    np.testing.assert_allclose(from_zeros, apply(cell, variables, keys, x)[0], atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(from_zeros, axis=-1), 1.0, atol=1e-6)


def test_entnet_gate_closes():
    """Where the input opposes a memory and its key, that memory hardly changes."""
    cell = EntNetCell(F, S, project_inputs=False)
    memory = jnp.eye(S, F)[None]
    shown = jnp.asarray([[-20.0, 20.0, 0.0, 0.0]])
    variables = jax.jit(cell.init)(jax.random.key(0), memory, shown)
    keys = {"params": {**variables["params"], "keys": memory[0]}}
    new, _ = apply(cell, keys, memory, shown)
    np.testing.assert_allclose(new[0, 0], memory[0, 0], atol=1e-6)
    assert np.abs(new[0, 1:] - memory[0, 1:]).max(-1).min() > 0.1


def bank_step(params, carry, x, cell):
    """The bank's next (c, h) and output for one sequence."""
    new_c, new_h = [], []
    for c, h, key in zip(*carry, params["keys"], strict=True):
        gates = x @ params["input"]["kernel"] + params["input"]["bias"]
        gates = gates + key @ params["key"]["kernel"] + h @ params["hidden"]["kernel"]
        i, g, f, o = gates.reshape(4, -1)
        next_c = sigmoid(f + cell.forget_bias) * c + sigmoid(i) * np.tanh(g)
        next_h = sigmoid(o) * np.tanh(next_c)
        if cell.gated:
            shown = x @ params["gate_input"]["kernel"] + params["gate_input"]["bias"]
            gate = sigmoid(shown @ h + shown @ key)
            next_c, next_h = gate * next_c + (1 - gate) * c, gate * next_h + (1 - gate) * h
        new_c.append(next_c)
        new_h.append(next_h)
    return np.stack(new_c), np.stack(new_h), sum(new_h)


@pytest.mark.parametrize(("gated", "forget_bias"), [(True, 1.0), (False, 0.0)])
def test_bank_step_equals_numpy(gated, forget_bias):
    cell = LSTMBankCell(F, S, gated=gated, forget_bias=forget_bias)
    variables, params, carry, x = setup(cell)
    (c, h), y = apply(cell, variables, carry, x)
    for b in range(B):
        one = [np.asarray(leaf[b], np.float64) for leaf in carry]
        expected_c, expected_h, expected_y = bank_step(params, one, np.asarray(x[b]), cell)
        np.testing.assert_allclose(c[b], expected_c, atol=1e-5)
        np.testing.assert_allclose(h[b], expected_h, atol=1e-5)
        np.testing.assert_allclose(y[b], expected_y, atol=1e-5)


def test_keys_tell_the_cells_of_a_bank_apart():
    cell = LSTMBankCell(F, S)
    x = normal(np.random.default_rng(0), (B, I))
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    variables = jax.jit(cell.init)(jax.random.key(1), carry, x)
    (_, h), _ = apply(cell, variables, carry, x)
    assert np.abs(h[:, 0] - h[:, 1]).max() > 1e-3
    same = {"params": {**variables["params"], "keys": jnp.ones((S, F))}}
    (_, h), _ = apply(cell, same, carry, x)
    np.testing.assert_allclose(h[:, 0], h[:, 1], atol=1e-7)


def count(cell) -> int:
    x = jnp.zeros((B, I))
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, x)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_parameter_counts():
    # Input and hidden weights and biases of one LSTM, its weights for a key, and the keys.
    bank = 4 * F * (I + F + 1) + 4 * F * F + S * F
    assert count(LSTMBankCell(F, S, gated=False)) == bank
    assert count(LSTMBankCell(F, S)) == bank + F * (I + 1)
    # U, V and W, the slopes, the keys, and the input's projection.
    entnet = 3 * F * F + F + S * F + F * (I + 1)
    assert count(EntNetCell(F, S)) == entnet
    assert count(EntNetCell(F, S, output="concatenate")) == entnet
    assert count(EntNetCell(F, S, output="attend")) == entnet + F * F
    assert count(EntNetCell(I, S, project_inputs=False)) == 3 * I * I + I + S * I


def test_keys_are_about_one_long():
    for cell in (EntNetCell(256, 8), LSTMBankCell(256, 8)):
        carry = cell.initialize_carry(jax.random.key(0), (I,))
        keys = jax.jit(cell.init)(jax.random.key(0), carry, jnp.zeros(I))["params"]["keys"]
        np.testing.assert_allclose(jnp.linalg.norm(keys, axis=-1), 1.0, atol=0.2)


@pytest.mark.parametrize("make", [EntNetCell, LSTMBankCell])
def test_bad_sizes(make):
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        make(0, 2)
    with pytest.raises(ValueError, match="num_cells must be at least 1, got -1"):
        make(4, -1)
    with pytest.raises(TypeError, match=r"features must be an integer, got 2\.5"):
        make(2.5, 2)


def test_bad_forget_bias():
    with pytest.raises(TypeError, match="forget_bias must be a number, got None"):
        LSTMBankCell(F, S, forget_bias=None)


def test_bad_output_name():
    with pytest.raises(ValueError, match="output must be one of 'sum', 'concatenate', 'attend'"):
        EntNetCell(F, S, output="mean")


def test_inputs_without_a_projection_have_the_width_of_a_memory():
    cell = EntNetCell(F, S, project_inputs=False)
    with pytest.raises(ValueError, match=r"inputs must have shape \[\*B, F\] .* = \(2, 4\), got"):
        cell.init(jax.random.key(0), jnp.zeros((B, S, F)), jnp.zeros((B, I)))
