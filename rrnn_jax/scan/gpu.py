"""Code shared by the GPU backends: derivatives, batch axes, and several devices.

Kernels run the recurrent part (`relational.recurrence`) of sequences ``[T, B, ...]``, forward and
backward once. The rest is here: products of the inputs, higher derivatives, and the mesh.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from rrnn_jax.scan import relational
from rrnn_jax.scan.dispatch import Request
from rrnn_jax.scan.mesh import checks_varying, has_explicit_axes, platform, product_of
from rrnn_jax.scan.relational import outputs_of, params_of, time_first
from rrnn_jax.scan.relational.input_terms import InputTerms, terms_of_inputs
from rrnn_jax.scan.relational.linear import linear
from rrnn_jax.scan.relational.recurrence import Carried, Settings, Timed, recurrence
from rrnn_jax.scan.relational.weights import CoreWeights, core_weights, product_dtypes
from rrnn_jax.scan.sequence import SequenceOutputs
from rrnn_jax.typing import Array, Dtype

DATA_AXIS = "data"


class Arguments(NamedTuple):
    """The arguments of kernels.

    Attributes:
      weights: weights of the core.
      carry: ``[B, S, F]``.
      fresh: the carry after a reset; None without resets.
      terms: input terms, time first.
      resets: ``[T, B]`` bool, or None.
      mask: the same.
    """

    weights: CoreWeights
    carry: Array
    fresh: Array | None
    terms: InputTerms
    resets: Array | None
    mask: Array | None


class Kernels(NamedTuple):
    """The recurrent part as kernels.

    Attributes:
      forward: ``forward(arguments, keep)`` returns the final memory ``[B, S, F]`` and all memories
        ``[T, B, S, F]``, as a pair, and the values saved for `backward` (ignored unless `keep`).
      backward: ``backward(arguments, kept, cotangents)`` returns the cotangents as `Arguments`;
        those of flags are ignored.
    """

    forward: Callable[[Arguments, bool], tuple[Any, Any]]
    backward: Callable[[Arguments, Any, Any], Arguments]


def why_not(request: Request) -> str | None:
    """Why kernels cannot run a request, whatever the cell; None if they can."""
    sequence = request.sequence
    if request.remat not in ("none", "save_products"):
        return f"needs remat='none' or 'save_products', got {request.remat!r}"
    if request.capture:
        return "does not keep what is captured"
    cell: Any = request.cell
    if cell.dropout_rate > 0 and not cell.deterministic:
        return f"has no dropout, got dropout_rate={cell.dropout_rate}"
    if cell.precision is not None:
        return f"takes jax.default_matmul_precision, not precision={cell.precision!r}"
    if sequence.row_mask is not None:
        return "has no row_mask"
    if sequence.valid is not None:
        return "needs mask in place of seq_lengths"
    if product_of((*request.batch, request.steps)) is None:
        return "needs known sizes, not symbolic ones"
    if has_explicit_axes(sequence.inputs) or checks_varying():
        return (
            "does not run within jax.shard_map with check_vma=True, nor on a mesh's explicit axes"
        )
    for carry in jax.tree.leaves((request.carry, request.fresh)):
        if carry.dtype != jnp.float32:
            return f"needs memories in float32, got {carry.dtype}"
    return None


def why_slow(request: Request) -> str | None:
    """Why ``"auto"`` would not select kernels for a request; None if it would."""
    sequence = request.sequence
    if not on_nvidia_gpus(devices_of(request)):
        return (
            "needs an NVIDIA GPU, and on several a mesh set by jax.set_mesh with an automatic axis "
            f"named {DATA_AXIS!r}"
        )
    if sequence.resets is not None or sequence.mask is not None or request.lifting.unroll != 1:
        return "was measured without resets, mask and unroll only"
    return relational.why_slow(request)


def on_nvidia_gpus(devices: int) -> bool:
    """Whether the traced program is likely to run on all of these NVIDIA GPUs."""
    return on_nvidia() and jax.device_count() == devices


def on_nvidia() -> bool:
    """Whether the traced program is likely to run on NVIDIA GPUs."""
    # AMD's platform is "gpu", too.
    if platform() != "gpu":
        return False
    return "cuda" in jax.local_devices()[0].client.platform_version.lower()


def devices_of(request: Request) -> int:
    """The number of devices on the automatic axis "data" of the ambient mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or DATA_AXIS not in mesh.axis_names:
        return 1
    kind = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[DATA_AXIS]
    devices, batch = mesh.shape[DATA_AXIS], product_of(request.batch)
    fits = kind == AxisType.Auto and batch is not None and batch % devices == 0
    return devices if fits else 1


