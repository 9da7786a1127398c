"""Products of rows with a kernel: their gradient, however it is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.scan.products import multiply_rows

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
