"""Row masks and dropout over sequences: on every path, with gradients, as in the cell."""

import itertools
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan import relational
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

RNG = np.random.default_rng(0)
ROWS = RelationalMemoryCell(
    mem_slots=3,
    head_size=4,
    num_heads=2,
    attention_mlp_layers=1,
    matrix_inputs=True,
    gate_style=None,
)
X = normal(RNG, (4, 5, 3, 2))  # [B, T, R, I]
THERE = jnp.asarray(RNG.random((4, 5, 3)) < 0.6)
close = partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)


def with_gradients(run, variables, x):
    def loss(variables, x):
        y = run(variables, x)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)


PAPER = {"num_blocks": 2, "input_queries": False}


@pytest.mark.parametrize("config", mostly_slow([{}, {"num_blocks": 2}, PAPER], keep=[PAPER]))
def test_rows_that_are_masked_are_not_there(config):
    plain = RNN(ROWS.clone(**config), implementation="scan")
    variables = random_variables(plain, X)
    there = jnp.ones(X.shape[:-1], bool).at[..., 1].set(False)
    dirty = X.at[:, :, 1].set(jnp.nan)
    fewer = jnp.delete(X, 1, axis=2)
    expected = with_gradients(plain.apply, variables, fewer)
    for implementation in ("scan", "hoisted"):
        run = partial(plain.clone(implementation=implementation).apply, row_mask=there)
        (weights, inputs), y = with_gradients(run, variables, dirty)
        jax.tree.map(close, ((weights, jnp.delete(inputs, 1, axis=2)), y), expected)
        np.testing.assert_array_equal(inputs[:, :, 1], 0)


GATED = {"gate_style": "memory", "output_gate": True}
BACKWARDS = {"reverse": True, "time_major": True}


@pytest.mark.parametrize(
    ("config", "options"),
    mostly_slow(
        itertools.product(({"gate_style": "unit"}, GATED), ({}, BACKWARDS)),
        keep=[(GATED, BACKWARDS)],
    ),
)
def test_the_fast_path_has_what_the_cell_has(config, options):
    """With gates, any rows masked (all of a step, too), captured, reversed."""
    there = THERE.at[0, 2].set(False)
    x = X
    if options:
        x, there = jnp.swapaxes(X, 0, 1), jnp.swapaxes(there, 0, 1)
    plain = RNN(ROWS.clone(**config), implementation="scan", **options)
    variables = random_variables(plain, x)
    found = []
    for implementation in ("scan", "hoisted"):
        rnn = plain.clone(implementation=implementation)

        def loss(variables, x, rnn=rnn):
            y, captured = rnn.apply(variables, x, row_mask=there, mutable=["intermediates"])
            return jnp.sum(jnp.sin(y)), (y, captured)

        found.append(jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x))
    jax.tree.map(close, *found)
    weights = found[1][1][1]["intermediates"]["cell"]["attention_weights"][0]
    order = there[::-1] if options else there
    masked = ~np.broadcast_to(order[:, :, None, None, None], weights[..., 3:].shape)
    assert np.all(weights[..., 3:][masked] == 0)
    assert masked.any()


def test_a_row_mask_that_does_not_fit():
    rnn = RNN(ROWS)
    with pytest.raises(ValueError, match=r"row_mask must have shape \[\*B, T, R\] = \(4, 5, 3\)"):
        rnn.init(jax.random.key(0), X, row_mask=THERE[:, :2])
    with pytest.raises(TypeError, match=r"row_mask must be a bool array .* got float32"):
        rnn.init(jax.random.key(0), X, row_mask=THERE.astype(jnp.float32))
    for cell in (nn.GRUCell(3), ROWS.clone(matrix_inputs=False)):
        with pytest.raises(ValueError, match="row_mask needs a RelationalMemoryCell with matrix"):
            RNN(cell).init(jax.random.key(0), X[:, :, 0], row_mask=THERE)


