"""Products of a step with the weights: recorded going forward, known going backward."""

from collections.abc import Mapping

import jax

from rrnn_jax.typing import Array, Dtype


class RecordProducts:
    """A `Linear` that multiplies, and remembers names and results in the order of the calls."""

    def __init__(self, kernels: Mapping[str, Array]) -> None:
        self.kernels = kernels
        self.names: list[str] = []
        self.results: list[Array] = []

    def __call__(self, name: str, rows: Array) -> Array:
        """Multiplies rows ``[B, N, F]`` by the kernel of that name."""
        result = _multiply(rows, self.kernels[name])
        self.names.append(name)
        self.results.append(result)
        return result


class ReplayProducts:
    """A `Linear` that takes its results from a list, and remembers what it was given.

    The cotangent of a known result is that of the product; the cotangent of the rows is computed,
    the kernel's is left to `weight_gradient`.
    """

    def __init__(self, kernels: Mapping[str, Array], results: list[Array]) -> None:
        self.kernels = kernels
        self.results = iter(results)
        self.operands: list[Array] = []

    def __call__(self, name: str, rows: Array) -> Array:
        """Returns the next known result as the product of the rows and the kernel."""
        self.operands.append(rows)
        return _known_product(rows, self.kernels[name], next(self.results))


def weight_gradient(operand: Array, cotangent: Array, dtype: Dtype) -> Array:
    """The gradient ``[F, N]`` of a kernel from all rows ``[..., F]`` and cotangents ``[..., N]``.

    The rows are flattened first: contracting several axes at once is slow on the CPU.
    """
    operand = operand.reshape(-1, operand.shape[-1])
    cotangent = cotangent.reshape(-1, cotangent.shape[-1])
    return jax.lax.dot_general(
        operand, cotangent, (((0,), (0,)), ((), ())), preferred_element_type=dtype
    )


def _multiply(rows: Array, kernel: Array) -> Array:
    return jax.lax.dot_general(rows, kernel, (((rows.ndim - 1,), (0,)), ((), ())))


@jax.custom_vjp
def _known_product(rows: Array, kernel: Array, result: Array) -> Array:
    """``rows @ kernel``, given the result."""
    del rows, kernel
    return result


def _known_product_fwd(rows: Array, kernel: Array, result: Array) -> tuple[Array, Array]:
    del rows
    return result, kernel


def _known_product_bwd(kernel: Array, g: Array) -> tuple[Array, None, Array]:
    return jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ()))), None, g


_known_product.defvjp(_known_product_fwd, _known_product_bwd)
