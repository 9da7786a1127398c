"""Carries of callers: resets of any cell, learned memories, dtypes, errors."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell, reset_carry
from rrnn_jax.baselines import DNCCell, EntNetCell, LSTMBankCell, StackedLSTMCell
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

B, T, FEATURES = 3, 6, 5  # As many sequences as slots: where the usual `where` is silently wrong.
RMC = RelationalMemoryCell(mem_slots=3, head_size=4, num_heads=2)
X = normal(np.random.default_rng(0), (B, T, FEATURES))
FLAGS = jnp.array([True, False, True])

CELLS = {
    "rmc": (RMC, (FEATURES,)),
    "rmc-output-gate": (RMC.clone(output_gate=True), (FEATURES,)),
    "rmc-rows": (RMC.clone(matrix_inputs=True), (2, FEATURES)),
    "lstm": (nn.OptimizedLSTMCell(4), (FEATURES,)),
    "gru": (nn.GRUCell(4), (FEATURES,)),
    "conv": (nn.ConvLSTMCell(2, (3, 3)), (4, 4, FEATURES)),
    "stacked": (StackedLSTMCell(features=4, num_layers=2), (FEATURES,)),
    "bank": (LSTMBankCell(features=4, num_cells=3), (FEATURES,)),
    "entnet": (EntNetCell(features=4, num_cells=3), (FEATURES,)),
    "dnc": (
        DNCCell(
            memory_size=4, word_size=3, num_reads=1, num_writes=1, controller_size=4, output_size=2
        ),
        (FEATURES,),
    ),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", mostly_slow([[], [B], [2, B]], keep=[[2, B]]))
def test_reset_carry_of_any_cell(name, batch):
    cell, features = CELLS[name]
    fresh = cell.initialize_carry(jax.random.key(0), (*batch, *features))
    carry = jax.tree.map(lambda x: x + 1, fresh)
    flags = np.random.default_rng(0).random(batch) < 0.5
    found = reset_carry(cell, carry, flags)
    assert jax.tree.structure(found) == jax.tree.structure(carry)
    for leaf, before, after in zip(*map(jax.tree.leaves, (found, carry, fresh)), strict=True):
        for index in np.ndindex(*batch):
            np.testing.assert_array_equal(leaf[index], (after if flags[index] else before)[index])


def test_reset_carry_to_one_that_is_given():
    carry = jnp.ones((B, 3, 8), jnp.bfloat16)
    learned = jnp.arange(24.0).reshape(3, 8)
    found = reset_carry(RMC, carry, FLAGS.astype(jnp.float32), learned)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[0], learned.astype(jnp.bfloat16))
    np.testing.assert_array_equal(found[1], carry[1])
    each = jnp.broadcast_to(learned, (B, 3, 8))
    np.testing.assert_array_equal(found, reset_carry(RMC, carry, FLAGS, each))
    gradient = jax.grad(lambda m: reset_carry(RMC, carry, FLAGS, m).astype(jnp.float32).sum())
    np.testing.assert_array_equal(gradient(learned), np.full((3, 8), 2.0))


def test_reset_carry_names_what_does_not_fit():
    carry = jnp.ones((B, 3, 8))
    for flags in (jnp.zeros(2, bool), FLAGS[:, None]):
        with pytest.raises(
            ValueError, match=r"flags must have the batch axes .* carry \(3, 3, 8\)"
        ):
            reset_carry(RMC, carry, flags)
    # Where B is also the next axis, too.
    for wide in (jnp.ones((B, 4, 3, 8)), jnp.ones((B, B, 3, 8))):
        with pytest.raises(ValueError, match=r"carry must have .*; flags must have all batch"):
            reset_carry(RMC, wide, FLAGS)
    with pytest.raises(ValueError, match=r"fresh must have shape .* = \(3, 8\), got \(3, 7\)"):
        reset_carry(RMC, carry, FLAGS, jnp.ones((3, 7)))
    pair = (carry, carry)
    with pytest.raises(TypeError, match=r"fresh\[1\] must be floating-point, got int32"):
        reset_carry(RMC.clone(output_gate=True), pair, FLAGS, (carry, carry.astype(jnp.int32)))
    with pytest.raises(TypeError, match="fresh must be int32, as the carry is, got float32"):
        reset_carry(RMC, carry.astype(jnp.int32), FLAGS)
    with pytest.raises(ValueError, match="fresh must have the structure of the carry"):
        reset_carry(RMC, carry, FLAGS, (carry, carry))
    with pytest.raises(TypeError, match=r"flags must be bool or numbers .*<U3"):
        reset_carry(RMC, carry, np.array(["yes"] * 3))
    with pytest.raises(TypeError, match=r"flags must be bool or numbers .*complex64"):
        reset_carry(RMC, carry, np.ones(3, np.complex64))
    with pytest.raises(ValueError, match=r"fresh must be given for a cell with learned_carry=True"):
        reset_carry(RMC.clone(learned_carry=True), carry, FLAGS)


@pytest.fixture(scope="module")
def rmc():
    rnn = RNN(RMC, return_carry=True)
    return rnn, random_variables(rnn, X)


def test_resets_are_numbers_as_well(rmc):
    rnn, variables = rmc
    resets = np.zeros((B, T), bool)
    resets[:, 3] = [True, False, True]
    run = jax.jit(partial(rnn.apply, variables, X))
    _, expected = run(resets=jnp.asarray(resets))
    for kind in (np.float32, np.int32, np.uint8, "float64", "list", "bool"):
        _, y = run(resets=resets.tolist() if kind == "list" else resets.astype(kind))
        np.testing.assert_array_equal(y, expected)


def test_done_of_the_previous_step_begins_an_episode(rmc):
    """The loop that an actor runs, and the learner's whole sequence by the documented recipe."""
    rnn, variables = rmc
    done = np.random.default_rng(1).random((B, T)) < 0.4
    cell_variables = {"params": variables["params"]["cell"]}
    step = jax.jit(partial(RMC.apply, cell_variables))
    carry = start = rnn.initialize_carry((B,)) + 0.5
    last_done, outputs = jnp.zeros(B, bool), []
    for t in range(T):
        carry, y = step(reset_carry(RMC, carry, last_done), X[:, t])
        outputs.append(y)
        last_done = done[:, t].astype(np.float32)
    resets = jnp.concatenate([jnp.zeros((B, 1), bool), done[:, :-1]], axis=1)
    assert resets.any()
    final, y = jax.jit(rnn.apply)(variables, X, resets=resets, initial_carry=start)
    np.testing.assert_allclose(y, jnp.stack(outputs, 1), atol=1e-6)
    np.testing.assert_allclose(final, carry, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
def test_a_reset_goes_to_the_memory_that_is_given(batched):
    variables = random_variables(RNN(RMC), X)
    shape = (B, 3, 8) if batched else (3, 8)
    memory = jax.random.normal(jax.random.key(3), shape)
    resets = jnp.zeros((B, T), bool).at[:, 3].set(True)

    def packed(variables, memory, implementation):
        rnn = RNN(RMC, implementation=implementation)
        return rnn.apply(variables, X, resets=resets, reset_carry=memory)[:, 3:]

    def apart(variables, memory):
        start = jnp.broadcast_to(memory, (B, 3, 8))
        return nn.RNN(RMC).apply(variables, X[:, 3:], initial_carry=start)

    expected = with_gradients(apart, variables, memory)
    for implementation in ("scan", "hoisted"):
        run = partial(packed, implementation=implementation)
        found = with_gradients(run, variables, memory)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4), found, expected)
        assert np.abs(found[0][1]).max() > 1e-3


