"""Shapes of the kernels' inputs and outputs, and their calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.scan.pallas.arithmetic import Spec
from rrnn_jax.scan.relational.input_terms import InputTerms
from rrnn_jax.scan.relational.weights import CoreWeights
from rrnn_jax.typing import Array, Dtype

Shape = jax.ShapeDtypeStruct


class Sizes(NamedTuple):
    """Shapes of arrays, and how kernels are called."""

    cell: RelationalMemoryCell
    dtype: Dtype
    batch: int
    steps: int
    resets: bool
    mask: bool

    @property
    def rows(self) -> tuple[int, int, int]:
        """S, H and D."""
        cell = self.cell
        return cell.mem_slots, cell.num_heads, cell.head_size

    @property
    def gates(self) -> tuple[int, ...]:
        """Both gates of a slot: ``[2, H, D]`` or ``[2]``."""
        cell = self.cell
        unit = (cell.num_heads, cell.head_size) if cell.gate_style == "unit" else ()
        return (2, *unit)

    @property
    def spec(self) -> Spec:
        """The static configuration of the kernels."""
        cell = self.cell
        return Spec(
            gate_style=cell.gate_style,
            input_bias=float(cell.input_bias),
            forget_bias=float(cell.forget_bias),
            last=self.steps - 1,
            resets=self.resets,
            mask=self.mask,
        )

    def split(self, x: Array, *inner: int) -> Array:
        """The last axis as ``[*inner, H, D]``; ``[..., F]`` as ``[..., H, D]``."""
        _, heads, size = self.rows
        return x.reshape(*x.shape[:-1], *inner, heads, size)

    @property
    def row(self) -> Shape:
        """A step's rows ``[B, S, H, D]`` in the dtype of products."""
        return Shape((self.batch, *self.rows), self.dtype)

    @property
    def qkv_row(self) -> Shape:
        """Queries, keys and values of a step ``[B, S, 3, H, D]``, in the same dtype."""
        slots, *head = self.rows
        return Shape((self.batch, slots, 3, *head), self.dtype)

    @property
    def gate(self) -> Shape:
        """Both gates of a step ``[B, S, 2, H, D]`` or ``[B, S, 2]``, in the same dtype."""
        return Shape((self.batch, self.rows[0], *self.gates), self.dtype)

    def wide(self, *shape: int) -> Shape:
        """``[B, *shape]`` in float32."""
        return Shape((self.batch, *shape), jnp.float32)

    def over_time(self, x: Shape, more: int = 0) -> Shape:
        """The same for all steps and `more`."""
        return Shape((self.steps + more, *x.shape), x.dtype)

    def call(
        self,
        kernel: Callable[..., None],
        inputs: Sequence[Array],
        results: Sequence[Shape],
        buffers: Sequence[Array] = (),
    ) -> tuple[list[Array], list[Array]]:
        """Runs a kernel for every sequence of the batch; buffers are updated in place."""
        found = _run(
            kernel,
            [*inputs, *buffers],
            grid=(self.batch,),
            out_shape=[*results, *(Shape(x.shape, x.dtype) for x in buffers)],
            input_output_aliases={len(inputs) + k: len(results) + k for k in range(len(buffers))},
            compiler_params=triton.CompilerParams(num_warps=self._warps(), num_stages=1),
            name=getattr(kernel, "func", kernel).__name__,
        )
        return list(found[: len(results)]), list(found[len(results) :])

    def _warps(self) -> int:
        slots, heads, size = self.rows
        return min(max(slots * slots * heads * size // 2048, 4), 8)


def sizes_of(cell: RelationalMemoryCell, dtype: Dtype, terms: InputTerms, flags: tuple) -> Sizes:
    """The sizes of a run; `flags` are resets and mask, or None."""
    steps, batch = terms.qkv[0].shape[:2]
    return Sizes(cell, dtype, batch, steps, *(x is not None for x in flags))


def empty(shapes: Sequence[Shape]) -> list[Array]:
    """Uninitialised buffers, to be written in full."""

    def nothing(*refs: Any) -> None:
        del refs

    return _run(
        nothing,
        [],
        grid=(1,),
        out_shape=list(shapes),
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        name="allocate",
    )


def _run(kernel: Callable[..., None], arguments: Sequence[Array], **options: Any) -> list[Array]:
    """Runs a kernel: compiled on NVIDIA GPUs, interpreted elsewhere."""

    def on(interpret: bool) -> Callable[..., list[Array]]:
        return lambda *args: list(pl.pallas_call(kernel, interpret=interpret, **options)(*args))

    return list(jax.lax.platform_dependent(*arguments, cuda=on(False), default=on(True)))


class Vectors(NamedTuple):
    """Vectors in float32: for queries, keys and values, both norms, and biases of hidden layers."""

    qkv: Array
    norm: Array
    last: Array
    hidden: list[Array]


def vectors_of(sizes: Sizes, weights: CoreWeights) -> Vectors:
    """The vectors of the core, packed for the kernels."""
    v = {name: x.astype(jnp.float32) for name, x in weights.vectors.items()}
    layers = sizes.cell.attention_mlp_layers
    qkv = [v["block_0/qkv/bias"], v["block_0/qkv_norm/scale"], v["block_0/qkv_norm/bias"]]
    norm = [v["block_0/attention_norm/scale"], v["block_0/attention_norm/bias"]]
    last = [
        v[f"mlp/layer_{layers - 1}/bias"],
        v["block_0/mlp_norm/scale"],
        v["block_0/mlp_norm/bias"],
    ]
    return Vectors(
        sizes.split(jnp.stack(qkv), 3),
        sizes.split(jnp.stack(norm)),
        sizes.split(jnp.stack(last)),
        [sizes.split(v[f"mlp/layer_{j}/bias"])[None, None] for j in range(layers - 1)],
    )


def flags_of(
    sizes: Sizes, reset_carry: Array | None, resets: Array | None, mask: Array | None
) -> tuple[Array, Array]:
    """Flags and fresh memories for the kernels; placeholders without flags."""
    some = mask if resets is None else resets
    if some is None:
        return jnp.zeros((1,), jnp.int32), jnp.zeros((1,), jnp.float32)
    pair = [some if x is None else x for x in (resets, mask)]
    flags = jnp.stack(pair, axis=-1).astype(jnp.int32)
    if reset_carry is None:
        return flags, jnp.zeros((1,), jnp.float32)
    return flags, sizes.split(reset_carry)


def split_terms(sizes: Sizes, terms: InputTerms) -> tuple[Array, Array]:
    """Keys and values of input rows, and the gates' input terms, split for the kernels."""
    assert terms.gates is not None
    gates = terms.gates.reshape(*terms.gates.shape[:2], *sizes.gates)
    return sizes.split(terms.qkv[0], 2), gates
