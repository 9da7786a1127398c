"""Modules shared by experiments."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.typing import Array, Dtype


class MLP(nn.Module):
    """The paper's read-out: hidden layers with ReLU, then one linear layer.

    Attributes:
      num_outputs: width of the result.
      hidden: width of each hidden layer (default: the paper's four of 256).
      dtype: dtype of the products.
    """

    num_outputs: int
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``[..., X]`` to ``[..., num_outputs]``."""
        for i, width in enumerate(self.hidden):
            x = jax.nn.relu(Linear(width, dtype=self.dtype, name=f"hidden_{i}")(x))
        return Linear(self.num_outputs, dtype=self.dtype, name="output")(x)


class Linear(nn.Module):
    """`flax.linen.Dense` whose weight gradients are float32 sums for any dtype of the products.

    If a batch is divided over devices, the gradients of all parameters then have the same dtype, so
    that a single float32 all-reduce sums them.

    Attributes:
      features: width of the result.
      dtype: dtype of the products.
    """

    features: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps ``[..., X]`` to ``[..., features]``."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape[1:], jnp.float32)
        x = x.astype(self.dtype or jnp.float32)
        if x.dtype == jnp.float32:
            return _product(x, kernel, jnp.float32) + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return _narrow_linear(x, kernel, bias)


def _product(x: Array, kernel: Array, dtype: Dtype) -> Array:
    dims = ((x.ndim - 1,), (0,)), ((), ())
    return jax.lax.dot_general(x, kernel, dims, preferred_element_type=dtype)


@jax.custom_vjp
def _narrow_linear(x: Array, kernel: Array, bias: Array) -> Array:
    product = _product(x, kernel.astype(x.dtype), jnp.float32)
    return (product + bias.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _narrow_linear(x, kernel, bias), (x, kernel)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    x, kernel = saved
    d_x = _product(g, kernel.astype(g.dtype).T, g.dtype)
    rows, cotangents = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    d_kernel = _product(rows.T, cotangents, jnp.float32)
    return d_x, d_kernel, jnp.sum(cotangents, axis=0, dtype=jnp.float32)


_narrow_linear.defvjp(_forward, _backward)
