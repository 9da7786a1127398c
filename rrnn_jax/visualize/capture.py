"""Arrays from Flax's captured `intermediates`."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def captured_array(intermediates: Mapping[str, Any], name: str) -> np.ndarray:
    """The array that was sown under `name`, anywhere in the tree.

    After ``y, captured = model.apply(variables, x, mutable=["intermediates"])``:

    >>> sown = {"attention_weights": (np.zeros((8, 10, 1, 2, 4, 5)),)}
    >>> captured = {"intermediates": {"core": {"cell": sown}}}
    >>> captured_array(captured, "attention_weights").shape  # [B, T, blocks, H, S, S+R]
    (8, 10, 1, 2, 4, 5)

    Args:
      intermediates: the result of ``apply(..., mutable=["intermediates"])``, or a part of it.
      name: for example 'attention_weights', 'input_gate' or 'forget_gate'; with several cells
        more of the path, such as 'rnns_0/cell/input_gate'.

    Returns:
      The array, on the host.

    Raises:
      KeyError: there is no array with that name, or more than one.
    """
    found = {"/".join(path): value for path, value in _sown(intermediates, ())}
    named = [path for path in found if f"/{path}".endswith(f"/{name}")]
    if len(named) != 1:
        there = ", ".join(found) or "nothing"
        raise KeyError(
            f"name must be that of one captured array, or the end of its path, got {name!r}; "
            f"captured: {there}"
        )
    value = found[named[0]]
    if isinstance(value, tuple):  # `sow` makes tuples with an entry for each call.
        if len(value) != 1:
            raise KeyError(
                f"{name!r} was captured {len(value)} times; take one entry of the tuple at "
                f"{named[0]}"
            )
        (value,) = value
    return np.asarray(value)


def attention_of(weights: np.ndarray, *, block: int = -1, head: int | None = None) -> np.ndarray:
    """The attention matrix of each sequence and step.

    >>> attention_of(np.full((8, 10, 1, 2, 4, 5), 0.2), head=1).shape
    (8, 10, 4, 5)

    Args:
      weights: ``[*B, T, blocks, H, S, S+R]``, as captured.
      block: the attention block; -1 is the last.
      head: the head; None (default) means the mean over all heads.

    Returns:
      ``[*B, T, S, S+R]``; rows sum to one.

    Raises:
      ValueError: `weights` has other axes; block or head out of range.
    """
    weights = np.asarray(weights)
    if weights.ndim < 5 or weights.shape[-1] <= weights.shape[-2]:
        raise ValueError(f"weights must be [*B, T, blocks, H, S, S+R], got shape {weights.shape}")
    blocks, heads = weights.shape[-4:-2]
    if not -blocks <= block < blocks:
        raise ValueError(f"block must lie in {-blocks}..{blocks - 1}, got {block}")
    of_block = weights[..., block, :, :, :]
    if head is None:
        return of_block.mean(axis=-3)
    if not 0 <= head < heads:
        raise ValueError(f"head must be None or lie in 0..{heads - 1}, got {head}")
    return of_block[..., head, :, :]


def _sown(tree: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Every leaf (array or tuple of arrays) with its path."""
    if not isinstance(tree, Mapping):
        return [(path, tree)]
    return [leaf for name, value in tree.items() for leaf in _sown(value, (*path, name))]
