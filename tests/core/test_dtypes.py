"""Every mix of dtypes works, strictly promoted, in float32 and under x64, with the same results."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.envs import BoxWorld, MiniPacman
from rrnn_jax.scan import relational
from rrnn_jax.tasks import nth_farthest
from tests.core.random_variables import random_variables
from tests.grids import mostly_slow

LOW = (jnp.bfloat16, jnp.float16)
X = np.random.default_rng(0).normal(size=(3, 4, 5))
FLAGS = jnp.asarray(np.random.default_rng(1).random((3, 4)) < 0.5)
CELL = RelationalMemoryCell(mem_slots=3, head_size=4, num_heads=2, attention_mlp_layers=1)


def mixes(wide: Any) -> list[tuple]:
    """dtype, param_dtype, dtype of inputs, of the initial carry (None: the cell's own)."""
    some = (wide, jnp.bfloat16, jnp.float16)
    return list(itertools.product((None, wide, jnp.bfloat16), some[:2], some, (None, *some)))


@pytest.mark.parametrize("output_gate", mostly_slow([False, True], keep=[True]))
def test_arrays_of_numpy_in_double_precision(output_gate):
    cell = CELL.clone(output_gate=output_gate)
    carry = cell.initialize_carry(jax.random.key(0), (3, 5))
    variables = random_variables(cell, carry, jnp.asarray(X[:, 0]))
    expected = jax.jit(cell.apply)(variables, carry, X[:, 0])
    doubles = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), carry)
    # The arrays are constants: `jax.jit` hands arguments over in single precision.
    found = jax.jit(lambda: cell.apply(variables, doubles, X[:, 0]))()
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), found, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


def check(mix: tuple, implementation: str, output_gate: bool) -> None:
    """Traces a run: nothing is promoted without a word, and dtypes are those of the table."""
    dtype, param_dtype, input_dtype, carry_dtype = mix
    cell = CELL.clone(dtype=dtype, param_dtype=param_dtype, output_gate=output_gate)
    rnn = RNN(cell, implementation=implementation, return_carry=True)

    def run(key: jax.Array, x: jax.Array) -> tuple:
        start = cell.initialize_carry(key, (3, 5))
        if carry_dtype is not None:
            start = jax.tree.map(lambda m: m.astype(carry_dtype), start)
        variables = rnn.init(key, x)
        y = rnn.apply(variables, x, initial_carry=start, resets=FLAGS, mask=~FLAGS)
        return start, *y

    x = jax.ShapeDtypeStruct(X.shape, input_dtype)
    start, carry, y = jax.eval_shape(run, jax.random.key(0), x)
    first, *others = jax.tree.leaves(start)
    own = np.promote_types(np.float32, param_dtype if param_dtype == jnp.float64 else np.float32)
    assert first.dtype == (own if carry_dtype is None else carry_dtype)
    for leaf in (*others, *jax.tree.leaves(carry)):
        assert leaf.dtype == first.dtype, mix
    assert y.dtype == (first.dtype if dtype is None else dtype), mix


@pytest.mark.parametrize(
    ("implementation", "output_gate"),
    mostly_slow(
        itertools.product(("scan", "hoisted"), (False, True)),
        keep=[("hoisted", True)],
    ),
)
def test_dtypes_are_those_of_the_table(implementation, output_gate):
    for mix in mixes(jnp.float32)[::7]:
        check(mix, implementation, output_gate)


@pytest.mark.parametrize("implementation", mostly_slow(["scan", "hoisted"], keep=["hoisted"]))
def test_dtypes_under_x64(implementation):
    with jax.enable_x64(True):
        for mix in mixes(jnp.float64)[::11]:
            check(mix, implementation, output_gate=True)