def run(
    request: Request,
    variables: Mapping[str, Any],
    kernels_of: Callable[[Any, Dtype, Arguments], Kernels],
) -> tuple[SequenceOutputs, dict[str, Array]]:
    """Runs a request with kernels; see `dispatch.Backend`.

    Args:
      request: a request for which `why_not` returns None.
      variables: the cell's variables.
      kernels_of: returns the kernels for a cell, a dtype of products, and the arguments' shapes.
    """
    cell: Any = request.cell.clone(parent=None, name=None)
    params = params_of(request, variables)
    inputs, resets, mask, *_ = time_first(request)
    assert inputs is not None
    dtypes = product_dtypes(cell, params, inputs.dtype, request.carry)
    steps, batch = inputs.shape[0], inputs.shape[1:-2]
    size = product_of(batch)

    def merged(x: Array) -> Array:
        return x.reshape(steps, size, *x.shape[1 + len(batch) :])

    carry = request.carry.reshape(size, *request.carry.shape[-2:])
    arguments = Arguments(
        core_weights(cell, params),
        carry,
        None if resets is None else jnp.reshape(request.fresh, carry.shape),  # type: ignore[arg-type]
        terms_of_inputs(cell, False, dtypes, params, merged(inputs)),
        None if resets is None else merged(resets),
        None if mask is None else merged(mask),
    )
    settings = Settings(cell, dtypes)

    def plain(a: Arguments) -> tuple[Array, Array]:
        timed = Timed(a.terms, a.resets, a.mask, None)
        carried, ys = recurrence(settings, a.weights, Carried(a.carry, None), a.fresh, timed)
        return carried.carry, ys.carries

    def by_kernels(a: Arguments) -> tuple[Array, Array]:
        return differentiable(plain, kernels_of(cell, dtypes.rows, a), a)

    final, carries = _on_devices(by_kernels, arguments, devices_of(request))
    final = final.reshape(*batch, *final.shape[-2:])
    carries = carries.reshape(steps, *batch, *carries.shape[-2:])
    return outputs_of(request, final, jnp.moveaxis(carries, 0, request.time_axis)), {}


def _on_devices(function: Callable, arguments: Arguments, devices: int) -> tuple[Array, Array]:
    """Runs each device's share of the batch, because XLA does not partition kernels."""
    if devices == 1:
        return function(arguments)
    first, second = P(DATA_AXIS), P(None, DATA_AXIS)
    specs = Arguments(P(), first, first, second, second, second)  # type: ignore[arg-type]
    return jax.shard_map(
        function,
        in_specs=(specs,),
        out_specs=(first, second),
        axis_names={DATA_AXIS},
        check_vma=False,
    )(arguments)


