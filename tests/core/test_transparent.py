"""The fast path within JAX's and Flax's transformations, or the plain scan in its place."""

import dataclasses
import gc
import weakref
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export

from rrnn_jax import RNN, Bidirectional, RelationalMemoryCell, RNNStack
from tests.core.choices import chosen
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

B, T, I = 4, 6, 3  # noqa: E741 - axis letters
CELL: Any = RelationalMemoryCell(mem_slots=2, head_size=4, num_heads=2, attention_mlp_layers=1)
X = normal(np.random.default_rng(0), (B, T, I))
RESETS = jnp.asarray(np.random.default_rng(1).random((B, T)) < 0.3)
MASK = jnp.asarray(np.random.default_rng(2).random((B, T)) < 0.7)


def variables_of(cell: Any = CELL, x: Any = X) -> Any:
    return random_variables(RNN(cell), x)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


# Arguments of the call besides the inputs, and options of the layer.
EXPORTED = {
    "nothing": ((), {}),
    "all flags": (("resets", "mask", "seq_lengths"), {"return_carry": True}),
    "time-major": (("resets",), {"time_major": True}),
    "chunked": (("mask",), {"remat": "chunked"}),
}


@pytest.mark.parametrize("name", mostly_slow(EXPORTED, keep=["all flags"]))
def test_export_for_any_batch_and_length(name):
    names, options = EXPORTED[name]
    cell = CELL.clone(output_gate=True) if name == "all flags" else CELL
    rnn = RNN(cell, **options)
    variables = variables_of(cell)
    given = {"resets": RESETS, "mask": MASK, "seq_lengths": jnp.asarray([2, 6, 1, 4])}
    lead = "t, b" if rnn.time_major else "b, t"
    scope = export.SymbolicScope()

    def loss(variables: Any, x: Any, flags: Any) -> Any:
        result = rnn.apply(variables, x, **flags)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(result)), result

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    shapes = {n: "b" if n == "seq_lengths" else lead for n in names}
    flags = {
        n: jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), given[n].dtype)
        for n, shape in shapes.items()
    }
    x = jax.ShapeDtypeStruct(export.symbolic_shape(f"{lead}, {I}", scope=scope), X.dtype)
    exported = export.export(gradient)(variables, x, flags)
    if name == "nothing":  # Through a file.
        exported = export.deserialize(exported.serialize())
    assert {str(n) for aval in exported.in_avals for n in aval.shape} >= {"b", "t"}
    batch, steps = 3, 5
    some = {n: given[n][:batch] for n in names}
    some = {n: f if n == "seq_lengths" else f[:, :steps] for n, f in some.items()}
    if "seq_lengths" in some:
        some["seq_lengths"] = jnp.minimum(some["seq_lengths"], steps)
    inputs = X[:batch, :steps]
    if rnn.time_major:
        inputs, some = jnp.swapaxes(inputs, 0, 1), {n: f.T for n, f in some.items()}
    assert_close(exported.call(variables, inputs, some), gradient(variables, inputs, some), 1e-4)


def test_auto_hoists_what_has_symbolic_sizes():
    shape = export.symbolic_shape(f"b, t, {I}")
    assert chosen(RNN(CELL), jax.ShapeDtypeStruct(shape, jnp.float32)) == "hoisted"


