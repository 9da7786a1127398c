"""The operations of a step: values and derivatives in both modes, however they are taken."""

import itertools
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.attention import LAYER_NORM_EPSILON
from rrnn_jax.scan.relational import operations
from tests.core.random_variables import normal
from tests.grids import mostly_slow

RNG = np.random.default_rng(0)
ROWS, KERNEL, HEADS = (normal(RNG, shape) for shape in ((3, 5, 4), (4, 6), (2, 3, 5, 4)))
SOME = jnp.array([True, False, True, True, False])


def multiply(cpu: bool, rows: Any, kernel: Any) -> jax.Array:
    return operations.multiply(cpu, rows, kernel, kernel.astype(rows.dtype), None)


def norm_by_autodiff(x: Any, scale: Any, bias: Any) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normal = centred / jnp.sqrt(variance + LAYER_NORM_EPSILON)
    return normal * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)


def attend(present: Any) -> Any:
    return lambda cpu, *args: operations.attend(cpu, *args, present)


def attention_by_autodiff(query: Any, key: Any, value: Any, present: Any = True) -> tuple:
    logits = jnp.einsum("bhqk,bhmk->bhqm", query, key) / 2
    weights = jax.nn.softmax(jnp.where(present, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bhqm,bhmd->bhqd", weights, value), weights


# Name: the operation, the same by ordinary means, and arguments.
CASES = {
    "multiply": (multiply, lambda x, k: x @ k, (ROWS, KERNEL)),
    "add_bias": (operations.add_bias, lambda x, b: x + b.reshape(1, 1, 4), (ROWS, KERNEL[:, 0])),
    "layer_norm": (operations.layer_norm, norm_by_autodiff, (ROWS, KERNEL[:, 0], KERNEL[:, 1])),
    "relu": (lambda cpu, x: operations.relu(x), jax.nn.relu, (ROWS,)),
    "sigmoid": (lambda cpu, x: operations.sigmoid(x), jax.nn.sigmoid, (ROWS,)),
    "attend": (attend(None), attention_by_autodiff, (HEADS[:, :, :3], HEADS, HEADS[::-1])),
    "attend to some": (
        attend(SOME),
        lambda *args: attention_by_autodiff(*args, SOME),
        (HEADS[:, :, :3], HEADS, HEADS[::-1]),
    ),
}


def derivatives(function: Any, args: tuple) -> Any:
    """Values and derivatives of first and second order, in every mixture of modes."""
    tangents = jax.tree.map(jnp.sin, args)

    def total(*args: Any) -> Any:
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(function(*args)))

    def gradient(*args: Any) -> Any:
        return jax.grad(total, argnums=tuple(range(len(args))))(*args)

    def forward(*args: Any) -> Any:
        return jax.jvp(function, args, tangents)[1]

    def total_of(function: Any) -> Any:
        return lambda *args: sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(function(*args)))

    return {
        "value": function(*args),
        "forward": forward(*args),
        "reverse": gradient(*args),
        "forward over forward": jax.jvp(forward, args, tangents)[1],
        "forward over reverse": jax.jvp(gradient, args, tangents)[1],
        "reverse over reverse": jax.grad(total_of(gradient))(*args),
        "reverse over forward": jax.grad(total_of(forward))(*args),
    }


assert_close = partial(chex.assert_trees_all_close, rtol=1e-3, atol=1e-4)


@cache
def expected_derivatives(name: str) -> Any:
    _, plain, args = CASES[name]
    return jax.jit(lambda *args: derivatives(plain, args))(*args)


@pytest.mark.parametrize(
    ("name", "cpu"),
    mostly_slow(itertools.product(CASES, (False, True)), keep=[(name, True) for name in CASES]),
)
def test_derivatives_of_both_orders(name, cpu):
    operation, _, args = CASES[name]
    found = jax.jit(lambda *args: derivatives(lambda *args: operation(cpu, *args), args))(*args)
    for kind, value in expected_derivatives(name).items():
        assert_close(found[kind], value)


@pytest.mark.parametrize("name", CASES)
def test_batched_by_vmap(name):
    operation, plain, args = CASES[name]

    def gradients(function: Any) -> Any:
        def loss(*args: Any) -> Any:
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(function(*args)))

        first = jax.tree.map(lambda x: jnp.stack([x, jnp.cos(x)]), args[0])
        axes = (0, *[None] * (len(args) - 1))
        batched = jax.vmap(function, in_axes=axes)
        inner = jax.vmap(jax.grad(loss, argnums=tuple(range(len(args)))), in_axes=axes)
        outer = jax.grad(
            lambda *args: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(batched(*args))),
            argnums=tuple(range(len(args))),
        )
        return jax.jit(lambda *args: (inner(*args), outer(*args)))(first, *args[1:])

    assert_close(gradients(lambda *args: operation(True, *args)), gradients(plain))


@pytest.mark.parametrize("cpu", [False, True])
def test_gradients_by_hand(cpu):
    g = normal(RNG, (3, 5, 6))
    product, vjp = jax.vjp(lambda rows, kernel: multiply(cpu, rows, kernel), ROWS, KERNEL)
    d_rows, d_kernel = vjp(g)
    np.testing.assert_allclose(product, np.asarray(ROWS) @ np.asarray(KERNEL), rtol=1e-5)
    np.testing.assert_allclose(d_rows, np.asarray(g) @ np.asarray(KERNEL).T, rtol=1e-5, atol=1e-6)
    expected = np.einsum("abf,abn->fn", ROWS, g)
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-5, atol=1e-6)
