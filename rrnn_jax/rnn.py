"""`RNN`: runs a cell over a sequence, like `flax.linen.RNN`, with resets, masks and more."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict

from rrnn_jax.arguments import Call, Prepared, prepare
from rrnn_jax.checks import (
    check_cell,
    check_choice,
    check_fields,
    check_flag,
    check_positive,
    check_tuple,
)
from rrnn_jax.scan.dispatch import IMPLEMENTATIONS, REMATS, Request, explain, run
from rrnn_jax.scan.plain import Lifting
from rrnn_jax.scan.sequence import SequenceOutputs
from rrnn_jax.typing import Array, Carry, Implementation, Remat


class RNN(nn.Module):
    r"""Runs a recurrent cell over a sequence, like `flax.linen.RNN`, with more options.

    Takes every argument of `flax.linen.RNN` with the same meaning, creates the same parameter tree,
    and works with any `flax.linen.RNNCellBase`, also within `flax.linen.Bidirectional`. It adds:

    - ``resets``: several episodes in one sequence;
    - ``mask``: steps to skip; ``row_mask``: rows of matrix inputs to ignore;
    - ``return_all_carries``: the carry after every step;
    - ``seq_lengths`` with ``return_carry`` for any number of batch axes;
    - ``remat``: less memory in training;
    - ``implementation``: faster ones for a :class:`RelationalMemoryCell`;
    - ``mutable=["intermediates"]`` captures what the cell sows, with the time axis.

    Batch axes may be sharded over one or several axes of a mesh, automatic or explicit
    (`jax.set_mesh`): a training step then communicates only sums of the weights' gradients. It also
    runs within `jax.shard_map`. `jax.export` works with symbolic batch and length.

    Dtypes of a :class:`RelationalMemoryCell`; "widest" of bfloat16 and float16 is float32:

    ===============  ===============================================================================
    carries          those of `initial_carry`; else float32, or float64 with such `param_dtype`
    outputs          the cell's `dtype`; else the carry's
    products         the cell's `dtype`; else, for the input's projection, the widest of inputs and
                     parameters; for the gates, the widest of carry (or projection) and parameters;
                     for all others, the widest of the three and float32
    norms, softmax,  float32 or wider
    gates
    gradients        those of the differentiated arrays
    ===============  ===============================================================================

    Implementations agree to rounding. A core of the default sizes with its initial weights
    amplifies rounding errors from step to step, under `flax.linen.RNN` as well: an error of 2e-7
    grew to 2e-3 after 500 steps and to 1 after 1,023 (``docs/faq.md`` has the program).

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, RelationalMemoryCell
    >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2))
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> variables = jax.jit(rnn.init)(jax.random.key(0), x)
    >>> apply = jax.jit(rnn.apply, static_argnames=("return_carry", "mutable"))
    >>> apply(variables, x).shape  # [B, T, S*F]
    (8, 10, 128)

    Two episodes in each row, the second from step 6 on. The next call continues with the carry:

    >>> resets = jnp.zeros((8, 10), bool).at[:, 6].set(True)
    >>> carry, y = apply(variables, x, resets=resets, return_carry=True)
    >>> carry, y = apply(variables, x, initial_carry=carry, return_carry=True)

    If an environment returns ``done`` with the last step of an episode, the flag of the *previous*
    step is the reset:

    >>> done = resets
    >>> resets = jnp.concatenate([jnp.zeros((8, 1), bool), done[:, :-1]], axis=1)

    If the carry comes from a previous chunk, the first column is the last `done` of that chunk.

    The attention weights of every step:

    >>> y, captured = apply(variables, x, mutable="intermediates")
    >>> captured["intermediates"]["cell"]["attention_weights"][0].shape  # [B, T, blocks, H, S, S+1]
    (8, 10, 1, 2, 4, 5)

    Attributes:
      cell: any `flax.linen.RNNCellBase`.
      time_major: inputs are ``[T, *B, ...]`` instead of ``[*B, T, ...]`` (default: False).
      return_carry: return ``(carry, outputs)`` (default: False).
      reverse: run from the last step to the first (default: False). Outputs are in the order of
        computation, unless `keep_order`.
      keep_order: return reversed outputs (and carries) in the order of the inputs. Captured
        intermediates stay in the order of computation, as in Flax.
      unroll: steps per loop iteration (default: 1).
      variable_axes, variable_broadcast, variable_carry, split_rngs: as in `flax.linen.RNN`. When
        ``intermediates`` are mutable they are stacked along the time axis without being named.
      remat: what the backward pass recomputes instead of storing. ``"none"`` (default) stores what
        autodiff needs; ``"save_products"`` recomputes all but products with weights (the same as
        ``"none"`` with ``"hoisted"``); ``"full"`` stores the carries only; ``"chunked"`` stores a
        carry every sqrt(T) steps (not on the plain scan with a cell that draws random numbers:
        they would differ).
        Use ``"none"`` while it fits into memory, then ``"full"``, which needs a third to a half of
        the memory and takes 6 to 13 % more time. ``"chunked"`` needs a fifth to a quarter and takes
        16 to 18 % more; it is for thousands of steps (measured with ``"hoisted"`` on a CPU).
      implementation: ``"auto"`` (default) selects by cell, platform and shape. ``"scan"`` is the
        plain scan.
        ``"hoisted"`` computes everything that depends only on the inputs before the loop, and has
        faster backward passes. It is for a :class:`RelationalMemoryCell` whose steps share their
        params, or a subclass that overrides only `initialize_carry`, `setup` or `from_features`.
        ``"fused"`` also uses Pallas kernels for everything but the matrix products, on NVIDIA GPUs.
        It needs one block with gates, no output gate, a norm of queries, keys and values, keys as
        wide as heads, float32 memories, products in float32 or bfloat16, powers of 2 for slots,
        heads and head size, at most 32,768 for ``mem_slots**2 * F``, known sizes, no `seq_lengths`,
        `row_mask`, dropout, `precision` or capture, `remat` ``"none"`` or ``"save_products"``, and
        neither explicit axes of a mesh nor `jax.shard_map` with ``check_vma=True``. `unroll` has no
        effect. On other devices it is interpreted, which takes minutes, with a warning. On several
        devices each runs its share of the batch if the ambient mesh (`jax.set_mesh`) has an
        automatic axis named ``"data"``; otherwise sharded arrays are gathered on each. ``"auto"``
        selects it on a single such GPU or on such a mesh, without `unroll`, `resets` and `mask`:
        with these it was only tested interpreted.
        ``"cuda"`` runs all steps in one CUDA kernel per direction, for ``dtype=jnp.bfloat16`` on
        NVIDIA GPUs of compute capability 8.0 or later, with resets and mask;
        ``rrnn_jax/scan/cuda/README.md`` lists the supported cells. ``"auto"`` prefers it to
        ``"fused"`` under the same conditions on GPUs of compute capability 9.0.
        A GPU is expected if JAX's default device is one: within ``jax.jit(..., backend="cpu")`` on
        such a machine, set `jax.default_device` or another implementation.
        ``"auto"`` runs the plain scan if `flax.linen.intercept_methods` or
        ``capture_intermediates`` need calls of the cell. Initialisation and empty sequences (B or
        T 0) always run the plain scan.

    Raises:
      ValueError: an unknown `remat` or `implementation`, `unroll` below 1, `resets`, `mask`,
        `seq_lengths` or `initial_carry` of the wrong shape, inputs of too few axes, or of more or
        fewer features than the parameters of a :class:`RelationalMemoryCell`; ``"hoisted"``,
        ``"fused"`` and ``"cuda"`` for a cell that is not a :class:`RelationalMemoryCell`, or has
        params for each step; ``"fused"`` and ``"cuda"`` for an unsupported cell, and ``"cuda"`` for
        an unsupported device; a cell with dropout whose rng is not in `split_rngs`.
      TypeError: `mask` not bool, `resets` neither bool nor numbers, `seq_lengths` not integer,
        inputs not an array, `initial_carry` not of the cell's structure or of integers.
      flax.errors.FlaxError: missing parameters, or parameters of the wrong shape.
    """

    cell: nn.RNNCellBase
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    variable_axes: Mapping[Any, Any] = FrozenDict()
    variable_broadcast: Any = "params"
    variable_carry: Any = False
    split_rngs: Mapping[Any, bool] = FrozenDict({"params": False})
    remat: Remat = "none"
    implementation: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choice("remat", self.remat, REMATS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_positive(unroll=self.unroll)
        for name in ("variable_axes", "split_rngs"):
            if not isinstance(value := getattr(self, name), Mapping):
                raise TypeError(f"{name} must be a dict, got {value!r}")
        check_fields(self, RNN)
        check_cell(self.cell)
        super().__post_init__()

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        resets: Array | None = None,
        reset_carry: Carry | None = None,
        mask: Array | None = None,
        row_mask: Array | None = None,
        return_carry: bool | None = None,
        return_all_carries: bool = False,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Runs the cell over `inputs`.

        Args:
          inputs: ``[*B, T, ...]``, or ``[T, *B, ...]`` if time-major; as many feature axes as the
            cell's `num_feature_axes`.
          initial_carry: the carry to start from (default: the cell's `initialize_carry`). Returned
            carries and the carry after a reset have its dtypes and sharding.
          init_key: key for `initialize_carry` (default: ``jax.random.key(0)``).
          seq_lengths: ``[*B]`` integers. As in Flax, the scan also runs over the padding and the
            outputs there are meaningless, but the returned carry is that of the last valid step.
            For length 0 it is the initial carry (in Flax that of the last step).
          resets: ``[*B, T]`` (or ``[T, *B]``) bool, or numbers that are not 0 where True. True
            marks the first step of a new episode: the carry is re-initialised before it. With
            `reverse`, episodes are the same parts of the sequence, each run backwards.
          reset_carry: the carry after a reset, with or without batch axes; it receives gradients
            (default: the cell's `initialize_carry`, not `initial_carry`).
          mask: ``[*B, T]`` (or ``[T, *B]``) bool. Where False the carry does not change (a reset
            there is ignored) and the output is that of the last valid step. Before the first valid
            step it is the output of the initial carry, or zeros for a cell that is neither Flax's
            nor has `output_from_carry`.
          row_mask: ``[*B, T, R]`` (or ``[T, *B, R]``) bool, for a :class:`RelationalMemoryCell`
            with matrix inputs: valid rows, for example the entities of an environment. The
            attention weights of the others are 0, and the gates get x' = 0 for them.
          return_carry: overrides the attribute.
          time_major: overrides the attribute.
          reverse: overrides the attribute.
          keep_order: overrides the attribute.
          return_all_carries: also return the carries after every step, stacked along the time axis
            of the outputs.

        Returns:
          ``outputs``; ``(carry, outputs)`` with `return_carry`; ``(carries, outputs)`` with
          `return_all_carries`; ``(carry, carries, outputs)`` with both. See also `run`.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        check_flag(return_carry=return_carry)
        call = Call(
            initial_carry,
            init_key,
            seq_lengths,
            resets,
            reset_carry,
            mask,
            row_mask,
            self.time_major if time_major is None else time_major,
            self.reverse if reverse is None else reverse,
            self.keep_order if keep_order is None else keep_order,
        )
        result = self._over_time(inputs, call, return_all_carries)
        returned = [result.carry] if return_carry else []
        returned += [result.carries] if return_all_carries else []
        return (*returned, result.outputs) if returned else result.outputs

    def run(
        self, inputs: Array, *, return_all_carries: bool = False, **arguments: Any
    ) -> SequenceOutputs:
        """Like a call, but returns a named tuple, whatever `return_carry` is.

        >>> import jax, jax.numpy as jnp
        >>> from rrnn_jax import RNN, RelationalMemoryCell
        >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2))
        >>> x = jnp.ones((8, 10, 5))
        >>> run = jax.jit(rnn.init_with_output, static_argnames="method")
        >>> result, variables = run(jax.random.key(0), x, method="run")
        >>> result.outputs.shape, result.carry.shape, result.carries
        ((8, 10, 128), (8, 4, 32), None)

        Args:
          inputs: as for a call.
          return_all_carries: as for a call.
          **arguments: the others of a call, without `return_carry`.

        Returns:
          `SequenceOutputs`: ``carry``, ``outputs`` and ``carries`` (or None).
        """
        return self._over_time(inputs, self._call("run", arguments), return_all_carries)

    @nn.nowrap
    def initialize_carry(
        self,
        batch_shape: tuple[int, ...],
        *,
        rng: Array | None = None,
        feature_shape: tuple[int, ...] | None = None,
    ) -> Carry:
        """The cell's initial carry for a batch.

        >>> from rrnn_jax import RNN, RelationalMemoryCell
        >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2))
        >>> rnn.initialize_carry((8,)).shape
        (8, 4, 32)

        A learned initial memory needs the variables: `rnn.apply(variables, (8,),
        method="initialize_carry")`.

        Args:
          batch_shape: ``*B``.
          rng: key for the cell's `initialize_carry` (default: ``jax.random.key(0)``).
          feature_shape: shape of one input without batch and time, for cells whose carry depends on
            it, for example convolutional ones (default: ones).

        Returns:
          A carry.

        Raises:
          ValueError: the cell's initial memory is learned and there are no variables.
        """
        if getattr(self.cell, "learned_carry", False) and self.scope is None:
            raise ValueError(
                "initialize_carry of a cell with learned_carry=True needs its variables: "
                'rnn.apply(variables, batch_shape, method="initialize_carry")'
            )
        features = (1,) * self.cell.num_feature_axes if feature_shape is None else feature_shape
        check_tuple("(8,)", batch_shape=batch_shape, feature_shape=features)
        key = jax.random.key(0) if rng is None else rng
        return self.cell.initialize_carry(key, (*batch_shape, *features))

    def _over_time(self, inputs: Array, call: Call, all_carries: bool) -> SequenceOutputs:
        """Prepares the arguments, runs the cell, and orders the results."""
        self._check_bound("rnn.apply(variables, inputs)")
        check_flag(return_all_carries=all_carries)
        prepared = prepare(self.cell, inputs, call)
        result = run(self.implementation, self._request(prepared, all_carries))
        if call.reverse and call.keep_order:
            outputs, carries = jax.tree.map(prepared.flip, (result.outputs, result.carries))
            result = result._replace(outputs=outputs, carries=carries)
        return result

    def explain(self, inputs: Array, *, return_all_carries: bool = False, **arguments: Any) -> str:
        """Which implementation runs a call, and why no faster one does.

        >>> import jax, jax.numpy as jnp
        >>> from rrnn_jax import RNN, RelationalMemoryCell
        >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2))
        >>> x = jnp.ones((8, 1, 5))
        >>> variables = jax.eval_shape(rnn.init, jax.random.key(0), x)  # Shapes will do.
        >>> reasons = rnn.apply(variables, x, method="explain").split("; ")
        >>> [reason for reason in reasons if reason.startswith("'hoisted'")]
        ["'hoisted' gains nothing in a single step"]

        Args:
          inputs: as for a call.
          return_all_carries: as for a call.
          **arguments: the others of a call, without `return_carry`.

        Returns:
          A sentence or two.

        Raises:
          ValueError: there are no variables.
        """
        self._check_bound('rnn.apply(variables, inputs, method="explain")')
        prepared = prepare(self.cell, inputs, self._call("explain", arguments))
        return explain(self.implementation, self._request(prepared, return_all_carries))

    @nn.nowrap
    def _call(self, method: str, arguments: dict[str, Any]) -> Call:
        """The arguments of a method, with the attributes where they are not given."""
        for name in arguments:
            if name not in Call._fields:
                raise TypeError(f"{method} takes no argument {name!r}")
        own = {name: getattr(self, name) for name in ("time_major", "reverse", "keep_order")}
        given = {name: value for name, value in arguments.items() if value is not None}
        return Call(**(own | given))

    @nn.nowrap
    def _check_bound(self, instead: str) -> None:
        """Raises unless there are variables; the error suggests the call `instead`."""
        if self.scope is None:
            raise ValueError(f"RNN has no variables here: it must be called as {instead}")

    def _request(self, prepared: Prepared, all_carries: bool) -> Request:
        """The request for an implementation."""
        capturing = self.is_mutable_collection("intermediates")
        variable_axes = dict(self.variable_axes)
        if capturing:
            variable_axes.setdefault("intermediates", prepared.time_axis)
        lifting = Lifting(
            self.unroll,
            variable_axes,
            self.variable_broadcast,
            self.variable_carry,
            self.split_rngs,
        )
        return Request(
            self.cell,
            prepared.sequence,
            prepared.carry,
            prepared.reset_carry,
            time_axis=prepared.time_axis,
            lifting=lifting,
            remat=self.remat,
            all_carries=all_carries,
            capture=capturing,
        )
