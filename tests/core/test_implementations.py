"""The choice of implementation, and that all accept and reject the same calls."""

import itertools
from functools import partial
from typing import Any

import chex
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.gating import STYLES, Style
from rrnn_jax.scan.cuda.support import unfit
from tests.core.choices import chosen
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

B, T, I = 4, 3, 5  # noqa: E741 - axis letters
CELL: Any = RelationalMemoryCell(
    mem_slots=2, head_size=2, num_heads=2, attention_mlp_layers=1, dtype=jnp.float32
)
X = normal(np.random.default_rng(0), (B, T, I))
UNTIED = {"variable_axes": {"params": 0}, "variable_broadcast": False}
SPLIT = {"split_rngs": {"params": True}}


def is_hoisted(rnn: RNN, x: Any, **flags: Any) -> bool:
    return chosen(rnn, x, **flags) == "hoisted"


def test_steps_with_weights_of_their_own():
    ours, theirs = RNN(CELL, **UNTIED, **SPLIT), nn.RNN(CELL, **UNTIED, **SPLIT)
    variables = random_variables(ours, X)
    assert variables["params"]["cell"]["input_projection"]["kernel"].shape == (T, I, 4)
    actual, expected = (jax.jit(rnn.apply)(variables, X) for rnn in (ours, theirs))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("variable_axes", UNTIED),
        ("variable_axes", {"variable_axes": {("params", "other"): 0}}),
        ("variable_carry", {"variable_carry": "params", "variable_broadcast": False}),
        ("variable_broadcast", {"variable_broadcast": "other"}),
    ],
)
def test_hoisted_needs_weights_that_all_steps_share(name, options):
    with pytest.raises(ValueError, match=f"same params in all steps, got {name}="):
        RNN(CELL, implementation="hoisted", **options, **SPLIT).init(jax.random.key(0), X)


def test_what_else_is_lifted_does_not_matter():
    for options in ({"variable_broadcast": True}, {"variable_axes": {"intermediates": 1}}):
        assert is_hoisted(RNN(CELL, **options), X)


def test_a_new_gate_style_runs_in_both_scans_and_no_kernel(monkeypatch):
    def mean_of_slots(scalars: Any) -> Any:
        return jnp.mean(scalars, axis=-2, keepdims=True)

    monkeypatch.setitem(STYLES, "shared", Style(lambda features: 1, mean_of_slots))
    cell = CELL.clone(gate_style="shared")
    variables = random_variables(RNN(cell), X)

    def gradient(implementation: str) -> Any:
        rnn = RNN(cell, implementation=implementation)

        def loss(variables: Any) -> Any:
            y, state = rnn.apply(variables, X, mutable=["intermediates"])
            return jnp.sum(jnp.square(y)), (y, state["intermediates"]["cell"]["input_gate"][0])

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    expected, actual = gradient("scan"), gradient("hoisted")
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert expected[0][1][1].shape == (B, T, 1, 1)
    assert "'fused' needs gate_style 'unit' or 'memory', got 'shared'" in RNN(cell).apply(
        variables, X, method="explain"
    )
    assert "got 'shared'" in str(unfit(cell))


def without(params: dict, name: str) -> dict:
    """The parameters without what has that name, wherever it is."""
    return {
        key: without(value, name) if isinstance(value, dict) else value
        for key, value in params.items()
        if key != name
    }


MATRIX = CELL.clone(matrix_inputs=True)
# A cell, a change of its parameters, and inputs that do not fit them.
WRONG = {
    "nothing": (CELL, lambda params: None, X),
    "empty": (CELL, lambda params: {}, X),
    "no bias": (CELL, lambda params: without(params, "bias"), X),
    "no MLP": (CELL, lambda params: without(params, "mlp"), X),
    "heads": (CELL.clone(head_size=3), lambda params: params, X),
    "rows": (MATRIX, lambda params: params, jnp.ones((B, T, 5, X.shape[-1]))),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_raise_what_flax_raises(name):
    cell, change, x = WRONG[name]
    made_for = X[..., None, :] if cell.matrix_inputs else X
    params = change(random_variables(RNN(CELL.clone(matrix_inputs=cell.matrix_inputs)), made_for))
    errors = []
    for implementation in ("scan", "hoisted"):
        with pytest.raises(flax.errors.FlaxError) as caught:
            RNN(cell, implementation=implementation).apply(params or {}, x)
        errors.append(caught.value)
    assert type(errors[0]) is type(errors[1])
    assert "input_projection" in str(errors[1]) or name in ("nothing", "empty", "no MLP", "rows")


def test_boxes_and_needless_parameters_are_no_obstacle():
    boxed = CELL.clone(kernel_init=nn.with_partitioning(CELL.kernel_init, (None, None)))
    variables = random_variables(RNN(boxed), X)
    variables["params"]["cell"]["more"] = jnp.ones(3)
    rnn = RNN(boxed, implementation="hoisted")
    assert is_hoisted(rnn, X)
    plain = RNN(CELL, implementation="scan")
    expected = jax.jit(plain.apply)(nn.meta.unbox(variables), X)
    np.testing.assert_allclose(jax.jit(rnn.apply)(variables, X), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_])