def with_gradients(function, *args):
    def loss(*args):
        y = function(*args)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.grad(loss, argnums=tuple(range(len(args))), has_aux=True))(*args)


@pytest.mark.parametrize("output_gate", mostly_slow([False, True], keep=[True]))
def test_a_learned_memory(output_gate):
    """It is what sequences and episodes start from, with gradients; flax's RNN starts there."""
    cell = RMC.clone(learned_carry=True, output_gate=output_gate)
    variables = random_variables(RNN(cell), X)
    for layer in (RNN(cell), nn.RNN(cell)):
        made = jax.eval_shape(layer.init, jax.random.key(0), X)
        assert jax.tree.structure(variables) == jax.tree.structure(made)
    memory = variables["params"]["cell"]["initial_memory"]
    assert memory.shape == (3, 8)
    resets = jnp.zeros((B, T), bool).at[:, 3].set(True)
    episodes = jnp.concatenate([X[:, :3], X[:, 3:]])

    def learned(variables, implementation):
        y = RNN(cell, implementation=implementation).apply(variables, X, resets=resets)
        return jnp.concatenate([y[:, :3], y[:, 3:]])

    def by_hand(variables):
        own = variables["params"]["cell"]
        start = jnp.broadcast_to(own["initial_memory"], (2 * B, 3, 8))
        start = (start, jnp.tanh(start)) if output_gate else start
        others = {k: v for k, v in own.items() if k != "initial_memory"}
        plain = nn.RNN(cell.clone(learned_carry=False))
        return plain.apply({"params": {"cell": others}}, episodes, initial_carry=start)

    expected = with_gradients(by_hand, variables)
    close = partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-4)
    for implementation in ("scan", "hoisted"):
        found = with_gradients(partial(learned, implementation=implementation), variables)
        jax.tree.map(close, found, expected)
    close(jax.jit(nn.RNN(cell).apply)(variables, episodes), expected[1])


