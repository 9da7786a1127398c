"""The Differentiable Neural Computer's memory: its state, its interface, and one access.

Axis letters are those of `rrnn_jax.baselines.dnc_addressing`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.baselines.dnc_addressing import (
    content_weights,
    update_link,
    update_precedence,
    update_usage,
    write_allocations,
)
from rrnn_jax.typing import Array


class DNCState(NamedTuple):
    """The carry of a `DNCCell`.

    Attributes:
      controller: (c, h) of each LSTM layer, ``[*B, C]`` each; empty for a feed-forward one.
      read_words: the words that the read heads read, ``[*B, R, W]``.
      memory: ``[*B, S, W]``.
      read_weights: ``[*B, R, S]``.
      write_weights: ``[*B, P, S]``.
      link: the degree to which row i was written right after row j, ``[*B, P, S, S]``.
      precedence_weights: the degree to which each row was written last, ``[*B, P, S]``.
      usage: ``[*B, S]``.
    """

    controller: tuple[tuple[Array, Array], ...]
    read_words: Array
    memory: Array
    read_weights: Array
    write_weights: Array
    link: Array
    precedence_weights: Array
    usage: Array


class Interface(NamedTuple):
    """The controller's instructions to the memory, in the order of the packed vector.

    Attributes:
      write_vectors: ``[*B, P, W]``.
      erase_vectors: in (0, 1), ``[*B, P, W]``.
      free_gate: in (0, 1), ``[*B, R]``.
      allocation_gate: in (0, 1), ``[*B, P]``.
      write_gate: in (0, 1), ``[*B, P]``.
      read_mode: weights of reading backward along the links of each write head, forward along
        them, and by content; sums to 1, ``[*B, R, 2*P + 1]``.
      write_keys: ``[*B, P, W]``.
      write_strengths: before softplus, ``[*B, P]``.
      read_keys: ``[*B, R, W]``.
      read_strengths: before softplus, ``[*B, R]``.
    """

    write_vectors: Array
    erase_vectors: Array
    free_gate: Array
    allocation_gate: Array
    write_gate: Array
    read_mode: Array
    write_keys: Array
    write_strengths: Array
    read_keys: Array
    read_strengths: Array


def interface_shapes(word_size: int, num_reads: int, num_writes: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the interface's parts without batch axes, in the order of the packed vector.

    >>> interface_shapes(word_size=64, num_reads=4, num_writes=1)["read_mode"]
    (4, 3)

    Args:
      word_size: W.
      num_reads: R.
      num_writes: P.

    Returns:
      A shape for each field of `Interface`.
    """
    words, reads, writes = (num_writes, word_size), (num_reads,), (num_writes,)
    return {
        "write_vectors": words,
        "erase_vectors": words,
        "free_gate": reads,
        "allocation_gate": writes,
        "write_gate": writes,
        "read_mode": (num_reads, 2 * num_writes + 1),
        "write_keys": words,
        "write_strengths": writes,
        "read_keys": (num_reads, word_size),
        "read_strengths": reads,
    }


def interface_size(word_size: int, num_reads: int, num_writes: int) -> int:
    """The width of the packed vector: ``W*(R + 3*P) + 3*P + R*(2*P + 3)``.

    >>> interface_size(word_size=64, num_reads=4, num_writes=1)
    471

    Args:
      word_size: W.
      num_reads: R.
      num_writes: P.

    Returns:
      The sum of the sizes of the interface's parts.
    """
    return sum(map(math.prod, interface_shapes(word_size, num_reads, num_writes).values()))


