"""`RNN`: runs a cell over a sequence, like `flax.linen.RNN`, with resets, masks and more."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from flax.linen.recurrent import flip_sequences

from rrnn_jax.cell import RelationalMemoryCell
from rrnn_jax.checks import check_choice, check_positive, check_shape
from rrnn_jax.scan.dispatch import (
    IMPLEMENTATIONS,
    REMATS,
    has_explicit_axes,
    hoisted_plan,
    resolve_implementation,
)
from rrnn_jax.scan.plain import Lifting, plain_scan
from rrnn_jax.scan.sequence import SequenceInputs, SequenceOutputs
from rrnn_jax.scan.weights import checked_params
from rrnn_jax.typing import Array, Carry, Remat


class RNN(nn.Module):
    r"""Runs a recurrent cell over a sequence: `flax.linen.RNN`, faster and with more to it.

    Takes every argument of `flax.linen.RNN` with the same meaning, makes the same parameter tree,
    and works with any `flax.linen.RNNCellBase`, within `flax.linen.Bidirectional` too. On top:

    - ``resets``: several episodes in one sequence;
    - ``mask``: steps that are passed over;
    - ``return_all_carries``: the carry after every step;
    - ``seq_lengths`` with ``return_carry`` for any number of batch axes;
    - ``remat``: less memory in training;
    - ``implementation``: a :class:`RelationalMemoryCell` runs on a path of its own that gives the
      same numbers sooner;
    - ``mutable=["intermediates"]`` captures what the cell sows, with the time axis in place.

    Under `jax.jit` batch axes may be sharded over devices: a training step then sends nothing but
    sums of the weights' gradients. Within `jax.shard_map` give it ``check_vma=False``, as for any
    loop that begins with a carry of its own.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, RelationalMemoryCell
    >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2))
    >>> x = jnp.ones((8, 10, 5))  # [B, T, I]
    >>> variables = rnn.init(jax.random.key(0), x)
    >>> rnn.apply(variables, x).shape  # [B, T, S*F]
    (8, 10, 128)

    Two episodes packed in a row, the second from step 6 on; the carry goes on to the next call:

    >>> resets = jnp.zeros((8, 10), bool).at[:, 6].set(True)
    >>> carry, y = rnn.apply(variables, x, resets=resets, return_carry=True)
    >>> carry, y = rnn.apply(variables, x, initial_carry=carry, return_carry=True)

    The attention weights of every step:

    >>> y, captured = rnn.apply(variables, x, mutable=["intermediates"])
    >>> captured["intermediates"]["cell"]["attention_weights"][0].shape  # [B, T, blocks, H, S, S+1]
    (8, 10, 1, 2, 4, 5)

    Attributes:
      cell: any `flax.linen.RNNCellBase`.
      time_major: inputs are ``[T, *B, ...]`` instead of ``[*B, T, ...]`` (default: False).
      return_carry: return ``(carry, outputs)`` (default: False).
      reverse: run from the last step to the first (default: False). Outputs come in the order in
        which they were computed, unless `keep_order`.
      keep_order: put reversed outputs (and carries) back in the order of the inputs.
      unroll: steps per loop iteration (default: 1).
      variable_axes, variable_broadcast, variable_carry, split_rngs: as in `flax.linen.RNN`. When
        ``intermediates`` are mutable they are stacked along the time axis without being named.
      remat: what the backward pass recomputes rather than stores. ``"none"`` (default) stores what
        autodiff wants; ``"save_products"`` recomputes all but matrix products (on the hoisted path
        it is the same as ``"none"``); ``"full"`` stores the carries only; ``"chunked"`` stores one
        carry every sqrt(T) steps. Take ``"none"`` while it fits into memory; then ``"full"``, which
        needs a third to a half of it for a tenth of the speed or less; ``"chunked"``, a fifth for
        a seventh of the speed, for thousands of steps (as measured on the hoisted path of a CPU).
      implementation: ``"auto"`` (default) picks by cell, platform and shape. ``"scan"`` is the
        plain scan, differentiable any number of times and in forward mode. ``"hoisted"`` computes
        all that depends on inputs alone before the loop and has a backward pass of its own: the
        same numbers sooner, for a :class:`RelationalMemoryCell` whose steps share their params.
        ``"fused"`` is the same with Pallas kernels for all that lies between the products of a
        step, for NVIDIA GPUs: for one block with gates, no output gate, a norm of queries, keys
        and values, and slots, heads and head size powers of 2. With memories that are not float32,
        products in neither float32 nor bfloat16, or another `remat` than ``"none"`` and
        ``"save_products"`` it is ``"hoisted"``. `unroll` is of no effect. Elsewhere than on an
        NVIDIA GPU it is interpreted, which takes minutes. Arrays that are sharded over devices it
        gathers on each. ``"auto"`` takes it on a single such GPU, without `unroll`, `resets` and
        `mask`: with these it was tested interpreted only.
        Neither ``"hoisted"`` nor ``"fused"`` has a forward-mode derivative: `jax.jvp`,
        `jax.jacfwd` and `jax.hessian` (forward over reverse) raise TypeError. The message says to
        use ``"scan"``, or is JAX's own, about forward mode and a custom_vjp function, where what
        is differentiated is jitted itself; what `jax.linearize` returns raises it when called.
        `jax.grad` and `jax.jacrev` work, and with ``"hoisted"`` reverse mode over these;
        ``"fused"`` raises TypeError there. With axes of a mesh that are explicit ``"auto"`` is
        ``"scan"``, and resets are not supported.
        Initialising, capturing and sequences without any numbers (B or T 0) run the plain scan
        always.

    Raises:
      ValueError: an unknown `remat` or `implementation`, `unroll` below 1, inputs of too few axes,
        `resets`, `mask`, `seq_lengths` or `initial_carry` of the wrong shape; ``"hoisted"`` and
        ``"fused"`` for another cell than a :class:`RelationalMemoryCell`, or for one with params
        for each step; ``"fused"`` for a cell that its kernels are not made for.
      TypeError: `resets` or `mask` not bool, `seq_lengths` not integer, inputs not an array,
        `initial_carry` not of the cell's structure.
      flax.errors.FlaxError: parameters that are missing, or of other shapes than the cell's.
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
    implementation: str = "auto"

    def __post_init__(self) -> None:
        check_choice("remat", self.remat, REMATS)
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_positive(unroll=self.unroll)
        super().__post_init__()

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Carry | None = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        resets: Array | None = None,
        mask: Array | None = None,
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
          initial_carry: the carry to start from (default: the cell's `initialize_carry`).
          init_key: key for `initialize_carry` (default: ``jax.random.key(0)``).
          seq_lengths: ``[*B]`` integers. As in flax, the scan runs over the padding too and its
            outputs there mean nothing, but the carry returned is that of the last valid step.
          resets: ``[*B, T]`` (or ``[T, *B]``) bool. True says that this step's input is the first
            of a new episode: the carry is re-initialised before it. With `reverse`, episodes are
            the same stretches of the sequence, each run backwards.
          mask: ``[*B, T]`` (or ``[T, *B]``) bool. Where False the carry passes through unchanged
            (a reset there is passed over as well) and the output is that of the last valid step.
            Before the first valid step it is the output that goes with the initial carry, zeros
            for a cell that cannot tell (one that is neither flax's nor has `output_from_carry`).
          return_carry: overrides the attribute.
          time_major: overrides the attribute.
          reverse: overrides the attribute.
          keep_order: overrides the attribute.
          return_all_carries: also return the carries after every step, stacked where the time axis
            of the outputs is.

        Returns:
          ``outputs``; ``(carry, outputs)`` with `return_carry`; ``(carries, outputs)`` with
          `return_all_carries`; ``(carry, carries, outputs)`` with both.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order

        time_axis, batch = self._layout(inputs, time_major)
        steps = inputs.shape[time_axis]
        layout = "[T, *B]" if time_major else "[*B, T]"
        per_step = (steps, *batch) if time_major else (*batch, steps)
        for name, flags in (("resets", resets), ("mask", mask)):
            _check_flags(name, flags, per_step, layout)
        _check_lengths(seq_lengths, batch)

        def flip(x: Array) -> Array:
            return flip_sequences(x, seq_lengths, len(batch), time_major)

        if reverse:
            inputs = flip(inputs)
            mask = None if mask is None else flip(mask)
            if resets is not None:
                # Running backwards, an episode is entered after its first step has been left.
                resets = _shift_right(flip(resets), time_axis)

        if init_key is None:
            init_key = jax.random.key(0)
        step_shape = inputs.shape[:time_axis] + inputs.shape[time_axis + 1 :]
        fresh_carry = None
        if initial_carry is None or resets is not None:
            fresh_carry = self.cell.initialize_carry(init_key, step_shape)
        carry = fresh_carry if initial_carry is None else initial_carry

        valid = None
        if seq_lengths is not None and return_carry:
            index = jax.lax.broadcasted_iota(seq_lengths.dtype, per_step, time_axis)
            valid = index < jnp.expand_dims(seq_lengths, time_axis)
        sequence = SequenceInputs(jnp.asarray(inputs), resets, mask, valid)
        result = self._run(sequence, carry, fresh_carry, step_shape, time_axis, return_all_carries)

        outputs, carries = result.outputs, result.carries
        if reverse and keep_order:
            outputs, carries = jax.tree.map(flip, (outputs, carries))
        returned = (
            *((result.carry,) if return_carry else ()),
            *((carries,) if return_all_carries else ()),
            outputs,
        )
        return returned if len(returned) > 1 else outputs

    def _run(
        self,
        sequence: SequenceInputs,
        carry: Carry,
        reset_carry: Carry | None,
        step_shape: tuple[int, ...],
        time_axis: int,
        all_carries: bool,
    ) -> SequenceOutputs:
        """Runs the sequence on the implementation that fits."""
        capturing = self.is_mutable_collection("intermediates")
        batch = step_shape[: len(step_shape) - self.cell.num_feature_axes]
        sizes = {"batch_size": math.prod(batch), "steps": sequence.inputs.shape[time_axis]}
        variable_axes = dict(self.variable_axes)
        if capturing:
            variable_axes.setdefault("intermediates", time_axis)
        lifting = Lifting(
            self.unroll,
            variable_axes,
            self.variable_broadcast,
            self.variable_carry,
            self.split_rngs,
        )
        implementation = resolve_implementation(
            self.implementation,
            self.cell,
            lifting,
            flags=sequence.resets is not None or sequence.mask is not None,
            explicit=has_explicit_axes(sequence.inputs),
            **sizes,
        )
        if implementation != "scan" and not capturing and not self.is_initializing():
            from rrnn_jax.scan.relational import relational_scan  # See dispatch.py.

            assert isinstance(self.cell, RelationalMemoryCell)
            self.cell.check_step(carry, step_shape)
            step = jax.ShapeDtypeStruct(step_shape, sequence.inputs.dtype)
            return relational_scan(
                self.cell,
                checked_params(self.cell, self.cell.variables, carry, step),
                sequence,
                carry,
                reset_carry,
                time_axis=time_axis,
                plan=hoisted_plan(self.cell, self.unroll, fused=implementation == "fused", **sizes),
                remat=self.remat,
                all_carries=all_carries,
            )
        # Neither initialising nor capturing is differentiated, and both want every variable.
        remat = "none" if capturing or self.is_initializing() else self.remat
        return plain_scan(
            self.cell,
            sequence,
            carry,
            reset_carry,
            time_axis=time_axis,
            lifting=lifting,
            remat=remat,
            all_carries=all_carries,
        )

    def _layout(self, inputs: Array, time_major: bool) -> tuple[int, tuple[int, ...]]:
        """The time axis and the batch shape of the inputs."""
        if not hasattr(inputs, "shape"):
            raise TypeError(f"inputs must be one array, got {type(inputs).__name__}")
        features = self.cell.num_feature_axes
        if inputs.ndim < features + 1:
            raise ValueError(
                f"inputs must have a time axis and {features} feature axes "
                f"({type(self.cell).__name__}.num_feature_axes), got shape {inputs.shape}"
            )
        if time_major:
            return 0, inputs.shape[1 : inputs.ndim - features]
        time_axis = inputs.ndim - features - 1
        return time_axis, inputs.shape[:time_axis]


def _shift_right(flags: Array, axis: int) -> Array:
    """Moves flags one step later; the first becomes False."""
    if flags.shape[axis] == 0:
        return flags
    first = jnp.zeros_like(jax.lax.slice_in_dim(flags, 0, 1, axis=axis))
    rest = jax.lax.slice_in_dim(flags, 0, flags.shape[axis] - 1, axis=axis)
    return jnp.concatenate([first, rest], axis=axis)


def _check_flags(name: str, flags: Any, shape: tuple[int, ...], layout: str) -> None:
    if flags is None:
        return
    if not hasattr(flags, "dtype") or flags.dtype != jnp.bool_:
        kind = getattr(flags, "dtype", type(flags).__name__)
        raise TypeError(f"{name} must be a bool array {layout}, got {kind}")
    check_shape(name, flags, shape, layout)


def _check_lengths(lengths: Any, batch: tuple[int, ...]) -> None:
    if lengths is None:
        return
    if not hasattr(lengths, "dtype") or not jnp.issubdtype(lengths.dtype, jnp.integer):
        kind = getattr(lengths, "dtype", type(lengths).__name__)
        raise TypeError(f"seq_lengths must be an integer array [*B], got {kind}")
    check_shape("seq_lengths", lengths, batch, "[*B]")