def test_a_learned_memory_begins_as_carry_init_makes_it():
    cell = RMC.clone(learned_carry=True)
    variables = jax.jit(RNN(cell).init)(jax.random.key(0), X)
    np.testing.assert_array_equal(variables["params"]["cell"]["initial_memory"], np.eye(3, 8))
    np.testing.assert_array_equal(
        cell.initialize_carry(jax.random.key(0), (B, FEATURES)),
        RMC.initialize_carry(jax.random.key(0), (B, FEATURES)),
    )
    changed = jax.tree.map(lambda p: p + 1, variables)
    found = RNN(cell).apply(changed, (2,), method="initialize_carry")
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(3, 8) + 1, (2, 3, 8)))
    with pytest.raises(ValueError, match="learned_carry=True needs its variables"):
        RNN(cell).initialize_carry((2,))
    boxed = cell.clone(carry_init=nn.with_partitioning(RMC.carry_init, (None, "model")))
    found = boxed.initialize_carry(jax.random.key(0), (B, FEATURES))
    np.testing.assert_array_equal(found, RMC.initialize_carry(jax.random.key(0), (B, FEATURES)))


@pytest.mark.parametrize(
    ("dtype", "output_gate", "implementation"),
    mostly_slow(
        itertools.product(
            (jnp.bfloat16, np.float16, np.float64), (False, True), ("scan", "hoisted")
        ),
        keep=[(jnp.bfloat16, True, "hoisted"), (np.float64, False, "scan")],
    ),
)
def test_all_carries_are_of_the_dtype_that_was_given(dtype, output_gate, implementation):
    cell = RMC.clone(output_gate=output_gate)
    rnn = RNN(cell, implementation=implementation)
    variables = random_variables(rnn, X)
    fresh = cell.initialize_carry(jax.random.key(0), (B, FEATURES))
    given = jax.tree.map(lambda x: np.asarray(x).astype(dtype), fresh)
    resets = jnp.zeros((B, T), bool).at[:, 3].set(True)
    run = jax.jit(partial(rnn.apply, resets=resets, method="run", return_all_carries=True))
    found, expected = run(variables, X, initial_carry=given), run(variables, X)
    kept = jnp.float32 if dtype is np.float64 else dtype
    for leaf in jax.tree.leaves((found.carry, found.carries)):
        assert leaf.dtype == kept
    np.testing.assert_allclose(
        found.outputs.astype(jnp.float32), expected.outputs, atol=0.1 if kept != np.float32 else 0
    )


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("cell", [nn.GRUCell(4), nn.OptimizedLSTMCell(4)])
def test_a_cell_that_promotes_its_carry_keeps_the_dtype_that_was_given(cell):
    rnn = RNN(cell)
    variables = random_variables(rnn, X)
    start = rnn.initialize_carry((B,))
    given = jax.tree.map(lambda x: x.astype(jnp.bfloat16), start)
    resets = jnp.zeros((B, T), bool).at[:, 3].set(True)
    run = jax.jit(partial(rnn.apply, resets=resets, mask=~resets, method="run"))
    found, expected = run(variables, X, initial_carry=given), run(variables, X)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(found.carry))
    np.testing.assert_allclose(found.outputs, expected.outputs, atol=0.02)


