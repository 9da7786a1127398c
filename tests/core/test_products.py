"""Products of rows with a kernel or a vector: their gradients, however they are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.attention import LAYER_NORM_EPSILON
from rrnn_jax.scan.products import multiply_rows
from rrnn_jax.scan.reductions import sum_rows, weighted_mean
from rrnn_jax.scan.tape import layer_norm

ROWS = jax.random.normal(jax.random.key(0), (3, 5, 4))
KERNEL = jax.random.normal(jax.random.key(1), (4, 6))
G = jax.random.normal(jax.random.key(2), (3, 5, 6))


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_by_hand(transpose):
    product, vjp = jax.vjp(
        lambda rows, kernel: multiply_rows(rows, kernel, jnp.float32, transpose), ROWS, KERNEL
    )
    d_rows, d_kernel = vjp(G)
    np.testing.assert_allclose(product, np.asarray(ROWS) @ np.asarray(KERNEL), rtol=1e-5)
    np.testing.assert_allclose(d_rows, np.asarray(G) @ np.asarray(KERNEL).T, rtol=1e-5, atol=1e-6)
    expected = np.einsum("abf,abn->fn", ROWS, G)
    np.testing.assert_allclose(d_kernel, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transpose", [False, True])
def test_gradient_of_a_float32_kernel_is_summed_up_in_float32(transpose):
    # 257 is no bfloat16 number: a sum that is rounded to bfloat16 gives 256.
    rows, g = jnp.ones((257, 1), jnp.bfloat16), jnp.ones((257, 1), jnp.bfloat16)
    kernel = jnp.ones((1, 1), jnp.float32)
    _, vjp = jax.vjp(lambda kernel: multiply_rows(rows, kernel, jnp.bfloat16, transpose), kernel)
    (d_kernel,) = vjp(g)
    assert d_kernel.dtype == jnp.float32
    assert float(d_kernel[0, 0]) == 257.0


@pytest.mark.parametrize("by_products", [False, True])
def test_sums_over_rows_and_along_them(by_products):
    np.testing.assert_allclose(
        sum_rows(ROWS, by_products), np.sum(ROWS, axis=(0, 1)), rtol=1e-5, atol=1e-6
    )
    weights = KERNEL[:, 0]
    mean = weighted_mean(ROWS, weights, by_products)
    assert mean.shape == (3, 5, 1)
    expected = np.mean(np.asarray(ROWS) * np.asarray(weights), axis=-1, keepdims=True)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by_products", [False, True])
def test_backward_pass_of_layer_norm(by_products):
    def by_autodiff(x, scale, bias):
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normal = centred / jnp.sqrt(variance + LAYER_NORM_EPSILON)
        return normal * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)

    args = ROWS, KERNEL[:, 0], KERNEL[:, 1]
    expected, autodiff = jax.vjp(by_autodiff, *args)
    actual, vjp = jax.vjp(lambda *args: layer_norm(*args, by_products), *args)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(vjp(G[..., :4]), autodiff(G[..., :4]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