def test_interceptors_and_captured_calls_run_the_plain_scan():
    variables = variables_of()
    called = []

    def interceptor(next_method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_method(*args, **kwargs)
        if isinstance(context.module, nn.Dense):
            called.append(context.module.name)
            return 2 * result
        return result

    plain, fast = (RNN(CELL, implementation=name) for name in ("scan", "auto"))
    with nn.intercept_methods(interceptor):
        expected = jax.jit(plain.apply)(variables, X)
        called.clear()
        actual = jax.jit(fast.apply)(variables, X)
        with pytest.raises(ValueError, match=r"'hoisted' .*intercept_methods is active"):
            RNN(CELL, implementation="hoisted").apply(variables, X)
    assert "qkv" in called
    assert_close(actual, expected)
    undoubled = jax.jit(lambda *args: fast.apply(*args))(variables, X)  # Traced again.
    assert float(jnp.max(jnp.abs(actual - undoubled))) > 1e-3
    captures = partial(fast.apply, capture_intermediates=True)
    _, state = jax.eval_shape(captures, variables, X)
    assert "memory" in state["intermediates"]["cell"]


@pytest.mark.slow
def test_no_tracer_leaks_and_no_cell_stays_alive():
    def loss(scale: Any, variables: Any) -> Any:
        cell = CELL.clone(carry_init=lambda key, shape, dtype: scale * jnp.ones(shape, dtype))
        return jnp.sum(RNN(cell).apply(variables, X, resets=RESETS) ** 2)

    variables = variables_of()
    with jax.checking_leaks():
        found = jax.jit(jax.grad(loss))(1.0, variables)
    assert float(jnp.abs(found)) > 0
    cell = RelationalMemoryCell(mem_slots=2, head_size=4, num_heads=2, attention_mlp_layers=1)
    alive = weakref.ref(cell)
    jax.jit(RNN(cell).apply)(variables, X)
    del cell
    jax.clear_caches()
    gc.collect()
    assert alive() is None


class _OwnStart(RelationalMemoryCell):
    """Starts elsewhere, and has a method of its own."""

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: Any) -> Any:
        return 0.5 + super().initialize_carry(rng, input_shape)

    def helper(self) -> int:
        return self.mem_slots


class _OwnStep(RelationalMemoryCell):
    @nn.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        carry, y = super().__call__(carry, inputs)
        return carry, 2 * y


def test_subclasses():
    options: dict[str, Any] = {"mem_slots": 2, "head_size": 4, "num_heads": 2}
    options["attention_mlp_layers"] = 1
    assert chosen(RNN(_OwnStart(**options)), X) == "hoisted"
    assert chosen(RNN(_OwnStep(**options)), X) == "scan"
    assert chosen(RNN(nn.remat(RelationalMemoryCell)(**options)), X) == "scan"
    variables = variables_of()
    for cell in (_OwnStart(**options), _OwnStep(**options)):
        fast, plain = (
            jax.jit(rnn.apply)(variables, X, resets=RESETS)
            for rnn in (RNN(cell), RNN(cell, implementation="scan"))
        )
        assert_close(fast, plain)
    with pytest.raises(ValueError, match=r"got _OwnStep, which overrides __call__"):
        RNN(_OwnStep(**options), implementation="hoisted").init(jax.random.key(0), X)


class _OwnInputs(RelationalMemoryCell):
    """Multiplies wider inputs than it gets, and has attributes of its own, one set later."""

    doubled: bool = None  # type: ignore[assignment]
    known: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "known", True)

    @nn.compact
    def __call__(self, carry: Any, inputs: Any) -> Any:
        return super().__call__(carry, jnp.concatenate([inputs, inputs], axis=-1))


def test_inputs_that_a_subclass_or_an_interceptor_changes():
    cell = _OwnInputs(mem_slots=2, head_size=4, num_heads=2, attention_mlp_layers=1)
    twice = jnp.concatenate([X, X], axis=-1)
    variables = jax.eval_shape(RNN(CELL).init, jax.random.key(0), twice)
    assert jax.eval_shape(RNN(cell).apply, variables, X).shape == (B, T, 16)

    def first_features(call: Any, args: tuple, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, RelationalMemoryCell) and context.method_name == "__call__":
            args = args[0], args[1][..., : 2 * I]
        return call(*args, **kwargs)

    wider = jnp.concatenate([twice, X], axis=-1)
    with nn.intercept_methods(first_features):
        assert jax.eval_shape(RNN(CELL).apply, variables, wider).shape == (B, T, 16)
    with pytest.raises(ValueError, match="inputs must have 6 features"):
        jax.eval_shape(RNN(CELL).apply, variables, wider)


class _Dropping(nn.RNNCellBase):
    """A cell that draws random numbers."""

    @nn.compact
    def __call__(self, carry: Any, x: Any) -> Any:
        carry = carry + nn.Dropout(0.5, deterministic=False)(x)
        return carry, carry

    @nn.nowrap
    def initialize_carry(self, rng: Any, input_shape: Any) -> Any:
        return jnp.zeros(input_shape)

    num_feature_axes = 1


