"""The recurrent part over time: one scan, the values it stores, and the gradients of kernels.

A step is under `jax.checkpoint`: it stores what `operations.keep` marks, or nothing with
``remat="full"``, and recomputes the rest in the backward pass. JAX sums the gradients of a scan's
weights step by step. With few rows and kernels too large for a cache, reading and writing that sum
costs as much as the rest of the step. In that case the rows and the cotangents of all steps are
stored, and each gradient is one product (`_with_kernels_apart`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.relational.input_terms import InputTerms
from rrnn_jax.scan.relational.operations import KEPT, kernel_term, multiply, multiply_apart
from rrnn_jax.scan.relational.step import Step
from rrnn_jax.scan.relational.weights import CoreWeights, Dtypes
from rrnn_jax.scan.sequence import select
from rrnn_jax.typing import Array, Carry


class Settings(NamedTuple):
    """Static settings of the recurrent part.

    Attributes:
      cell: the cell's configuration.
      dtypes: dtypes of the products.
      cpu: whether operations are written for XLA's CPU backend.
      transpose: whether a step reads transposed kernels, ``[N, F]``.
      tile: kernels are padded with zeros to multiples of it; 1 for no padding.
      apart: whether gradients of kernels are computed after the scan.
      time_axis: time axis of the outputs.
      capture: whether to return what the cell sows.
      store: whether to store the values that the backward pass needs.
      unroll: steps per iteration of the scan.
    """

    cell: RelationalMemoryCell
    dtypes: Dtypes
    cpu: bool = False
    transpose: bool = False
    tile: int = 1
    apart: bool = False
    time_axis: int = 0
    capture: bool = False
    store: bool = True
    unroll: int = 1


class Timed(NamedTuple):
    """The inputs of steps, time first.

    Attributes:
      terms: input terms.
      resets: ``[T, *B]`` bool, or None.
      mask: the same.
      valid: the same.
    """

    terms: InputTerms
    resets: Array | None
    mask: Array | None
    valid: Array | None


class Carried(NamedTuple):
    """The state of the scan: the carry and, with `Timed.valid`, the last valid one."""

    carry: Carry
    last_valid: Carry | None


class Outputs(NamedTuple):
    """The stacked results of the scan: the carry after every step, and what the cell sows."""

    carries: Carry
    sown: dict[str, Array]


Product = Callable[[str, Array], Array]


def recurrence(
    settings: Settings, weights: CoreWeights, first: Carried, fresh: Carry | None, timed: Timed
) -> tuple[Carried, Outputs]:
    """Runs the recurrent part over all steps.

    Args:
      settings: static settings.
      weights: weights of the core.
      first: the state before the first step.
      fresh: the carry after a reset; None without resets.
      timed: the inputs of all steps.

    Returns:
      The state after the last step, and the outputs of all steps.
    """
    others = (weights.vectors, first, fresh, timed)
    names, shapes = _products(settings, weights, others) if settings.apart else ([], [])

    @jax.custom_jvp
    def run(kernels: dict[str, Array], others: tuple) -> tuple[Carried, Outputs]:
        vectors, first, fresh, timed = others
        product = _products_with(settings, kernels)
        body = partial(_one_step, settings, product, vectors, fresh)
        if settings.cpu:
            return _scan_in_place(settings, body, first, timed)
        carried, ys = jax.lax.scan(body, first, timed, unroll=settings.unroll)
        return carried, _outputs(settings, ys)

    def differentiable(kernels: dict[str, Array], others: tuple) -> tuple[Carried, Outputs]:
        vectors, first, fresh, timed = others
        product = _products_with(settings, kernels)
        body = partial(_one_step, settings, product, vectors, fresh)
        carried, ys = _scan_for_gradient(settings, body, first, timed)
        return carried, _outputs(settings, ys)

    def with_slots(kernels: dict[str, Array], others: tuple, slots: list[Array]) -> tuple:
        vectors, first, fresh, timed = others
        used = _used(settings, kernels)

        def body(carried: Carried, x: tuple[Timed, list[Array]]) -> tuple[Carried, tuple]:
            rows_of_products: list[Array] = []

            def product(name: str, rows: Array) -> Array:
                slot = x[1][len(rows_of_products)]
                rows_of_products.append(rows)
                return multiply_apart(settings.cell.precision, rows, *used[name], slot)

            carried, outputs = _one_step(settings, product, vectors, fresh, carried, x[0])
            return carried, (outputs, rows_of_products)

        carried, (ys, rows) = _scan_for_gradient(settings, body, first, (timed, slots))
        return (carried, _outputs(settings, ys)), rows

    @run.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        if not settings.apart:
            return jax.jvp(differentiable, primals, tangents)
        kernels, others = primals
        d_kernels, d_others = tangents
        slots = [jnp.zeros(x.shape, x.dtype) for x in shapes]
        results, push, rows = jax.linearize(
            partial(with_slots, kernels), others, slots, has_aux=True
        )
        terms = [
            kernel_term(settings.cpu, x, d_kernels[name], slot, settings.cell.precision)
            for name, x, slot in zip(names, rows, slots, strict=True)
        ]
        return results, push(d_others, terms)

    return run(weights.kernels, others)


def _one_step(
    settings: Settings,
    product: Product,
    vectors: dict[str, Array],
    fresh: Carry | None,
    carried: Carried,
    x: Timed,
) -> tuple[Carried, Outputs]:
    carry, last_valid = carried
    if x.resets is not None:
        carry = select(x.resets, fresh, carry)
    step = Step(settings.cell, settings.cpu, settings.dtypes, product, vectors)
    new_carry, sown = step(carry, x.terms)
    if x.mask is not None:
        new_carry = select(x.mask, new_carry, carry)
    if x.valid is not None:
        last_valid = select(x.valid, new_carry, last_valid)
    sown = sown if settings.capture else {}
    return Carried(new_carry, last_valid), Outputs(new_carry, sown)


def _scan_for_gradient(settings: Settings, body: Callable, first: Carried, xs: Any) -> Any:
    """`jax.lax.scan` that stores the values of a step according to the settings."""
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names(KEPT) if settings.store else policies.nothing_saveable
    # Inside a loop nothing can be merged across steps, so the barrier against it is useless.
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    return jax.lax.scan(body, first, xs, unroll=settings.unroll)


def _outputs(settings: Settings, ys: Outputs) -> Outputs:
    """The stacked results of a scan, with the caller's time axis."""
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, settings.time_axis), ys)