def test_a_reset_carry_that_does_not_fit_is_named_without_resets_too():
    for resets in (None, jnp.zeros((B, T), bool)):
        with pytest.raises(ValueError, match=r"reset_carry must have shape .* got \(3, 7\)"):
            RNN(RMC).init(jax.random.key(0), X, resets=resets, reset_carry=jnp.ones((3, 7)))


def test_parts_of_a_pair_keep_a_dtype_each():
    cell = RMC.clone(output_gate=True)
    m, h = cell.initialize_carry(jax.random.key(0), (B, FEATURES))
    variables = random_variables(cell, (m, h), X[:, 0])
    (m, h), _ = jax.jit(cell.apply)(variables, (m, h.astype(jnp.bfloat16)), X[:, 0])
    assert (m.dtype, h.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(
    ("cell", "carry", "error", "message"),
    [
        (RMC.clone(output_gate=True), jnp.ones((B, 3, 8)), TypeError, r"initial_carry .*\(m, h\)"),
        (
            RMC.clone(output_gate=True),
            (jnp.ones((B, 3, 8)), jnp.ones((B, 8))),
            ValueError,
            r"initial_carry\[1\] \(h\) must have shape",
        ),
        (
            nn.OptimizedLSTMCell(4),
            jnp.ones((B, 4)),
            TypeError,
            "initial_carry .* OptimizedLSTMCell",
        ),
        (nn.GRUCell(4), jnp.ones((B, 3)), ValueError, r"initial_carry .*\(3, 4\), got \(3, 3\)"),
        (nn.GRUCell(4), jnp.ones((B, 4), jnp.int8), TypeError, "initial_carry must be fl.* int8"),
        (
            StackedLSTMCell(features=4, num_layers=1),
            ((jnp.ones((B, 4)), jnp.ones((B, 5))),),
            ValueError,
            r"initial_carry\[0\]\[1\] must have shape .*\(3, 4\), got \(3, 5\)",
        ),
        (nn.GRUCell(4), [[0.0] * 4] * B, TypeError, "initial_carry .* GRUCell"),
    ],
)
def test_an_initial_carry_that_does_not_fit_is_named(cell, carry, error, message):
    with pytest.raises(error, match=message):
        RNN(cell).init(jax.random.key(0), X, initial_carry=carry)


def test_a_result_with_names(rmc):
    rnn, variables = rmc
    run = partial(rnn.apply, return_all_carries=True)
    result = jax.jit(partial(run, method="run", time_major=None))(variables, X)
    carry, carries, y = jax.jit(run)(variables, X)
    expected = (carry, y, carries)
    jax.tree.map(np.testing.assert_array_equal, tuple(result), expected)
    with pytest.raises(TypeError, match="'return_carries'"):
        rnn.apply(variables, X, return_carries=True, method="run")


@pytest.mark.parametrize("name", CELLS)
def test_initial_carry_of_a_batch(name):
    cell, features = CELLS[name]
    shape = features if name == "conv" else None
    found = RNN(cell).initialize_carry((2, B), feature_shape=shape)
    expected = cell.initialize_carry(jax.random.key(0), (2, B, *features))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, expected)
