"""The log-likelihood of targets under a softmax, for selected tokens, computed in chunks."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.checks import as_int32, check_bool, check_positive, check_shape
from rrnn_jax.scan.mesh import varying_axes, varying_over
from rrnn_jax.typing import Array

TOKENS_PER_CHUNK = 512


class _Order(NamedTuple):
    """The tokens of each row, those selected first.

    Attributes:
      forward: ``[B, T]``: the original position of each ordered token.
      inverse: ``[B, T]``: the new position of each token.
      selected: ``[B, T]`` bool, ordered.
      chunks: the number of chunks with a selected token, a scalar.
    """

    forward: Array
    inverse: Array
    selected: Array
    chunks: Array


def cluster_log_likelihood(
    inputs: Array,
    table: Array,
    targets: Array,
    selected: Array,
    bias: Array | None = None,
    tokens_per_chunk: int = TOKENS_PER_CHUNK,
) -> Array:
    r"""The log-likelihood of the selected tokens' targets under a softmax over a table's rows.

    .. math:: \ell_{b,t} = (W x_{b,t} + c)_{y_{b,t}} - \log \sum_v \exp (W x_{b,t} + c)_v

    where selected, else 0. In each row of the batch the selected tokens come first, and a loop
    processes `tokens_per_chunk` of them at a time until none is left. Its cost depends on the
    number of selected tokens, and only the logits of one chunk are in memory. A custom backward
    pass recomputes them. Batch axes may be sharded over automatic axes of a mesh, or within
    `jax.shard_map`.

    >>> import jax.numpy as jnp
    >>> inputs, table = jnp.ones((1, 2, 3)), jnp.zeros((4, 3))
    >>> cluster_log_likelihood(inputs, table, jnp.array([[3, 0]]), jnp.array([[True, False]]))
    Array([[-1.3862944,  0.       ]], dtype=float32)

    Args:
      inputs: ``[*B, T, I]``.
      table: ``[V, I]``, in the dtype of the inputs.
      targets: ``[*B, T]`` integers; where selected they must be below V.
      selected: ``[*B, T]`` bool.
      bias: ``[V]``, or None.
      tokens_per_chunk: tokens of all rows in one iteration of the loop (default: 512).

    Returns:
      ``[*B, T]`` in float32. It has no forward-mode derivative.

    Raises:
      ValueError: incompatible shapes, or `tokens_per_chunk` below 1.
      TypeError: `targets` that are not integers, or `selected` that is not bool.
    """
    check_positive(tokens_per_chunk=tokens_per_chunk)
    if inputs.ndim < 2:
        raise ValueError(f"inputs must be [*B, T, I], got shape {inputs.shape}")
    tokens = inputs.shape[:-1]
    check_shape("table", table, (table.shape[0], inputs.shape[-1]), "[V, I]")
    check_shape("targets", targets, tokens, "[*B, T]")
    check_bool("selected", selected, "[*B, T]")
    check_shape("selected", selected, tokens, "[*B, T]")
    if bias is not None:
        check_shape("bias", bias, table.shape[:1], "[V]")
    steps = tokens[-1]
    inputs = inputs.reshape(-1, *inputs.shape[-2:])
    targets = as_int32("targets", targets, "[*B, T]")
    targets = jnp.clip(targets, 0, table.shape[0] - 1).reshape(-1, steps)
    if inputs.size == 0:
        return jnp.zeros(tokens, jnp.float32)
    chunk = min(steps, max(1, tokens_per_chunk // inputs.shape[0]))
    inputs, table, targets, selected, bias = varying_over(
        varying_axes(inputs, table, targets, selected, bias),
        (inputs, table, targets, selected, bias),
    )
    order = _order(selected.reshape(-1, steps), chunk)
    likelihood = _log_likelihood(chunk, inputs, table, bias, targets, order)
    return jnp.asarray(likelihood).reshape(tokens)


def _order(selected: Array, chunk: int) -> _Order:
    forward = jnp.argsort(~selected, axis=-1, stable=True)
    inverse = jnp.argsort(forward, axis=-1)
    most = jnp.max(jnp.sum(selected, axis=-1, dtype=jnp.int32))
    ordered = jnp.take_along_axis(selected, forward, axis=-1)
    return _Order(forward, inverse, ordered, (most + chunk - 1) // chunk)


def _arrange(array: Array, positions: Array) -> Array:
    """Rows `array` ``[B, T, ...]`` in the order of `positions` ``[B, T]``."""
    return jnp.take_along_axis(
        array, positions.reshape(*positions.shape, *(1,) * (array.ndim - 2)), axis=1
    )


def _pad(array: Array, chunk: int) -> Array:
    """Appends zeros so that chunks divide the row."""
    missing = -array.shape[1] % chunk
    return jnp.pad(array, ((0, 0), (0, missing), *((0, 0),) * (array.ndim - 2)))


def _logits(inputs: Array, table: Array, bias: Array | None) -> Array:
    logits = jnp.einsum("bti,vi->btv", inputs, table, preferred_element_type=jnp.float32)
    return logits if bias is None else logits + bias.astype(jnp.float32)[None, None]


def _forward(
    chunk: int, inputs: Array, table: Array, bias: Array | None, targets: Array, order: _Order
) -> tuple[Array, Array]:
    """The log-likelihood in the order of the tokens, and the log-normaliser in `order`."""
    steps = targets.shape[1]
    ordered_inputs = _pad(_arrange(inputs, order.forward), chunk)
    ordered_targets = _pad(_arrange(targets, order.forward), chunk)

    def body(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, y = (
            jax.lax.dynamic_slice_in_dim(array, k * chunk, chunk, axis=1)
            for array in (ordered_inputs, ordered_targets)
        )
        logits = _logits(x, table, bias)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        likelihood = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0] - normaliser
        return (
            jax.lax.dynamic_update_slice_in_dim(state[0], likelihood, k * chunk, axis=1),
            jax.lax.dynamic_update_slice_in_dim(state[1], normaliser, k * chunk, axis=1),
        )

    zeros = jnp.zeros_like(ordered_targets, jnp.float32)
    likelihood, normaliser = jax.lax.fori_loop(0, order.chunks, body, (zeros, zeros))
    likelihood = jnp.where(order.selected, likelihood[:, :steps], 0.0)
    return _arrange(likelihood, order.inverse), normaliser


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_likelihood(
    chunk: int, inputs: Array, table: Array, bias: Array | None, targets: Array, order: _Order
) -> Array:
    return _forward(chunk, inputs, table, bias, targets, order)[0]


def _log_likelihood_fwd(
    chunk: int, inputs: Array, table: Array, bias: Array | None, targets: Array, order: _Order
) -> tuple[Array, tuple]:
    likelihood, normaliser = _forward(chunk, inputs, table, bias, targets, order)
    return likelihood, (inputs, table, bias, targets, order, normaliser)


def _log_likelihood_bwd(chunk: int, residuals: tuple, gradient: Array) -> tuple:
    inputs, table, bias, targets, order, normaliser = residuals
    ordered_inputs = _pad(_arrange(inputs, order.forward), chunk)
    ordered_targets = _pad(_arrange(targets, order.forward), chunk)
    weights = jnp.where(order.selected, _arrange(gradient, order.forward), 0.0)
    weights = _pad(weights, chunk)

    def body(k: Array, state: tuple[Array, Array, Array | None]) -> tuple:
        d_inputs, d_table, d_bias = state
        x, y, w, z = (
            jax.lax.dynamic_slice_in_dim(array, k * chunk, chunk, axis=1)
            for array in (ordered_inputs, ordered_targets, weights, normaliser)
        )
        probabilities = jnp.exp(_logits(x, table, bias) - z[..., None])
        wanted = jax.nn.one_hot(y, table.shape[0], dtype=probabilities.dtype)
        d_logits = (wanted - probabilities) * w[..., None]
        if d_bias is not None:
            d_bias = d_bias + jnp.sum(d_logits, axis=(0, 1))
        d_logits = d_logits.astype(x.dtype)
        d_x = jnp.einsum("btv,vi->bti", d_logits, table, preferred_element_type=jnp.float32)
        d_inputs = jax.lax.dynamic_update_slice_in_dim(
            d_inputs, d_x.astype(x.dtype), k * chunk, axis=1
        )
        d_table = d_table + jnp.einsum(
            "btv,bti->vi", d_logits, x, preferred_element_type=jnp.float32
        )
        return d_inputs, d_table, d_bias

    start = (
        jnp.zeros_like(ordered_inputs),
        jnp.zeros_like(table, jnp.float32),
        None if bias is None else jnp.zeros_like(bias, jnp.float32),
    )
    d_inputs, d_table, d_bias = jax.lax.fori_loop(0, order.chunks, body, start)
    d_inputs = _arrange(d_inputs[:, : targets.shape[1]], order.inverse)
    if bias is not None and d_bias is not None:
        d_bias = d_bias.astype(bias.dtype)
    return d_inputs, d_table.astype(table.dtype), d_bias, None, None


_log_likelihood.defvjp(_log_likelihood_fwd, _log_likelihood_bwd)