def _scan_in_place(settings: Settings, body: Callable, first: Carried, xs: Any) -> Any:
    """`_scan_for_gradient` without gradient, for a CPU.

    It reads the inputs of a step at the end of the previous one, into the carry. Otherwise XLA's
    CPU backend fuses the read at a variable position into the arithmetic that uses it, which is
    then not vectorised. Outputs are written along the caller's time axis.
    """
    steps, axis = jax.tree.leaves(xs)[0].shape[0], settings.time_axis

    def read(t: Array | int) -> Any:
        index = jnp.clip(jnp.asarray(t, jnp.int32), 0, steps - 1)
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), xs)

    def room(x: jax.ShapeDtypeStruct) -> Array:
        return jnp.zeros((*x.shape[:axis], steps, *x.shape[axis:]), x.dtype)

    def step(state: tuple, t: Array) -> tuple[tuple, None]:
        carried, x, ys = state
        carried, y = body(carried, x)
        put = partial(jax.lax.dynamic_update_index_in_dim, index=t, axis=axis)
        return (carried, read(t + 1), jax.tree.map(put, ys, y)), None

    ahead = read(0)
    ys = jax.tree.map(room, jax.eval_shape(body, first, ahead)[1])
    in_turn = jnp.arange(steps, dtype=jnp.int32)
    (carried, _, ys), _ = jax.lax.scan(step, (first, ahead, ys), in_turn, unroll=settings.unroll)
    return carried, ys