def test_chunks_of_integers(dtype):
    x = (X > 0).astype(dtype)

    def gradient(implementation: str, remat: Any) -> Any:
        rnn = RNN(CELL, implementation=implementation, remat=remat)
        return jax.jit(jax.grad(lambda v: jnp.sum(jnp.square(rnn.apply(v, x)))))(variables)

    variables = random_variables(RNN(CELL), X)
    expected = gradient("scan", "none")
    for implementation in ("scan", "hoisted"):
        actual = gradient(implementation, "chunked")
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), actual, expected)


@pytest.mark.parametrize(
    ("shape", "implementation"),
    mostly_slow(
        itertools.product(((0, T, I), (B, 0, I), (0, 0, I), (2, 0, T, I)), ("scan", "hoisted")),
        keep=[((B, 0, I), "hoisted")],
    ),
)
def test_of_nothing_comes_nothing(implementation, shape):
    rnn = RNN(CELL, implementation=implementation, return_carry=True)
    variables = random_variables(RNN(CELL), X)
    x, flags = jnp.zeros(shape), jnp.ones(shape[:-1], bool)
    first = normal(np.random.default_rng(1), (*shape[:-2], 2, 4))
    for options in (
        {},
        {"mask": flags, "resets": flags, "return_all_carries": True},
        {"resets": flags, "reverse": True, "keep_order": True},
        {"seq_lengths": jnp.zeros(shape[:-2], jnp.int32), "reverse": True},
    ):
        run = jax.jit(partial(rnn.apply, **options))
        carry, *_, y = run(variables, x, initial_carry=first)
        assert y.shape == (*shape[:-1], 8)
        np.testing.assert_array_equal(carry, first)
    chunked = rnn.clone(remat="chunked")
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(chunked.apply(v, x)[1])))(variables)
    assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_vmapped_members():
    """Each member has its own weights and inputs, as when several seeds are trained together."""
    members = [random_variables(RNN(CELL), X, seed=seed) for seed in (0, 1)]
    variables = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    x = jnp.stack([X, X[::-1]])

    def value_and_gradient(implementation: str) -> Any:
        rnn = RNN(CELL, implementation=implementation)

        def loss(variables: Any, x: Any) -> Any:
            y = rnn.apply(variables, x)
            return jnp.sum(jnp.square(y)), y

        differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(jax.vmap(differentiate))(variables, x)

    actual, expected = value_and_gradient("hoisted"), value_and_gradient("scan")
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", mostly_slow(["forget_bias", "input_bias"], keep=["forget_bias"]))
def test_a_bias_that_is_an_array_is_differentiated(name):
    variables = random_variables(RNN(CELL), X)

    def loss(bias: Any, implementation: str = "auto") -> Any:
        rnn = RNN(CELL.clone(**{name: bias}), implementation=implementation)
        return jnp.mean(jnp.square(rnn.apply(variables, X)))

    biases = jnp.array([-1.0, 0.5])
    plain = jax.jit(partial(loss, implementation="scan"))
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(loss)))(biases)
    for bias, value, slope in zip(biases, values, slopes, strict=True):
        bias = float(bias)
        np.testing.assert_allclose(value, jax.jit(partial(loss, bias))(), rtol=1e-5)
        near = plain(bias + 0.01) - plain(bias - 0.01)
        np.testing.assert_allclose(slope, near / 0.02, rtol=1e-2)

    cell = CELL.clone(**{name: biases[0]})
    message = f"needs a Python or NumPy number for {name}, got an array of float32"
    for implementation in ("hoisted", "fused", "cuda"):
        with pytest.raises(ValueError, match=f"implementation='{implementation}' {message}"):
            RNN(cell, implementation=implementation).apply(variables, X)
    assert f"'hoisted' {message}" in RNN(cell).apply(variables, X, method="explain")
    assert is_hoisted(RNN(CELL.clone(**{name: np.float32(0.5)})), X)
