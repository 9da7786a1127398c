"""The Recurrent Entity Network of Henaff et al. 2017 as a cell."""

from functools import partial
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from rrnn_jax.baselines.vector_cell import VectorCell, compute_dtype, dense
from rrnn_jax.checks import check_choice, check_fields, check_positive, check_shape
from rrnn_jax.initializers import fan_in_truncated_normal, normal_rows
from rrnn_jax.typing import Array, Dtype, Initializer, Memory, accumulation_dtype

Output: TypeAlias = Literal["sum", "concatenate", "attend"]
EPSILON = 1e-12
"""Added to a memory's squared norm before the root."""


class EntNetCell(VectorCell):
    r"""The dynamic memory of a Recurrent Entity Network (Henaff et al. 2017, eq. 2-5).

    S memories with shared weights, distinguished by learned keys :math:`w_j`, each with a gate:

    .. math::

        s_t &= W_s x_t + b_s \\
        g_j &= \sigma(s_t \cdot h_j + s_t \cdot w_j) \\
        \tilde h_j &= \phi(U h_j + V w_j + W s_t) \\
        h_j &\leftarrow h_j + g_j \tilde h_j, \qquad h_j \leftarrow h_j / |h_j|

    :math:`\phi` is a PReLU with a slope for every unit, initially 1. The initial memories are the
    keys, as in the authors' code: in a carry, a row of zeros (the result of `initialize_carry`)
    stands for its key. (A written memory is never zero, because its norm is 1.)

    The output is one of

    - ``"sum"``: :math:`\sum_j h_j`, as in the paper's bank of LSTMs;
    - ``"concatenate"``: all memories;
    - ``"attend"``: :math:`\phi(s_t + H u)` with :math:`u = \sum_j p_j h_j` and
      :math:`p_j = \mathrm{softmax}_j(s_t \cdot h_j)`, the original's output module (eq. 6) with
      the step's input as the query, without the last matrix R.

    The projection of the input (:math:`W_s`) is ours: the original's sentences have width F.

    Because the initial memories are parameters, the output is not a function of the carry alone.
    With a mask, `rrnn_jax.RNN` therefore returns zeros before the first valid step.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN
    >>> rnn = RNN(EntNetCell(features=16, num_cells=4))
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> y, variables = jax.jit(rnn.init_with_output)(jax.random.key(0), x)
    >>> y.shape
    (8, 10, 16)

    Attributes:
      features: F, width of one memory.
      num_cells: S, the number of memories.
      output: 'sum' (default), 'concatenate' or 'attend', see above.
      project_inputs: False uses inputs of F features without a projection (default: True).
      dtype: dtype of the products; ``None`` (default) follows inputs and parameters. Gates, norms
        and memories stay in float32 or wider.
      param_dtype: dtype of the parameters (default: float32).
      kernel_init: initialiser of all weights (default: truncated normal, 1/sqrt(fan-in)).
      bias_init: initialiser of the input projection's bias, the only one (default: zeros).
      key_init: initialiser of the keys ``[S, F]`` (default: normal with deviation 1/sqrt(F)).
      slope_init: initialiser of the PReLU's slopes (default: ones).

    Raises:
      ValueError: a size below 1, an unknown `output`, or inputs and carries of the wrong shape.
      TypeError: an attribute, inputs or a carry of the wrong type.
    """

    features: int
    num_cells: int
    output: Output = "sum"
    project_inputs: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = fan_in_truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()
    key_init: Initializer = normal_rows
    slope_init: Initializer = nn.initializers.ones_init()

    def __post_init__(self) -> None:
        check_positive(features=self.features, num_cells=self.num_cells)
        check_choice("output", self.output, get_args(Output))
        check_fields(self, EntNetCell)
        super().__post_init__()

    @property
    def output_size(self) -> int:
        """The width of the output."""
        return self.features * (self.num_cells if self.output == "concatenate" else 1)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Memory:
        """The initial carry: zeros, which stand for the keys.

        Args:
          rng: ignored.
          input_shape: ``[*B, I]``.

        Returns:
          ``[*B, S, F]`` in float32 (wider if the parameters are).
        """
        del rng
        shape = (*self._batch(input_shape), self.num_cells, self.features)
        return jnp.zeros(shape, accumulation_dtype(self.param_dtype))

    @nn.compact
    def __call__(self, carry: Memory, inputs: Array) -> tuple[Memory, Array]:
        """One step.

        Args:
          carry: the memories ``[*B, S, F]``.
          inputs: ``[*B, I]``.

        Returns:
          The next carry, in the dtype of `carry`, and the output ``[*B, output_size]``, in the
          dtype of the products.
        """
        carry = self._checked(carry, inputs)
        batch = inputs.shape[:-1]
        if not self.project_inputs:
            shape = (*batch, self.features)
            check_shape("inputs", inputs, shape, "[*B, F] (project_inputs=False)")
        dtype = compute_dtype(self.dtype, inputs.dtype, self.param_dtype)
        stream = accumulation_dtype(dtype, carry.dtype)
        key_shape = (self.num_cells, self.features)
        keys = self.param("keys", self.key_init, key_shape, self.param_dtype)
        slope = self.param("slope", self.slope_init, (self.features,), self.param_dtype)
        shown = inputs.astype(dtype)
        if self.project_inputs:
            shown = dense(self, self.features, "input_projection", dtype)(shown)

        memory = carry.astype(stream)
        key_rows = keys.astype(stream).reshape((1,) * len(batch) + key_shape)
        key_rows = jnp.broadcast_to(key_rows, memory.shape)
        unwritten = jnp.all(memory == 0, axis=-1, keepdims=True)
        memory = jnp.where(unwritten, key_rows, memory)

        query = shown[..., None, :].astype(stream)
        gate = jax.nn.sigmoid(jnp.sum(query * (memory + key_rows), axis=-1, keepdims=True))
        linear = partial(dense, self, self.features, dtype=dtype, use_bias=False)
        from_keys = linear("key")(keys.astype(dtype)).astype(stream)
        candidate = linear("hidden")(memory.astype(dtype)).astype(stream)
        candidate = candidate + from_keys.reshape((1,) * len(batch) + key_shape)
        candidate = candidate + linear("input")(shown)[..., None, :].astype(stream)
        memory = memory + gate * _prelu(candidate, slope)
        squared = jnp.sum(jnp.square(memory), axis=-1, keepdims=True)
        memory = memory * jax.lax.rsqrt(squared + EPSILON)
        outputs = self._read(memory, query, slope, dtype).astype(dtype)
        return memory.astype(carry.dtype), outputs

    def _read(self, memory: Memory, query: Array, slope: Array, dtype: Dtype) -> Array:
        """The output, ``[*B, output_size]``, from the query ``[*B, 1, F]``."""
        if self.output == "sum":
            return jnp.sum(memory, axis=-2)
        if self.output == "concatenate":
            return memory.reshape(*memory.shape[:-2], self.output_size)
        weights = jax.nn.softmax(jnp.sum(query * memory, axis=-1, keepdims=True), axis=-2)
        found = jnp.sum(weights * memory, axis=-2).astype(dtype)
        found = dense(self, self.features, "found", dtype, use_bias=False)(found)
        return _prelu(query[..., 0, :] + found.astype(memory.dtype), slope)


def _prelu(x: Array, slope: Array) -> Array:
    """The identity above zero, `slope` ``[F]`` below."""
    slope = slope.astype(x.dtype).reshape((1,) * (x.ndim - 1) + slope.shape)
    return jnp.where(x >= 0, x, slope * x)