def _products_with(settings: Settings, kernels: dict[str, Array]) -> Product:
    used, precision = _used(settings, kernels), settings.cell.precision
    return lambda name, rows: multiply(settings.cpu, rows, kernels[name], *used[name], precision)


def _used(settings: Settings, kernels: dict[str, Array]) -> dict[str, tuple[Array, Array | None]]:
    """The kernels for a step: cast, padded and transposed once, not in every step."""

    def used(name: str, kernel: Array) -> tuple[Array, Array | None]:
        cast = kernel.astype(settings.dtypes.gates if name == "gates" else settings.dtypes.rows)
        cast = jnp.pad(cast, [(0, -size % settings.tile) for size in cast.shape])
        return cast, jax.lax.optimization_barrier(cast.T) if settings.transpose else None

    return {name: used(name, kernel) for name, kernel in kernels.items()}


def _products(
    settings: Settings, weights: CoreWeights, others: tuple
) -> tuple[list[str], list[jax.ShapeDtypeStruct]]:
    """The kernels of a step's products in order, and the shapes of the products of all steps."""
    names, shapes = [], []
    vectors, first, fresh, timed = others
    steps = jax.tree.leaves(timed)[0].shape[0]

    def product(name: str, rows: Array) -> Array:
        result = jnp.zeros((*rows.shape[:-1], weights.kernels[name].shape[-1]), rows.dtype)
        names.append(name)
        shapes.append(jax.ShapeDtypeStruct((steps, *result.shape), result.dtype))
        return result

    def one(first: Carried, fresh: Carry | None, timed: Timed) -> Any:
        x = jax.tree.map(lambda x: x[0], timed)
        return _one_step(settings, product, vectors, fresh, first, x)

    jax.eval_shape(one, first, fresh, timed)
    return names, shapes


def in_chunks(
    run: Callable, first: Carried, xs: Any, length: int, time_axis: int, in_place: bool
) -> tuple[Carried, Outputs]:
    """``run(first, xs)`` on chunks of the steps; only the carries between chunks are stored.

    Args:
      run: returns the state after the steps of `xs`, and their outputs.
      first: the state before the first step.
      xs: arrays, time first.
      length: steps of a chunk.
      time_axis: time axis of the outputs.
      in_place: whether to write outputs in place; otherwise they are stacked and transposed, which
        takes one more copy, but allocates no array here.
    """
    run = jax.checkpoint(run, prevent_cse=False)
    steps = jax.tree.leaves(xs)[0].shape[0]
    count = steps // length
    whole = count * length

    def cut(x: Array) -> Array:
        return x[:whole].reshape(count, length, *x.shape[1:])

    def room(x: jax.ShapeDtypeStruct) -> Array:
        shape = list(x.shape)
        shape[time_axis] = whole
        return jnp.zeros(shape, x.dtype)

    def write(state: tuple, x: tuple) -> tuple[tuple, None]:
        carried, ys = state
        start, chunk = x
        carried, found = run(carried, chunk)  # The output buffer is not stored for gradients.
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=time_axis)
        return (carried, jax.tree.map(put, ys, found)), None

    chunks = jax.tree.map(cut, xs)
    if in_place:
        shapes = jax.eval_shape(run, first, jax.tree.map(lambda x: x[0], chunks))[1]
        starts = length * jnp.arange(count, dtype=jnp.int32)
        state = (first, jax.tree.map(room, shapes))
        (carried, ys), _ = jax.lax.scan(write, state, (starts, chunks))
    else:
        carried, ys = jax.lax.scan(run, first, chunks)
        ys = jax.tree.map(lambda y: jnp.moveaxis(y, 0, time_axis), ys)
        ys = jax.tree.map(
            lambda y: y.reshape(*y.shape[:time_axis], whole, *y.shape[time_axis + 2 :]), ys
        )
    if whole == steps:
        return carried, ys
    carried, last = run(carried, jax.tree.map(lambda x: x[whole:], xs))
    return carried, jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=time_axis), ys, last)