def test_captured_values_have_equal_dtypes_under_x64():
    def captured(implementation: str, key: jax.Array, x: jax.Array) -> Any:
        rnn = RNN(CELL, implementation=implementation)
        return rnn.apply(rnn.init(key, x), x, mutable=["intermediates"])[1]

    with jax.enable_x64(True):
        args = jax.random.key(0), jax.ShapeDtypeStruct(X.shape, jnp.float64)
        plain, fast = (
            jax.eval_shape(partial(captured, name), *args) for name in ("scan", "hoisted")
        )
    assert plain == fast


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "mix", [(None, jnp.float32, jnp.float32, jnp.float64), (jnp.bfloat16, jnp.float64, *[None] * 2)]
)
def test_gradients_have_the_dtypes_of_what_they_belong_to(mix, large, monkeypatch):
    """Of kernels of any size, narrower or wider than the products are."""
    monkeypatch.setattr(relational, "_has_large_kernels", lambda *_: large)
    dtype, param_dtype, input_dtype, carry_dtype = mix
    with jax.enable_x64(True):
        cell = CELL.clone(dtype=dtype, param_dtype=param_dtype)
        rnn = RNN(cell, implementation="hoisted")
        x = jnp.asarray(X, input_dtype)
        start = jnp.zeros((3, 3, 8), carry_dtype)
        variables = jax.eval_shape(rnn.init, jax.random.key(0), x)
        args = (variables, x, start)
        gradient = jax.grad(
            lambda v, x, m: rnn.apply(v, x, initial_carry=m).astype(jnp.float32).sum(), (0, 1, 2)
        )
        found = jax.eval_shape(gradient, *args)
    for leaf, like in zip(*map(jax.tree.leaves, (found, args)), strict=True):
        assert leaf.dtype == like.dtype


ENVS = [BoxWorld(grid_size=6, solution_length=(1,), num_distractors=(0,)), MiniPacman()]


@pytest.mark.parametrize("env", mostly_slow(ENVS, keep=ENVS[1:]))
def test_an_environment_is_the_same_under_x64(env):
    def play(key: jax.Array) -> Any:
        observation, state = env.reset(key)
        return observation, env.step(key, state, jnp.int32(1))[:3]

    expected = jax.jit(play)(jax.random.key(0))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        found = jax.jit(play)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_task_keeps_its_dtypes_under_x64():
    with jax.enable_x64(True):
        draw = partial(nth_farthest.sample, config=nth_farthest.Config(), batch_size=2)
        batch = jax.eval_shape(draw, jax.random.key(0))
    assert (batch.inputs.dtype, batch.targets.dtype) == (jnp.float32, jnp.int32)


@pytest.mark.parametrize("implementation", mostly_slow(["scan", "hoisted"], keep=["hoisted"]))
def test_inputs_of_integers_are_numbers(implementation):
    rnn = RNN(CELL, implementation=implementation)
    x = jnp.arange(60).reshape(3, 4, 5)
    variables = random_variables(rnn, x.astype(jnp.float32))
    found = jax.jit(rnn.apply)(variables, x)
    assert found.dtype == jnp.float32
    expected = jax.jit(rnn.apply)(variables, x.astype(jnp.float32))
    np.testing.assert_array_equal(found, expected)


SHORT = (jnp.float32, jnp.bfloat16)


@pytest.mark.parametrize(
    ("param_dtype", "input_dtype", "carry_dtype", "batch"),
    mostly_slow(
        [
            *itertools.product(SHORT, SHORT, SHORT, (3,)),
            (jnp.bfloat16, jnp.bfloat16, *SHORT[1:], 1),
        ],
        keep=[(*SHORT, jnp.float32, 3)],
    ),
)
def test_every_path_rounds_alike(param_dtype, input_dtype, carry_dtype, batch):
    """Without a dtype of its own the cell multiplies in what inputs, memory and weights have."""
    x = jnp.asarray(X[:batch], input_dtype)
    plain = RNN(CELL, implementation="scan")
    variables = random_variables(plain, x)
    start = CELL.initialize_carry(jax.random.key(0), x[:, 0].shape)
    exact = jax.jit(plain.apply)(variables, x.astype(jnp.float32), initial_carry=start)
    variables = jax.tree.map(lambda p: p.astype(param_dtype), variables)
    start, found = start.astype(carry_dtype), []
    for implementation in ("scan", "hoisted"):
        run = jax.jit(plain.clone(implementation=implementation).apply)
        found.append(run(variables, x, initial_carry=start))
    assert found[0].dtype == found[1].dtype
    errors = [float(jnp.abs(y.astype(jnp.float32) - exact).max()) for y in found]
    assert errors[1] < 1.5 * errors[0] + 1e-5
    assert errors[0] < 0.1
