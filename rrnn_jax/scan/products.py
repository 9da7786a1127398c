"""Products of many rows with a kernel, and the gradient of a kernel."""

from functools import partial

import jax
import jax.numpy as jnp

from rrnn_jax.typing import Array, Dtype, accumulation_dtype


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def multiply_rows(rows: Array, kernel: Array, dtype: Dtype, transpose: bool) -> Array:
    """Rows ``[..., F]`` times a kernel ``[F, N]``; its backward pass is `weight_gradient`.

    Args:
      rows: in the dtype of the product.
      kernel: in any dtype, in which its gradient is, too.
      dtype: of the product.
      transpose: see `weight_gradient`.
    """
    del transpose
    return rows @ kernel.astype(dtype)


def _multiply_rows_fwd(
    rows: Array, kernel: Array, dtype: Dtype, transpose: bool
) -> tuple[Array, tuple[Array, Array]]:
    return multiply_rows(rows, kernel, dtype, transpose), (rows, kernel)


def _multiply_rows_bwd(
    dtype: Dtype, transpose: bool, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    rows, kernel = residuals
    d_rows = jax.lax.dot_general(g, kernel.astype(dtype), (((g.ndim - 1,), (1,)), ((), ())))
    d_kernel = weight_gradient(rows, g, accumulation_dtype(kernel.dtype), transpose)
    return d_rows, d_kernel.astype(kernel.dtype)


multiply_rows.defvjp(_multiply_rows_fwd, _multiply_rows_bwd)


def weight_gradient(operand: Array, cotangent: Array, dtype: Dtype, transpose: bool) -> Array:
    """The gradient ``[F, N]`` of a kernel from all rows ``[..., F]`` and cotangents ``[..., N]``.

    Args:
      operand: the rows that were multiplied.
      cotangent: of the result.
      dtype: of the gradient.
      transpose: turn the operand over first. XLA's CPU backend has its fast product for a left
        side whose rows are contiguous; to transpose costs less than to do without.
    """
    # Not made flat first: of axes in another order than they are sharded in, that would gather
    # the rows of all devices on each.
    leading = tuple(range(operand.ndim - 1))
    contracting = leading
    if transpose:
        operand = jax.lax.optimization_barrier(jnp.moveaxis(operand, -1, 0))
        contracting = tuple(axis + 1 for axis in leading)
    return jax.lax.dot_general(
        operand, cotangent, ((contracting, leading), ((), ())), preferred_element_type=dtype
    )