class _Plain(NamedTuple):
    """The function that kernels compute, on lists of floating-point and other arrays.

    Attributes:
      function: the function of `Arguments`.
      tree: their structure.
      is_float: whether each array is floating-point.
    """

    function: Callable[[Arguments], Any]
    tree: Any
    is_float: list[bool]

    def joined(self, floats: Sequence[Array], others: Sequence[Array]) -> Arguments:
        """The arguments."""
        both = iter(floats), iter(others)
        leaves = [next(both[0 if yes else 1]) for yes in self.is_float]
        return jax.tree.unflatten(self.tree, leaves)

    def jvp(self, floats: Sequence, others: Sequence, tangents: Sequence) -> Any:
        """The tangent of the result."""

        def of_floats(*floats: Array) -> Any:
            return self.function(self.joined(floats, others))

        return jax.jvp(of_floats, tuple(floats), tuple(tangents))[1]

    def vjp(self, floats: Sequence, others: Sequence, g: Any) -> list[Array]:
        """The cotangents of `floats`."""
        return list(jax.vjp(lambda *x: self.function(self.joined(x, others)), *floats)[1](g))


def _no_tangent(x: Array) -> Any:
    """The tangent of an array that does not change."""
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.zeros_like(x) if is_float else np.zeros(x.shape, jax.dtypes.float0)


def differentiable(plain: Callable, kernels: Kernels, arguments: Arguments) -> Any:
    """``plain(arguments)``, computed by kernels.

    Kernels also compute the first derivative in reverse mode; forward mode and higher derivatives
    are those of `plain`.
    """
    leaves, tree = jax.tree.flatten(arguments)
    is_float = [bool(jnp.issubdtype(x.dtype, jnp.floating)) for x in leaves]
    of = _Plain(plain, tree, is_float)
    floats = [x for x, yes in zip(leaves, is_float, strict=True) if yes]
    others = [x for x, yes in zip(leaves, is_float, strict=True) if not yes]
    backward = _backward_of(of, kernels, arguments)

    @jax.custom_jvp
    def forward(floats: list[Array], others: list[Array]) -> tuple[Any, Any]:
        return kernels.forward(of.joined(floats, others), True)

    @forward.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        # Only `backward` reads the saved values, and it has the derivative of `plain`.
        results, kept = forward(*primals)
        return (results, kept), (
            of.jvp(primals[0], primals[1], tangents[0]),
            jax.tree.map(_no_tangent, kept),
        )

    @jax.custom_jvp
    def run(floats: list[Array], others: list[Array]) -> tuple[Array, Array]:
        return kernels.forward(of.joined(floats, others), False)[0]

    @run.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        floats, others = primals
        results, kept = forward(floats, others)
        kept, kept_tree = jax.tree.flatten(kept)
        ends = len(floats), len(floats) + len(others), len(floats) + len(others) + len(kept)

        def function(*x: Array) -> tuple[Array, Array]:
            return of.jvp(x[: ends[0]], x[ends[0] : ends[1]], x[ends[2] :])

        def transpose(*x: Array) -> list[Array]:
            all_kept = jax.tree.unflatten(kept_tree, x[ends[1] : ends[2]])
            given = list(x[: ends[0]]), list(x[ends[0] : ends[1]])
            return backward(*given, all_kept, tuple(x[ends[2] :]))

        known = (*floats, *others, *kept)
        return results, tuple(linear(function, transpose, known, tuple(tangents[0]), results))

    return run(floats, others)


def _backward_of(of: _Plain, kernels: Kernels, arguments: Arguments) -> Callable:
    """The backward pass of kernels, with the derivative of the plain one."""
    given = jax.tree.leaves(arguments, is_leaf=lambda x: x is None)

    @jax.custom_jvp
    def backward(floats: list[Array], others: list[Array], kept: Any, g: Any) -> list[Array]:
        found = kernels.backward(of.joined(floats, others), kept, g)
        found = jax.tree.leaves(found, is_leaf=lambda x: x is None)
        cotangents = [d for d, x in zip(found, given, strict=True) if x is not None]
        return [d for d, yes in zip(cotangents, of.is_float, strict=True) if yes]

    @backward.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        floats, others, _, g = primals

        def plain(floats: list[Array], g: Any) -> list[Array]:
            return of.vjp(floats, others, g)

        return backward(*primals), jax.jvp(plain, (floats, g), (tangents[0], tangents[3]))[1]

    return backward
