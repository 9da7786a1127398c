"""Options of the cell: a mask over rows, dropout in the recurrence, precision, norms, sizes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from rrnn_jax import (
    MultiHeadAttention,
    RelationalMemory,
    RelationalMemoryCell,
    dot_product_attention,
)
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

ROWS = RelationalMemoryCell(
    mem_slots=3, head_size=4, num_heads=2, matrix_inputs=True, gate_style=None
)
RNG = np.random.default_rng(0)
X = normal(RNG, (2, 4, 5))  # [B, R, I]
MEMORY = normal(RNG, (2, 3, 8))
THERE = jnp.array([[True, False, True, False], [False, True, True, False]])


def only(rows, there):
    """The rows that are there, for sequences with as many of them."""
    return jnp.stack([x[m] for x, m in zip(rows, there, strict=True)])


def step(cell, variables, x, row_mask=None, **options):
    return jax.jit(partial(cell.apply, **options))(variables, MEMORY, x, row_mask)


PAPER = {"num_blocks": 2, "input_queries": False}


@pytest.mark.parametrize("config", mostly_slow([{}, {"num_blocks": 2}, PAPER], keep=[PAPER]))
def test_rows_that_are_masked_are_not_in_a_step(config):
    cell = ROWS.clone(**config)
    variables = random_variables(cell, MEMORY, X)
    dirty = jnp.where(THERE[..., None], X, jnp.nan)
    (carry, y), captured = step(cell, variables, dirty, THERE, mutable=["intermediates"])
    expected_carry, expected = step(cell, variables, only(X, THERE))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(carry, expected_carry, atol=1e-5)
    assert np.abs(step(cell, variables, X)[1] - y).max() > 1e-3
    weights = captured["intermediates"]["attention_weights"][0]  # [B, blocks, H, S, S+R]
    masked = ~np.broadcast_to(THERE[:, None, None, None], weights[..., 3:].shape)
    assert np.all(weights[..., 3:][masked] == 0)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("config", [{}, {"gate_style": "memory", "output_gate": True}])
def test_gates_see_nothing_of_masked_rows(config):
    """Their input by hand: a projected row that is masked is 0, its bias too."""
    cell = ROWS.clone(**({"gate_style": "unit"} | config))
    carry = (MEMORY, jnp.tanh(MEMORY)) if cell.output_gate else MEMORY
    variables = random_variables(cell, carry, X)

    def run(variables, x, row_mask):
        return cell.apply(variables, carry, x, row_mask, mutable=["intermediates"])

    _, captured = jax.jit(run)(variables, X, THERE)
    params = jax.tree.map(np.asarray, variables["params"])
    projection, gates = params["input_projection"], params["gates"]
    rows = np.asarray(X) @ projection["kernel"] + projection["bias"]
    rows = (rows * np.asarray(THERE)[..., None]).reshape(2, -1)
    hidden = np.asarray(carry[1] if cell.output_gate else jnp.tanh(carry))
    packed = (rows @ gates["input"]["kernel"] + gates["input"]["bias"])[:, None]
    packed = packed + (hidden @ gates["memory"]["kernel"] + gates["memory"]["bias"])
    expected = np.split(packed, 3 if cell.output_gate else 2, axis=-1)
    sown = captured["intermediates"]
    close = partial(np.testing.assert_allclose, atol=1e-5)
    close(sown["input_gate"][0], jax.nn.sigmoid(expected[0]))
    close(sown["forget_gate"][0], jax.nn.sigmoid(expected[1] + 1))


def test_all_rows_masked_is_finite_and_so_are_gradients():
    cell = ROWS.clone(gate_style="unit", num_blocks=2)
    variables = random_variables(cell, MEMORY, X)
    none = jnp.zeros((2, 4), bool)

    def loss(variables, x):
        return jnp.sum(cell.apply(variables, MEMORY, x, none)[1])

    dirty = jnp.full(X.shape, jnp.inf)
    value, (weights, inputs) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, dirty)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(weights))
    np.testing.assert_array_equal(inputs, 0)


def test_attention_by_hand_with_a_mask():
    q, k, v = (normal(RNG, (3, 1, 2)) for _ in range(3))
    mask = jnp.array([True, False, True])
    found, weights = dot_product_attention(q, k, v, mask)
    part, part_weights = dot_product_attention(q, k[mask], v[mask])
    np.testing.assert_allclose(found, part, atol=1e-6)
    np.testing.assert_allclose(weights[..., mask], part_weights, atol=1e-6)
    assert np.all(weights[..., 1] == 0)
    with pytest.raises(ValueError, match=r"mask must have shape \[\*B, M\] = \(3,\), got \(2,\)"):
        dot_product_attention(q, k, v, mask[:2])
    additive = jnp.where(mask, 0.0, -jnp.inf)
    with pytest.raises(TypeError, match=r"mask must be a bool array \[\*B, M\], got float32"):
        dot_product_attention(q, k, v, additive)
    with pytest.raises(TypeError, match=r"mask must be a bool array \[\*B, M\], got float32"):
        MultiHeadAttention(1, 2).init(jax.random.key(0), q[:, 0], mask=additive)


def test_a_row_mask_that_does_not_fit_a_step():
    variables = random_variables(ROWS, MEMORY, X)
    with pytest.raises(ValueError, match=r"row_mask must have shape \[\*B, R\] = \(2, 4\)"):
        ROWS.apply(variables, MEMORY, X, THERE[:, :3])
    with pytest.raises(
        TypeError,
        match=r"row_mask must be a bool.*int32; convert numbers by jnp.asarray\(row_mask\) != 0",
    ):
        ROWS.apply(variables, MEMORY, X, THERE.astype(jnp.int32))
    with pytest.raises(TypeError, match=r"row_mask must be a bool array \[\*B, R\], got float32"):
        RelationalMemory(2, 4).init(jax.random.key(0), MEMORY, MEMORY, jnp.zeros((2, 3)))
    vector = ROWS.clone(matrix_inputs=False)
    with pytest.raises(ValueError, match="row_mask needs matrix_inputs=True"):
        vector.init(jax.random.key(0), MEMORY, X[:, 0], THERE)


GATES = [{}, {"output_gate": True}, {"gate_style": "memory"}]


@pytest.mark.parametrize("config", mostly_slow(GATES, keep=GATES[1:2]))
def test_dropout_spares_the_memory_and_keeps_the_mean(config):
    cell = ROWS.clone(matrix_inputs=False, gate_style="unit", dropout_rate=0.25)
    cell = cell.clone(**config)
    carry = (MEMORY, jnp.tanh(MEMORY)) if cell.output_gate else MEMORY
    x = X[:, 0]
    variables = random_variables(cell, carry, x)
    names = ["intermediates"]
    calm = jax.jit(partial(cell.clone(deterministic=True).apply, mutable=names))
    (kept, _), sown = calm(variables, carry, x)
    forget = sown["intermediates"]["forget_gate"][0]

    @jax.jit
    @jax.vmap
    def draws(key):
        return cell.apply(variables, carry, x, rngs={"dropout": key})[0]

    drawn = draws(jax.random.split(jax.random.key(0), 400))
    memory, drawn = (kept[0], drawn[0]) if cell.output_gate else (kept, drawn)
    dropped = np.isclose(drawn, forget * MEMORY, atol=1e-6)
    assert abs(dropped.mean() - 0.25) < 0.01
    scaled = forget * MEMORY + (memory - forget * MEMORY) / 0.75
    np.testing.assert_allclose(
        drawn[~dropped], np.broadcast_to(scaled, drawn.shape)[~dropped], atol=1e-5
    )


def test_dropout_without_gates_drops_the_candidate():
    cell = ROWS.clone(dropout_rate=0.5)
    variables = random_variables(cell, MEMORY, X)
    _, y = step(cell, variables, X, rngs={"dropout": jax.random.key(1)})
    _, plain = step(cell.clone(deterministic=True), variables, X)
    dropped = np.asarray(y) == 0
    assert 0.2 < dropped.mean() < 0.8
    np.testing.assert_allclose(y[~dropped], 2 * plain[~dropped], rtol=1e-5)


@pytest.mark.slow
def test_dropout_per_step_or_per_sequence_under_flax():
    """Where nothing is remembered, a unit that is dropped is 0."""
    cell = ROWS.clone(matrix_inputs=False, dropout_rate=0.5, gate_style="unit", forget_bias=-1e9)
    x = jnp.broadcast_to(X[:, :1], (2, 6, 5))
    variables = random_variables(cell, MEMORY, x[:, 0])

    def dropped(split):
        rnn = nn.RNN(cell, split_rngs={"params": False, "dropout": split})
        own = {"params": {"cell": variables["params"]}}
        y = jax.jit(rnn.apply)(own, x, rngs={"dropout": jax.random.key(0)})
        return np.asarray(y) == 0

    each, once = dropped(True), dropped(False)
    assert 0.3 < each.mean() < 0.7
    assert np.any(each != each[:, :1])
    np.testing.assert_array_equal(once, np.broadcast_to(once[:, :1], once.shape))


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_a_rate_out_of_bounds(rate):
    with pytest.raises(
        ValueError, match=rf"dropout_rate must be at least 0 and below 1, got {rate}"
    ):
        RelationalMemoryCell(dropout_rate=rate)


def test_dropout_wants_its_rng_but_not_to_initialise():
    cell = ROWS.clone(dropout_rate=0.5)
    variables = random_variables(cell, MEMORY, X)  # It initialises with a key for params alone.
    with pytest.raises(errors.InvalidRngError, match="dropout"):
        cell.apply(variables, MEMORY, X)


def test_norms_have_initialisers_of_their_own():
    names = nn.with_partitioning
    cell = ROWS.clone(
        norm_scale_init=names(nn.initializers.constant(2.0), ("width",)),
        norm_bias_init=names(nn.initializers.constant(3.0), ("width",)),
        num_blocks=2,
    )
    params = jax.eval_shape(cell.init, jax.random.key(0), MEMORY, X)["params"]["memory"]
    for k in range(2):
        block = params[f"block_{k}"]
        for norm in (block["attention"]["qkv_norm"], block["attention_norm"], block["mlp_norm"]):
            assert norm["scale"].names == norm["bias"].names == ("width",)
    made = nn.meta.unbox(jax.jit(cell.init)(jax.random.key(0), MEMORY, X))
    norm = made["params"]["memory"]["block_1"]["mlp_norm"]
    assert np.all(norm["scale"] == 2)
    assert np.all(norm["bias"] == 3)


def test_another_product_for_all_weights():
    calls = []

    def counting(*args, **options):
        calls.append(args[0].shape)
        return 2 * jax.lax.dot_general(*args, **options)

    cell = ROWS.clone(gate_style="unit", dot_general=counting)
    variables = random_variables(cell, MEMORY, X)
    calls.clear()
    _, y = jax.jit(cell.apply)(variables, MEMORY, X)
    assert (
        len(calls) == 6
    )  # Input, packed queries keys and values, two of the MLP, two of the gates.
    doubled = jax.tree_util.tree_map_with_path(
        lambda path, p: 2 * p if path[-1].key == "kernel" else p, variables
    )
    plain = ROWS.clone(gate_style="unit")
    np.testing.assert_allclose(y, jax.jit(plain.apply)(doubled, MEMORY, X)[1], atol=1e-5)


def test_a_cell_by_the_width_of_its_output():
    cell = RelationalMemoryCell.from_features(96, mem_slots=4, num_heads=3, gate_style="memory")
    assert (cell.head_size, cell.output_size, cell.gate_style) == (8, 96, "memory")
    with pytest.raises(ValueError, match=r"features must be a multiple of .* = 64, got 100"):
        RelationalMemoryCell.from_features(100)
