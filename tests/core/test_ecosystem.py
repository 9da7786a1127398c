"""The cell and the layer in other programs: recipes that must keep working."""

import copy
import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

import rrnn_jax
from rrnn_jax import RNN, Bidirectional, RelationalMemoryCell, RNNStack
from rrnn_jax.baselines import DNCCell, EntNetCell, LSTMBankCell, StackedLSTMCell
from rrnn_jax.language import AdaptiveSoftmax, TiedEmbedding
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

RMC = RelationalMemoryCell(mem_slots=3, head_size=4, num_heads=2, attention_mlp_layers=1)
X = normal(np.random.default_rng(0), (2, 6, 5))  # [B, T, I]
MASK = jnp.arange(6)[None] < jnp.array([[4], [6]])

SIMPLE = nn.SimpleCell(4)

close = partial(np.testing.assert_allclose, atol=1e-5)


def test_public_names_are_there():
    for name in rrnn_jax.__all__:
        assert getattr(rrnn_jax, name).__doc__, name


@pytest.mark.parametrize(
    "module",
    [
        RNN(RMC, remat="full"),
        RNNStack((RNN(RMC), RNN(RMC))),
        Bidirectional(RNN(RMC), RNN(RMC)),
        RMC.clone(output_gate=True, learned_carry=True),
        StackedLSTMCell(features=8, num_layers=2),
        EntNetCell(features=4, num_cells=2),
        LSTMBankCell(features=4, num_cells=2),
        TiedEmbedding(5, 4),
        AdaptiveSoftmax(5, 4, (2,)),
        DNCCell(
            memory_size=4, word_size=4, num_reads=1, num_writes=1, controller_size=8, output_size=4
        ),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("way", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_modules_are_pickled_and_copied(module, way):
    again = way(module)
    assert again == module
    assert hash(again) == hash(module)


def test_both_directions_with_resets_and_a_mask():
    both = Bidirectional(RNN(RMC), RNN(RMC.copy()), return_carry=True)
    variables = random_variables(both, X)
    flax = nn.Bidirectional(RNN(RMC), RNN(RMC.copy()))
    assert jax.tree.structure(variables) == jax.tree.structure(random_variables(flax, X))
    resets = jnp.zeros((2, 6), bool).at[:, 2].set(True)
    carry, y = jax.jit(both.apply)(variables, X, resets=resets, mask=MASK)

    def alone(name: str, x: jax.Array, **options: Any) -> jax.Array:
        own = {"params": variables["params"][name]}
        return RNN(RMC).apply(own, x, **options)

    @jax.jit
    def by_hand(x: jax.Array) -> tuple[jax.Array, ...]:  # Of the first sequence: four steps.
        parts = x[0, :4].reshape(2, 2, -1)
        ahead = alone("forward_rnn", parts)
        behind = alone("backward_rnn", parts, reverse=True, keep_order=True)
        return ahead.reshape(1, 4, -1), behind.reshape(1, 4, -1)

    ahead, behind = by_hand(X)
    close(y[:1, :4], jnp.concatenate([ahead, behind], axis=-1))
    close(carry[0][0].reshape(-1), ahead[0, -1])
    close(carry[1][0].reshape(-1), behind[0, 0])


@pytest.mark.parametrize("cell", mostly_slow([RMC, SIMPLE], keep=[SIMPLE]))
def test_masked_steps_are_not_there_in_reverse_either(cell):
    """Resets and masks anywhere: as the valid steps alone, with the resets of those."""
    rnn = RNN(cell, reverse=True, keep_order=True)
    variables, run = random_variables(rnn, X), jax.jit(rnn.apply)
    rng = np.random.default_rng(2)
    for _ in range(6):
        resets = rng.random((1, 6)) < 0.4
        valid = rng.permutation(6) < 4  # Four steps in each draw: one program.
        y = run(variables, X[:1], resets=resets, mask=valid[None])
        close(y[:, valid], run(variables, X[:1, valid], resets=resets[:, valid]))


class Named(nn.RNNCellBase):
    """A cell with outputs by name."""

    num_feature_axes = 1

    @nn.compact
    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, Any]:
        carry = nn.tanh(carry + nn.Dense(4)(inputs))
        return carry, {"h": carry, "sum": carry.sum(-1, keepdims=True)}

    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> jax.Array:
        return jnp.zeros((*input_shape[:-1], 4))


@pytest.mark.slow
def test_outputs_by_name():
    both = Bidirectional(RNN(Named()), RNN(Named()))
    variables = random_variables(both, X)
    flax = nn.Bidirectional(RNN(Named()), RNN(Named()))
    run = jax.jit(both.apply)
    jax.tree.map(close, run(variables, X), jax.jit(flax.apply)(variables, X))
    y = run(variables, X, mask=MASK)
    short = run(variables, X[:1, :4])
    jax.tree.map(close, jax.tree.map(lambda a: a[:1, :4], y), short)


@pytest.mark.parametrize("keep_order", mostly_slow([False, True], keep=[True]))
def test_a_stack_in_reverse(keep_order):
    """Two episodes in one sequence are two sequences; carries after resets are those given."""
    stack = RNNStack([RNN(nn.SimpleCell(4)), RNN(nn.GRUCell(3))])
    variables = random_variables(stack, X)
    fresh = [jnp.full(4, 0.5), jnp.full(3, -0.5)]
    starts = [jnp.broadcast_to(one, (2, *one.shape)) for one in fresh]
    run = jax.jit(partial(stack.apply, variables, reverse=True, keep_order=keep_order))
    resets = jnp.zeros((2, 6), bool).at[:, 2].set(True)
    y = run(X, resets=resets, reset_carry=fresh, initial_carry=starts)
    parts = [run(part, initial_carry=starts) for part in (X[:, :2], X[:, 2:])]
    close(y, jnp.concatenate(parts if keep_order else parts[::-1], axis=1))
    mixed = RNNStack([RNN(nn.SimpleCell(4), reverse=True), RNN(nn.GRUCell(3))])
    run = jax.jit(partial(mixed.apply, variables))
    close(run(X, resets=resets)[:, 2:], run(X[:, 2:]))


@pytest.mark.slow
def test_a_stack_of_both_directions():
    both = Bidirectional(RNN(nn.SimpleCell(4)), RNN(nn.SimpleCell(4)))
    stack = RNNStack([both, RNN(nn.GRUCell(3))])
    variables = random_variables(stack, X)
    below, above = ({"params": variables["params"][f"rnns_{i}"]} for i in (0, 1))
    y = jax.jit(both.apply)(below, X, mask=MASK)
    # Two directions have no order, with Flax's arguments either.
    for order in ({}, {"reverse": True, "keep_order": True}):
        lower, upper, whole = (
            jax.jit(partial(layer.apply, **order)) for layer in (both, stack.rnns[1], stack)
        )
        close(lower(below, X, mask=MASK), y)
        close(whole(variables, X, mask=MASK), upper(above, y, mask=MASK))


@pytest.mark.slow
def test_a_stack_gives_rows_to_its_first_layer_and_a_key_to_each():
    first = RMC.clone(matrix_inputs=True, carry_init=nn.initializers.normal())
    stack = RNNStack([RNN(first), RNN(first.clone(matrix_inputs=False))])
    x, rows = X[..., None], np.arange(5) < np.array([2, 5])[:, None, None]
    rows, key = jnp.broadcast_to(rows, X.shape), jax.random.key(3)
    variables = random_variables(stack, x)
    options = {"row_mask": rows}
    expected = x
    for i, own_key in enumerate(jax.random.split(key)):
        own = {"params": variables["params"][f"rnns_{i}"]}
        expected = jax.jit(stack.rnns[i].apply)(own, expected, init_key=own_key, **options)
        options = {}
    close(jax.jit(stack.apply)(variables, x, init_key=key, row_mask=rows), expected)


def test_a_stack_is_its_layers_one_after_another():
    stack = RNNStack([RNN(RMC), RNN(nn.GRUCell(4)), RNN(RMC.clone(gate_style="memory"))])
    variables = random_variables(stack, X)
    starts = [None, jnp.ones((2, 4)), None]
    carries, y = jax.jit(partial(stack.apply, return_carry=True))(
        variables, X, initial_carry=starts, mask=MASK
    )
    expected = X
    for i, (rnn, start) in enumerate(zip(stack.rnns, starts, strict=True)):
        own = {"params": variables["params"][f"rnns_{i}"]}
        run = jax.jit(partial(rnn.apply, return_carry=True))
        carry, expected = run(own, expected, initial_carry=start, mask=MASK)
        close(carries[i], carry)
    close(y, expected)
    with pytest.raises(ValueError, match="initial_carry must hold a carry for each of 3 layers"):
        stack.apply(variables, X, initial_carry=starts[:2])


def test_layers_of_a_stack_share_the_parameters_of_one_cell():
    x = jnp.ones((2, 6, RMC.output_size))
    for cell, names in ((RMC, {"rnns_0"}), (RMC.copy(), {"rnns_0", "rnns_1"})):
        stack = RNNStack([RNN(RMC), RNN(cell)])
        assert set(jax.eval_shape(stack.init, jax.random.key(0), x)["params"]) == names


@pytest.mark.slow
def test_layers_by_scan():
    """As many equal layers as one likes, compiled once: parameters get an axis in front."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return RNN(RMC, implementation="hoisted")(x), None

    layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    x = normal(np.random.default_rng(1), (2, 6, 24))
    variables = random_variables(layers, x, None)
    found, _ = jax.jit(layers.apply)(variables, x, None)
    expected = x
    apply = jax.jit(Layer().apply)
    for i in range(3):
        own = jax.tree.map(lambda p, i=i: p[i], variables)
        expected, _ = apply(own, expected, None)
    close(found, expected)


def test_an_ensemble_by_vmap():
    members = nn.vmap(
        RNN,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )(RMC, implementation="hoisted")
    variables = random_variables(members, X)
    found = jax.jit(members.apply)(variables, X)
    assert found.shape == (3, 2, 6, 24)
    apply = jax.jit(RNN(RMC).apply)
    for i in range(3):
        close(found[i], apply(jax.tree.map(lambda p, i=i: p[i], variables), X))


def test_a_shared_scope():
    class Core(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            rnn = RNN(RMC)
            nn.share_scope(self, rnn)
            return rnn(x)

    variables = random_variables(Core(), X)
    made = jax.eval_shape(RNN(RMC).init, jax.random.key(0), X)
    assert jax.tree.structure(variables) == jax.tree.structure(made)
    close(jax.jit(Core().apply)(variables, X), jax.jit(RNN(RMC).apply)(variables, X))


def test_the_layer_as_an_nnx_module():
    from flax import nnx

    @nnx.jit
    def create(x):
        return nnx.bridge.lazy_init(nnx.bridge.ToNNX(RNN(RMC), rngs=nnx.Rngs(0)), x)

    model = create(X)
    y = nnx.jit(lambda model, x: model(x, mask=MASK))(model, X)
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    close(y, jax.jit(RNN(RMC).apply)({"params": state}, X, mask=MASK))


def test_the_cell_within_nnx_rnn():
    """`ToNNX` hands on methods only, so that `nnx.RNN` wants this small adapter."""
    from flax import nnx

    class Cell(nnx.bridge.ToNNX):
        @property
        def num_feature_axes(self) -> int:
            return self.to_nnx__module.num_feature_axes

        def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> Any:
            key = jax.random.key(0) if rngs is None else rngs()
            return self.to_nnx__module.initialize_carry(key, input_shape)

    @nnx.jit
    def create(x):
        cell = Cell(RMC, rngs=nnx.Rngs(0))
        return nnx.bridge.lazy_init(cell, cell.initialize_carry((2, 5)), x)

    cell = create(X[:, 0])
    y = nnx.jit(lambda rnn, x: rnn(x))(nnx.RNN(cell, rngs=nnx.Rngs(1)), X)
    state = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    close(y, jax.jit(RNN(RMC).apply)({"params": {"cell": state}}, X))


def test_parameters_through_orbax(tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    variables = random_variables(RNN(RMC.clone(learned_carry=True)), X)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path.resolve() / "core", variables)
        checkpointer.wait_until_finished()
        again = checkpointer.restore(tmp_path.resolve() / "core", variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_parameters_through_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.flax")
    variables = random_variables(RNN(RMC), X)
    flat = flatten_dict(variables, sep="/")
    safetensors.save_file(flat, tmp_path / "core.safetensors")
    again = unflatten_dict(safetensors.load_file(tmp_path / "core.safetensors"), sep="/")
    jax.tree.map(np.testing.assert_array_equal, again, variables)