@pytest.mark.parametrize(
    ("config", "split"),
    mostly_slow(
        itertools.product(({}, GATED, {"gate_style": "unit"}), (True, False)),
        keep=[(GATED, True), ({}, False)],
    ),
)
def test_dropout_draws_the_same_on_every_path(config, split):
    cell = ROWS.clone(matrix_inputs=False, dropout_rate=0.4, **config)
    x, rngs = X[:, :, 0], {"dropout": jax.random.key(7)}
    options = {"split_rngs": {"params": False, "dropout": split}}
    variables = random_variables(RNN(cell), x)

    def of(rnn):
        return with_gradients(partial(rnn.apply, rngs=rngs), variables, x)

    expected = of(nn.RNN(cell, **options))
    # For draws of each step, in chunks that are recomputed.
    ways = [("hoisted", "chunked")] if split else [("scan", "none"), ("hoisted", "none")]
    for implementation, remat in ways:
        rnn = RNN(cell, implementation=implementation, remat=remat, **options)
        jax.tree.map(close, of(rnn), expected)
    calm = jax.jit(RNN(cell.clone(deterministic=True), **options).apply)(variables, x)
    assert np.abs(calm - expected[1]).max() > 0.1


@pytest.mark.parametrize("implementation", ["scan", "hoisted"])
def test_dropout_needs_split_rngs(implementation):
    cell = ROWS.clone(matrix_inputs=False, dropout_rate=0.4)
    rnn = RNN(cell, implementation=implementation)
    x, key = X[:, :, 0], jax.random.key(7)
    variables = random_variables(rnn, x)

    def shape(rnn, **rngs):
        return jax.eval_shape(partial(rnn.apply, **rngs), variables, x).shape

    for split in ({"params": False}, {}):
        with pytest.raises(ValueError, match=r"dropout needs split_rngs=.*, got \{"):
            shape(rnn.clone(split_rngs=split), rngs={"dropout": key})
    assert shape(rnn, rngs=key) == (4, 5, 24)  # Flax draws dropout from the key for params.
    assert shape(rnn.clone(cell=cell.clone(deterministic=True))) == (4, 5, 24)
    every = rnn.clone(split_rngs={True: True})
    assert shape(every, rngs={"dropout": key}) == (4, 5, 24)


def precisions(cell, x, ambient, **options):
    """Those of all products of a gradient, as often as each occurs."""
    rnn = RNN(cell, **options)
    variables = random_variables(rnn, x)
    with jax.default_matmul_precision(ambient):
        program = jax.make_jaxpr(jax.grad(lambda v, x: rnn.apply(v, x).sum(), (0, 1)))(variables, x)
    found = re.findall(r"precision=(\(.*?\)|[\w.]+)", str(program))
    return Counter(found)


@pytest.mark.parametrize(
    ("implementation", "large"),
    mostly_slow(
        [("scan", False), ("hoisted", False), ("hoisted", True)],
        keep=[("hoisted", True)],
    ),
)
def test_precision_is_that_of_every_product(implementation, large, monkeypatch):
    """Forward and backward, with kernels of any size: as if it were JAX's default."""
    monkeypatch.setattr(relational, "_has_large_kernels", lambda *_: large)
    cell = RelationalMemoryCell(mem_slots=3, head_size=4, num_heads=2)
    x, options = X[:, :, 0], {"implementation": implementation}
    expected = precisions(cell, x, "high", **options)
    assert all("HIGH" in name for name in expected)
    assert precisions(cell.clone(precision="high"), x, "default", **options) == expected


def test_another_product_runs_the_plain_scan_and_says_so():
    vector = ROWS.clone(matrix_inputs=False, dot_general=jax.lax.dot_general)
    x = X[:, :, 0]
    rnn = RNN(vector)
    variables = random_variables(rnn, x)
    told = rnn.apply(variables, x, method="explain")
    assert "another dot_general" in told
    with pytest.raises(ValueError, match=r"'hoisted' computes products by jax\.lax\.dot_general"):
        rnn.clone(implementation="hoisted").apply(variables, x)
    precise = RNN(RelationalMemoryCell(2, 2, 2, precision="highest"), implementation="fused")
    with pytest.raises(ValueError, match=r"'fused' takes jax\.default_matmul_precision"):
        precise.init(jax.random.key(0), x)


@pytest.mark.slow
@pytest.mark.parametrize("each_step", [True, False])
def test_dropout_is_exported_for_any_batch_and_length(each_step):
    cell = RelationalMemoryCell(mem_slots=2, head_size=4, num_heads=2, dropout_rate=0.5)
    rnn = RNN(cell, split_rngs={"params": False, "dropout": each_step})
    x = X[:, :, 0]
    variables = random_variables(RNN(cell), x)
    run = jax.jit(lambda x: rnn.apply(variables, x, rngs={"dropout": jax.random.key(0)}))
    any_size = jax.ShapeDtypeStruct(export.symbolic_shape("b, t, 2"), jnp.float32)
    close(export.export(run)(any_size).call(x), run(x))