def unpack_interface(packed: Array, word_size: int, num_reads: int, num_writes: int) -> Interface:
    """Splits the packed vector and applies the gates' nonlinearities.

    Args:
      packed: ``[*B, interface_size]``.
      word_size: W.
      num_reads: R.
      num_writes: P.

    Returns:
      `Interface`.
    """
    parts, start = {}, 0
    for name, shape in interface_shapes(word_size, num_reads, num_writes).items():
        stop = start + math.prod(shape)
        parts[name] = packed[..., start:stop].reshape(*packed.shape[:-1], *shape)
        start = stop
    for name in ("erase_vectors", "free_gate", "allocation_gate", "write_gate"):
        parts[name] = jax.nn.sigmoid(parts[name])
    parts["read_mode"] = jax.nn.softmax(parts["read_mode"], axis=-1)
    return Interface(**parts)


def access_memory(interface: Interface, state: DNCState) -> DNCState:
    r"""Writes to the memory, then reads from it.

    .. math::

        w^w &= g_w \left(g_a a + (1 - g_a) \, c^w\right) \\
        M_t &= M_{t-1} \circ \textstyle\prod_p (1 - w^w_p e_p^\top) + \sum_p w^w_p v_p^\top \\
        w^r &= \textstyle\sum_p \left(\pi^b_p L_p^\top w^r_{t-1} + \pi^f_p L_p w^r_{t-1}\right)
            + \pi^c c^r \\
        r &= M_t^\top w^r

    with the allocation a, the write content weights c^w of the memory before the write, the read
    content weights c^r of the memory after it, and the new links L.

    Args:
      interface: the controller's instructions.
      state: the previous state, in the dtype of `interface`.

    Returns:
      The next state, with an unchanged `controller`.
    """
    usage = update_usage(state.usage, state.write_weights, state.read_weights, interface.free_gate)
    write_weights = _write_weights(interface, state.memory, usage)
    memory = _write(interface, state.memory, write_weights)
    link = update_link(state.link, state.precedence_weights, write_weights)
    read_weights = _read_weights(interface, memory, link, state.read_weights)
    return state._replace(
        read_words=jnp.einsum("...rs,...sw->...rw", read_weights, memory),
        memory=memory,
        read_weights=read_weights,
        write_weights=write_weights,
        link=link,
        precedence_weights=update_precedence(state.precedence_weights, write_weights),
        usage=usage,
    )


def _write_weights(interface: Interface, memory: Array, usage: Array) -> Array:
    """``[*B, P, S]``."""
    allocated = write_allocations(usage, interface.allocation_gate, interface.write_gate)
    by_content = content_weights(interface.write_keys, interface.write_strengths, memory)
    allocation_gate = interface.allocation_gate[..., None]
    mixed = allocation_gate * allocated + (1.0 - allocation_gate) * by_content
    return interface.write_gate[..., None] * mixed


def _write(interface: Interface, memory: Array, weights: Array) -> Array:
    """Erases, then adds, ``[*B, S, W]``."""
    for head in range(weights.shape[-2]):
        erase = interface.erase_vectors[..., head, :]
        memory = memory * (1.0 - jnp.einsum("...s,...w->...sw", weights[..., head, :], erase))
    return memory + jnp.einsum("...ps,...pw->...sw", weights, interface.write_vectors)


def _read_weights(interface: Interface, memory: Array, link: Array, previous: Array) -> Array:
    """``[*B, R, S]``."""
    by_content = content_weights(interface.read_keys, interface.read_strengths, memory)
    num_writes = link.shape[-3]
    modes = jnp.swapaxes(interface.read_mode, -1, -2)[..., None]  # [*B, 2*P + 1, R, 1]
    backward = modes[..., :num_writes, :, :] * previous[..., None, :, :]  # [*B, P, R, S]
    forward = modes[..., num_writes : 2 * num_writes, :, :] * previous[..., None, :, :]
    # The links are linear, so weightings can be scaled by their mode first.
    along_links = jnp.einsum("...pri,...pij->...prj", backward, link)
    along_links = along_links + jnp.einsum("...prj,...pij->...pri", forward, link)
    return jnp.sum(along_links, axis=-3) + modes[..., -1, :, :] * by_content
