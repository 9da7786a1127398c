"""Linear functions with a given backward pass, differentiable any number of times in any mode.

JAX derives the backward pass of a linear function by transposing its operations one by one. For a
product with a kernel the result is slow in XLA's CPU backend, however the product is written.
`jax.custom_vjp` would forbid forward mode. So this module defines a primitive: its derivative is
that of the function, its transpose the given one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from rrnn_jax.typing import Array

_linear_p = Primitive("rrnn_jax_linear")
_linear_p.multiple_results = True


def linear(
    function: Callable, transpose: Callable, known: tuple, xs: tuple, like: tuple
) -> list[Array]:
    """``function(*known, *xs)``, linear in `xs`, with a given backward pass.

    Args:
      function: returns a sequence of arrays.
      transpose: ``transpose(*known, *cotangents)`` returns the cotangents of `xs`.
      known: arrays in which the two need not be linear.
      xs: arrays.
      like: arrays with the types of the results.
    """
    types = tuple(map(jax.typeof, like))
    return _bind(known, xs, function=function, transpose=transpose, types=types)


def _bind(known: tuple, xs: tuple, **options: Any) -> list[Array]:
    return _linear_p.bind(*known, *xs, known=len(known), **options)


def _run(*args: Array, function: Callable, **_: Any) -> list[Array]:
    return list(function(*args))


def _abstract(*_: Any, types: tuple, **__: Any) -> Any:
    return list(types)


def _jvp(primals: list, tangents: list, **options: Any) -> tuple:
    known, function = options["known"], options["function"]
    results = _linear_p.bind(*primals, **options)
    tangents = [*tangents[:known], *map(ad.instantiate_zeros, tangents[known:])]
    if all(isinstance(t, ad.Zero) for t in tangents[:known]):
        return results, _linear_p.bind(*primals[:known], *tangents[known:], **options)
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    return results, list(jax.jvp(function, tuple(primals), tuple(tangents))[1])


def _transpose(cotangents: list, *args: Any, transpose: Callable, known: int, **_: Any) -> list:
    if all(isinstance(g, ad.Zero) for g in cotangents):
        return [None] * len(args)
    found = transpose(*args[:known], *map(ad.instantiate_zeros, cotangents))
    return [None] * known + list(found)


def _batch(
    args: list, axes: list, function: Callable, transpose: Callable, types: tuple, known: int
) -> tuple:
    """Gives all `xs` the batch axis, so that their cotangents can have it."""
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)

    def in_front(x: Array, axis: Any) -> Array:
        if axis is None:
            return jnp.broadcast_to(x[None], (size, *x.shape))
        return jnp.moveaxis(x, axis, 0)

    xs = tuple(map(in_front, args[known:], axes[known:]))
    given = axes[:known]
    batched = jax.vmap(function, in_axes=(*given, *[0] * len(xs)))
    backward = jax.vmap(transpose, in_axes=(*given, *[0] * len(types)))
    found = tuple(jax.make_jaxpr(batched)(*args[:known], *xs).out_avals)
    results = _bind(tuple(args[:known]), xs, function=batched, transpose=backward, types=found)
    return results, [0] * len(results)


_linear_p.def_impl(_run)
_linear_p.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_run, multiple_results=True))
