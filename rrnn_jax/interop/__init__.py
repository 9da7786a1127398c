"""Weights from and to the authors' module (Sonnet v1 `RelationalMemory`).

Sonnet's arrays have these names, with or without a leading ``params/``; linear layers compute
``x @ w + b``:

======================================  ====================================================
array                                   shape
======================================  ====================================================
``input_projection/{w,b}``              ``[I, F]``, ``[F]``
``block{k}/qkv/{w,b}``                  ``[F, H*(2K+D)]``, ``[H*(2K+D)]``
``block{k}/qkv_norm/{scale,offset}``    ``[H*(2K+D)]``
``block{k}/attention_norm/...``         ``scale`` and ``offset``, ``[F]``
``block{k}/mlp_norm/...``               the same
``mlp/layer{j}/{w,b}``                  ``[F, F]``, ``[F]``
``gate_input/{w,b}``                    ``[R*F, 2*g]``, ``[2*g]``; g = F ('unit') or 1 ('memory')
``gate_memory/{w,b}``                   ``[F, 2*g]``, ``[2*g]``; no gate arrays without gates
======================================  ====================================================

A TensorFlow 1 checkpoint contains the same arrays under some scope, numbered in the order in which
Sonnet created them:

======================================  ====================================================
TensorFlow 1, n blocks                  here
======================================  ====================================================
``linear/{w,b}``                        ``input_projection/{w,b}``
``linear_{k+1}/{w,b}``                  ``block{k}/qkv/{w,b}``
``layer_norm_{3k}/{gamma,beta}``        ``block{k}/qkv_norm/{scale,offset}``; ``layer_norm`` for 0
``layer_norm_{3k+1}/{gamma,beta}``      ``block{k}/attention_norm/{scale,offset}``
``layer_norm_{3k+2}/{gamma,beta}``      ``block{k}/mlp_norm/{scale,offset}``
``mlp/linear_{j}/{w,b}``                ``mlp/layer{j}/{w,b}``
``linear_{n+1}/{w,b}``                  ``gate_input/{w,b}``
``linear_{n+2}/{w,b}``                  ``gate_memory/{w,b}``
======================================  ====================================================

Any scope is accepted, with or without ``:0``; optimiser slots and arrays outside the scope are
ignored. To convert a checkpoint to an ``.npz``, use `tf.train.load_checkpoint` and `numpy.savez` on
a machine with TensorFlow.

The PyTorch ports (L0SG's relational-rnn-pytorch, and TextGAN's copy of it) compute a different
function, so their weights cannot be converted:

===========================  =====================================  ============================
part                         Sonnet and here                        the ports
===========================  =====================================  ============================
LayerNorm                    each row separately, scale ``[N]``     all S+1 rows jointly, scale
                                                                    ``[S+1, N]``
projection and norms         separate for each block                shared by all blocks
layers of the MLP            separate linear layers                 one linear layer, repeated
after the last MLP layer     nothing                                ReLU
`forget_bias`, `input_bias`  constants                              learned
===========================  =====================================  ============================

For the Differentiable Neural Computer see `dnc_from_reference` and `load_dnc_reference` in
`rrnn_jax.interop.dnc`.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from numpy.typing import ArrayLike

from rrnn_jax.interop.arrays import by_name, read
from rrnn_jax.interop.dnc import dnc_from_reference as dnc_from_reference
from rrnn_jax.interop.dnc import load_dnc_reference as load_dnc_reference
from rrnn_jax.interop.names import check_arrays, complete_table, in_scope, refuse_pytorch


def from_sonnet(arrays: Mapping[str, ArrayLike], *, scope: str | None = None) -> dict[str, Any]:
    """Parameters of a `RelationalMemoryCell` from the arrays of Sonnet's module.

    The cell must have the module's sizes, `gate_style` and biases: the weights do not contain them.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RelationalMemoryCell
    >>> cell = RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2, gate_style=None)
    >>> carry = cell.initialize_carry(jax.random.key(0), (1, 3))
    >>> variables = jax.jit(cell.init)(jax.random.key(0), carry, jnp.ones((1, 3)))
    >>> params = from_sonnet(to_sonnet(variables))
    >>> jax.jit(cell.apply)({"params": params}, carry, jnp.ones((1, 3)))[1].shape
    (1, 64)

    Within an `RNN` alone the parameters belong to its cell: ``{"params": {"cell": params}}``. In
    a model Flax names the cell otherwise, see ``docs/guides/flax.md``.

    Args:
      arrays: named as in one of the two tables at the head of this module.
      scope: the module to load, if a TensorFlow checkpoint contains more than one.

    Returns:
      Nested dictionaries of NumPy arrays (copies), with unchanged values and dtypes.

    Raises:
      ValueError: an array is missing, unknown, given twice or of the wrong shape; blocks or layers
        are not numbered consecutively; `scope` of a TensorFlow checkpoint has no module, or more
        than one; the weights are those of a PyTorch port.
      TypeError: `arrays` is not a mapping, or an array is not floating-point.
    """
    named = by_name(arrays)
    refuse_pytorch(named)
    within = in_scope(named, scope)
    dialect = "sonnet" if within is None else "tensorflow"
    named = named if within is None else within
    table = complete_table(list(named), dialect)
    check_arrays(named, {names.of(dialect): names.axes for names in table})
    paths = {tuple(names.flax.split("/")): named[names.of(dialect)] for names in table}
    return unflatten_dict(paths)


def to_sonnet(
    params: Mapping[str, Any], *, tensorflow_scope: str | None = None
) -> dict[str, np.ndarray]:
    """The arrays of Sonnet's module from the parameters of a `RelationalMemoryCell`.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, RelationalMemoryCell
    >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2))
    >>> variables = jax.jit(rnn.init)(jax.random.key(0), jnp.ones((1, 6, 3)))
    >>> to_sonnet(variables)["block0/qkv/w"].shape
    (16, 48)
    >>> to_sonnet(variables, tensorflow_scope="core/relational_memory")[
    ...     "core/relational_memory/linear_1/w"
    ... ].shape
    (16, 48)

    Args:
      params: the cell's parameters; they may be wrapped in ``{"params": ...}`` as `init` returns
        them, and in ``{"cell": ...}`` as in an `RNN`, and boxed with metadata. The cell must have
        ``qkv_norm=True`` and, with several blocks, ``input_queries=True``, which they do not tell.
      tensorflow_scope: use the names of a TensorFlow 1 checkpoint in this scope ("" for none)
        instead of those of the first table at the head of this module.

    Returns:
      Arrays by name (copies), without ``params/``, with unchanged values and dtypes.

    Raises:
      ValueError: a parameter is missing, unknown or of the wrong shape, or belongs to an output
        gate or a learned initial memory, which Sonnet's module does not have.
      TypeError: `params` is not a mapping, or a parameter is not floating-point.
    """
    params = nn.meta.unbox(params)
    while isinstance(params, Mapping) and set(params) in ({"params"}, {"cell"}):
        params = next(iter(params.values()))
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a mapping, got {type(params).__name__}")
    named = _flatten(params)
    table = complete_table(list(named), "flax")
    check_arrays(named, {names.flax: names.axes for names in table})
    if tensorflow_scope is None:
        return {names.sonnet: named[names.flax] for names in table}
    prefix = f"{tensorflow_scope}/" if tensorflow_scope else ""
    return {prefix + names.tensorflow: named[names.flax] for names in table}


def load_sonnet(path: str | os.PathLike[str], *, scope: str | None = None) -> dict[str, Any]:
    """Parameters of a `RelationalMemoryCell` from an ``.npz`` of Sonnet arrays.

    >>> import pathlib, tempfile
    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, RelationalMemoryCell
    >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2))
    >>> variables = jax.jit(rnn.init)(jax.random.key(0), jnp.ones((1, 6, 3)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "core.npz")
    ...     np.savez(path, **to_sonnet(variables))
    ...     params = load_sonnet(path)
    >>> sorted(params)
    ['gates', 'input_projection', 'memory']

    Args:
      path: a file written by `numpy.savez`. If it has a group ``params/``, everything else is
        ignored. bfloat16, which NumPy stores as bytes, is restored.
      scope: as in `from_sonnet`.

    Returns:
      The same as `from_sonnet`.

    Raises:
      ValueError: not an ``.npz``, and as `from_sonnet`.
      TypeError: as `from_sonnet`.
    """
    return from_sonnet(read(path), scope=scope)


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays by their path."""
    flat: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}/")
        else:
            flat[f"{prefix}{name}"] = np.array(value)
    return flat