def test_chunks_that_would_be_another_function_are_refused():
    rngs = {"dropout": jax.random.key(1)}
    rnn = RNN(_Dropping(), remat="full", split_rngs={"params": False, "dropout": True})
    expected = jax.jit(rnn.clone(remat="none").apply)({}, X, rngs=rngs)
    np.testing.assert_array_equal(jax.jit(rnn.apply)({}, X, rngs=rngs), expected)
    with pytest.raises(ValueError, match=r"other random numbers .*_Dropping .*use remat='full'"):
        rnn.clone(remat="chunked").apply({}, X, rngs=rngs)
    untied: dict[str, Any] = {"variable_axes": {"params": 0}, "variable_broadcast": False}
    rnn = RNN(CELL, remat="chunked", split_rngs={"params": True}, **untied)
    variables = random_variables(rnn, X)
    with pytest.raises(ValueError, match=r"'chunked' needs variables that all steps share"):
        rnn.apply(variables, X)
    # Other parts of a model may draw.
    chunked = RNN(CELL, remat="chunked", implementation="scan")
    jax.eval_shape(partial(chunked.apply, rngs=rngs), variables_of(), X)


LONG = 300  # More steps than 8 bits count to.


def final_carries(kind: str) -> Any:
    """A function of variables and lengths that gives final carries, and variables for it."""
    cell = nn.GRUCell(3)
    module: Any = {
        "gru": RNN(cell, return_carry=True),
        "rmc": RNN(CELL, return_carry=True),
        "backwards": RNN(cell, return_carry=True, reverse=True, keep_order=True),
        "both directions": Bidirectional(RNN(cell), RNN(cell.copy()), return_carry=True),
        "stack": RNNStack([RNN(cell), RNN(cell.copy())]),
    }[kind]
    x = jnp.tile(X[:2], (1, LONG // T, 1))
    options = {"return_carry": True} if kind == "stack" else {}

    def run(variables: Any, lengths: Any) -> Any:
        return module.apply(variables, x, seq_lengths=lengths, **options)[0]

    return run, random_variables(module, x)


KINDS = ("gru", "rmc", "backwards", "both directions", "stack")


@pytest.mark.parametrize("kind", mostly_slow(KINDS, keep=["both directions"]))
def test_lengths_of_any_integer_dtype(kind):
    run, variables = final_carries(kind)
    quick = jax.jit(run)
    for lengths, dtype in (([20, 250], np.uint8), ([20, 120], np.int8)):
        expected = quick(variables, np.asarray(lengths, np.int32))
        assert_close(quick(variables, np.asarray(lengths, dtype)), expected, 1e-6)
    # NumPy's own integers, which JAX would warn of.
    jax.eval_shape(lambda variables: run(variables, np.asarray([20, 250])), variables)


def test_lengths_beyond_the_sequence_are_its_own():
    run = jax.jit(RNN(CELL, reverse=True).apply)
    B, T = X.shape[:2]
    expected = run(variables_of(), X, seq_lengths=np.full(B, T, np.int32))
    assert_close(
        run(variables_of(), X, seq_lengths=np.arange(T, T + B, dtype=np.int32)), expected, 1e-6
    )


def test_explicit_fused_on_a_cpu_says_so():
    variables = variables_of()
    rnn = RNN(CELL, implementation="fused")
    with pytest.warns(UserWarning, match="'fused' is interpreted .*implementation='auto' picks"):
        jax.eval_shape(rnn.apply, variables, X[:, :2])


def test_explain_says_what_runs_and_why():
    variables = variables_of()
    flags = {"resets": RESETS, "time_major": False}
    found = RNN(CELL).apply(variables, X, method="explain", **flags)
    assert str(found).startswith("'hoisted' runs; 'cuda' ")
    assert "; 'fused' needs an NVIDIA GPU" in str(found)
    split = {"params": True}
    found = RNN(CELL, split_rngs=split, variable_axes={"params": 0}).apply(
        variables, X, method="explain"
    )
    assert str(found).startswith("'scan' runs; ")
    assert "'hoisted' needs the same params in all steps" in str(found)
    found = RNN(nn.GRUCell(4)).init_with_output(jax.random.key(0), X, method="explain")[0]
    assert found == "'scan' runs"
    found = RNN(CELL).apply(variables, X, method="explain", return_all_carries=True)
    assert str(found).startswith("'hoisted' runs; ")
    with pytest.raises(ValueError, match=r"must be called as rnn\.apply\(.*method=\"explain\"\)"):
        RNN(CELL).explain(X)
    with pytest.raises(ValueError, match=r"must be called as rnn\.apply\(variables, inputs\)"):
        RNN(CELL)(X)
