"""The relational memory: rows attend to each other and to the input, then an MLP is applied."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.attention import (
    MultiHeadAttention,
    dense,
    layer_norm,
    linear_options,
    norm_options,
)
from rrnn_jax.checks import check_bool, check_fields, check_positive, check_shape
from rrnn_jax.initializers import fan_in_truncated_normal
from rrnn_jax.typing import Array, DotGeneral, Dtype, Initializer, Memory


class RowMLP(nn.Module):
    r"""The row-wise MLP of a block: `num_layers` linear layers of the rows' width.

    ReLU between the layers and none after the last, as in Sonnet v1.

    >>> import jax, jax.numpy as jnp
    >>> mlp = RowMLP(num_layers=2)
    >>> rows = jnp.ones((3, 4, 16))
    >>> y, variables = jax.jit(mlp.init_with_output)(jax.random.key(0), rows)
    >>> y.shape
    (3, 4, 16)

    Attributes:
      num_layers: number of linear layers.
      dtype, param_dtype, kernel_init, bias_init, precision, dot_general: as in
        `flax.linen.Dense`.
    """

    num_layers: int = 2
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    precision: jax.lax.PrecisionLike = None
    dot_general: DotGeneral | None = None

    @nn.compact
    def __call__(self, rows: Array) -> Array:
        """Maps rows ``[*B, M, F]`` to ``[*B, M, F]``."""
        width = rows.shape[-1]
        for j in range(self.num_layers):
            if j > 0:
                rows = jax.nn.relu(rows)
            rows = dense(width, self, f"layer_{j}")(rows)
        return rows


class AttentionBlock(nn.Module):
    r"""One block: attention, residual, norm, then MLP, residual, norm (post-norm).

    .. math::

        X &\leftarrow \mathrm{LN}(X + \mathrm{attention}(X)) \\
        X &\leftarrow \mathrm{LN}(X + \mathrm{MLP}(X))

    The residual stream keeps its dtype (float32), whatever the compute dtype.

    >>> import jax, jax.numpy as jnp
    >>> rows = jnp.ones((3, 5, 16))
    >>> class Model(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, rows):
    ...         return AttentionBlock(num_heads=2, head_size=8)(rows, RowMLP(), num_rows=4)[0]
    >>> y, variables = jax.jit(Model().init_with_output)(jax.random.key(0), rows)
    >>> y.shape
    (3, 4, 16)

    Attributes:
      num_heads, head_size, key_size: H, D, K of the attention.
      qkv_norm: whether queries, keys and values are normalised.
      dtype, param_dtype, kernel_init, bias_init, precision, dot_general: as in
        `flax.linen.Dense`.
      norm_scale_init, norm_bias_init: initialisers of the LayerNorms.
    """

    num_heads: int
    head_size: int
    key_size: int | None = None
    qkv_norm: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    precision: jax.lax.PrecisionLike = None
    dot_general: DotGeneral | None = None
    norm_scale_init: Initializer = nn.initializers.ones_init()
    norm_bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(
        self, rows: Array, mlp: RowMLP, num_rows: int | None = None, mask: Array | None = None
    ) -> tuple[Array, Array]:
        """Applies the block.

        Args:
          rows: ``[*B, M, F]``.
          mlp: the MLP, shared by all blocks.
          num_rows: number of rows to compute; the others are keys and values only.
          mask: ``[*B, M]`` bool: rows that may be attended to (default: all).

        Returns:
          ``[*B, num_rows, F]`` and the attention weights ``[*B, H, num_rows, M]``.
        """
        attended, weights = MultiHeadAttention(
            self.num_heads,
            self.head_size,
            self.key_size,
            self.qkv_norm,
            **linear_options(self),
            **norm_options(self),
            name="attention",
        )(rows, num_rows, mask)
        if num_rows is not None:
            rows = rows[..., :num_rows, :]
        stream = rows.dtype
        rows = layer_norm("attention_norm", self)(rows + attended.astype(stream))
        rows = rows.astype(stream)
        rows = layer_norm("mlp_norm", self)(rows + mlp(rows).astype(stream))
        return rows.astype(stream), weights


class RelationalMemory(nn.Module):
    r"""Applies ``num_blocks`` attention blocks to memory and input rows, and drops the input rows.

    .. math:: \tilde M = \mathrm{blocks}([M; x'])_{1..S}

    All blocks share the MLP; each block has its own projections and norms. In the last block the
    input rows are keys and values only, because their outputs are dropped. Source: paper eq. 2 and
    figure 1a; Sonnet v1 for what the paper does not state.

    >>> import jax, jax.numpy as jnp
    >>> module = RelationalMemory(num_heads=2, head_size=8)
    >>> memory, rows = jnp.ones((3, 4, 16)), jnp.ones((3, 1, 16))
    >>> made = jax.jit(module.init_with_output)(jax.random.key(0), memory, rows)
    >>> (candidate, weights), variables = made
    >>> candidate.shape, [w.shape for w in weights]
    ((3, 4, 16), [(3, 2, 4, 5)])

    Attributes:
      num_heads, head_size, key_size: H, D, K of the attention; F = H*D.
      num_blocks: number of blocks per step.
      attention_mlp_layers: layers of the MLP.
      qkv_norm: whether queries, keys and values are normalised.
      input_queries: whether the input rows attend too, between blocks, as in Sonnet v1. If False,
        they are the same in every block and only the memory attends, as in paper eq. 2. With one
        block both are equal.
      dtype, param_dtype, kernel_init, bias_init, precision, dot_general: as in
        `flax.linen.Dense`.
      norm_scale_init, norm_bias_init: initialisers of the LayerNorms.

    Raises:
      ValueError: a size below 1, or incompatible shapes.
      TypeError: a `row_mask` that is not bool.
    """

    num_heads: int
    head_size: int
    key_size: int | None = None
    num_blocks: int = 1
    attention_mlp_layers: int = 2
    qkv_norm: bool = True
    input_queries: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    precision: jax.lax.PrecisionLike = None
    dot_general: DotGeneral | None = None
    norm_scale_init: Initializer = nn.initializers.ones_init()
    norm_bias_init: Initializer = nn.initializers.zeros_init()

    def __post_init__(self) -> None:
        check_positive(
            num_heads=self.num_heads,
            head_size=self.head_size,
            num_blocks=self.num_blocks,
            attention_mlp_layers=self.attention_mlp_layers,
        )
        if self.key_size is not None:
            check_positive(key_size=self.key_size)
        check_fields(self, RelationalMemory)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, memory: Memory, input_rows: Array, row_mask: Array | None = None
    ) -> tuple[Memory, list[Array]]:
        """Applies the blocks.

        Args:
          memory: ``[*B, S, F]``.
          input_rows: ``[*B, R, F]``, in the memory's dtype.
          row_mask: ``[*B, R]`` bool: input rows that may be attended to (default: all).

        Returns:
          The candidate memory ``[*B, S, F]`` and, for each block, the attention weights of the
          memory rows, ``[*B, H, S, S+R]``.
        """
        if memory.ndim < 2 or input_rows.ndim < 2:
            raise ValueError(
                "memory and input_rows must have shapes [*B, S, F] and [*B, R, F], got "
                f"{memory.shape} and {input_rows.shape}"
            )
        *batch, slots, _ = memory.shape
        width = self.num_heads * self.head_size
        check_shape("memory", memory, (*batch, slots, width), "[*B, S, F]")
        check_shape("input_rows", input_rows, (*batch, input_rows.shape[-2], width), "[*B, R, F]")
        mask = None
        if row_mask is not None:
            check_bool("row_mask", row_mask, "[*B, R]")
            check_shape("row_mask", row_mask, input_rows.shape[:-1], "[*B, R]")
            mask = jnp.concatenate([jnp.ones_like(memory[..., 0], bool), row_mask], axis=-1)
        options = linear_options(self)
        mlp = RowMLP(self.attention_mlp_layers, **options, name="mlp")
        rows = jnp.concatenate([memory, input_rows], axis=-2)
        all_weights = []
        for k in range(self.num_blocks):
            block = AttentionBlock(
                self.num_heads,
                self.head_size,
                self.key_size,
                self.qkv_norm,
                **options,
                **norm_options(self),
                name=f"block_{k}",
            )
            is_last = k == self.num_blocks - 1
            only_memory = is_last or not self.input_queries
            rows, weights = block(rows, mlp, slots if only_memory else None, mask)
            all_weights.append(weights[..., :slots, :])
            if not (is_last or self.input_queries):
                rows = jnp.concatenate([rows, input_rows], axis=-2)
        return rows, all_weights
