"""`RNN`: runs a cell over a sequence, like `flax.linen.RNN`, with resets, masks and more."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import FrozenDict

from rrnn_jax.arguments import Call, Prepared, prepare
from rrnn_jax.checks import check_choice, check_positive
from rrnn_jax.scan.dispatch import IMPLEMENTATIONS, REMATS, Request, explain, run
from rrnn_jax.scan.plain import Lifting
from rrnn_jax.scan.sequence import SequenceOutputs
from rrnn_jax.typing import Array, Carry, Implementation, Remat


class RNN(nn.Module):
    r"""Runs a recurrent cell over a sequence: `flax.linen.RNN`, faster and with more to it.

    Takes every argument of `flax.linen.RNN` with the same meaning, makes the same parameter tree,
    and works with any `flax.linen.RNNCellBase`, within `flax.linen.Bidirectional` too. On top:

    - ``resets``: several episodes in one sequence;
    - ``mask``: steps that are passed over; ``row_mask``: rows of matrix inputs that are not there;
    - ``return_all_carries``: the carry after every step;
    - ``seq_lengths`` with ``return_carry`` for any number of batch axes;
    - ``remat``: less memory in training;
    - ``implementation``: a :class:`RelationalMemoryCell` runs on a path of its own that gives the
      same numbers sooner;
    - ``mutable=["intermediates"]`` captures what the cell sows, with the time axis in place.

    Batch axes may be sharded over devices, in one or several axes of a mesh, automatic or explicit
    (`jax.set_mesh`): a training step then sends nothing but sums of the weights' gradients. It runs
    within `jax.shard_map` as well. `jax.export` works with symbolic batch and length.

    Dtypes of a :class:`RelationalMemoryCell`; "widest" is float32 of bfloat16 and float16:

    ===============  ===============================================================================
    carries          those of `initial_carry`; else float32, or float64 with such `param_dtype`
    outputs          the cell's `dtype`; else the carry's
    products         the cell's `dtype`; else the widest of inputs and parameters for the input's
                     projection, of these and the carry, in float32 at least, for all others but the
                     gates', which take that of carry (or projection) and parameters
    norms, softmax,  float32 or wider
    gates
    gradients        those of what they belong to
    ===============  ===============================================================================

    Implementations agree to rounding. A core of the default sizes with its initial weights
    amplifies rounding from step to step, under `flax.linen.RNN` as well: an error of 2e-7 was 2e-3
    after 500 steps and 1 after 1,023 (``docs/faq.md`` has the program).

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

    Where an environment tells at each step whether that step was the last (``done``), the flag of
    the *previous* step begins an episode:

    >>> done = resets
    >>> resets = jnp.concatenate([jnp.zeros((8, 1), bool), done[:, :-1]], axis=1)

    The first column is the last `done` of the chunk before, where the carry comes from it.

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
        carry every sqrt(T) steps (on the plain scan not of a cell that draws random numbers: they
        would be others).
        Take ``"none"`` while it fits into memory; then ``"full"``, which needs a third to a half of
        it for a tenth of the speed or less; ``"chunked"``, a fifth for a seventh of the speed, for
        thousands of steps (as measured on the hoisted path of a CPU).
      implementation: ``"auto"`` (default) picks by cell, platform and shape. ``"scan"`` is the
        plain scan. ``"hoisted"`` computes all that depends on inputs alone before the loop, and its
        operations have backward passes that are fast: the same numbers sooner, for a
        :class:`RelationalMemoryCell` whose steps share their params; a subclass that changes only
        where sequences start (`initialize_carry`) is one, too. ``"fused"`` is the same with Pallas
        kernels for all that lies between the products of a step, for NVIDIA GPUs: for one block
        with gates, no output gate, a norm of queries, keys and values, memories in float32, and
        slots, heads and head size powers of 2; without `seq_lengths` and capture, with `remat`
        ``"none"`` or ``"save_products"``. `unroll` is of no effect on it. Elsewhere than on an
        NVIDIA GPU it is interpreted, which takes minutes, and warns. On several devices each runs
        its share of the batch where the ambient mesh (`jax.set_mesh`) has an automatic axis named
        ``"data"``; else sharded arrays are gathered on each. ``"auto"`` takes it on a single such
        GPU or on such a mesh, without `unroll`, `resets` and `mask`: with these it was tested
        interpreted only. ``"cuda"`` runs all steps in one CUDA kernel each way, for
        ``dtype=jnp.bfloat16`` on NVIDIA GPUs of compute capability 8.0 or later, resets and mask
        included; ``rrnn_jax/scan/cuda/README.md`` says for which cells. No GPU has run it yet, so
        ``"auto"`` does not take it.
        ``"auto"`` runs the plain scan where `flax.linen.intercept_methods` or
        ``capture_intermediates`` want to see calls of the cell. Initialising, and sequences without
        any numbers (B or T 0), run the plain scan always.

    Raises:
      ValueError: an unknown `remat` or `implementation`, `unroll` below 1, inputs of too few axes,
        `resets`, `mask`, `seq_lengths` or `initial_carry` of the wrong shape; ``"hoisted"``,
        ``"fused"`` and ``"cuda"`` for another cell than a :class:`RelationalMemoryCell`, or for one
        with params for each step; ``"fused"`` and ``"cuda"`` for a cell that their kernels are not
        made for, ``"cuda"`` for a device too.
      TypeError: `mask` not bool, `resets` neither bool nor numbers, `seq_lengths` not integer,
        inputs not an array, `initial_carry` not of the cell's structure or of integers.
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
    implementation: Implementation = "auto"

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
          initial_carry: the carry to start from (default: the cell's `initialize_carry`). The
            carries returned, and what a reset puts in place, are of its dtypes and sharding.
          init_key: key for `initialize_carry` (default: ``jax.random.key(0)``).
          seq_lengths: ``[*B]`` integers. As in flax, the scan runs over the padding too and its
            outputs there mean nothing, but the carry returned is that of the last valid step.
          resets: ``[*B, T]`` (or ``[T, *B]``) bool, or numbers that are not 0 where True. True says
            that this step's input is the first of a new episode: the carry is re-initialised before
            it. With `reverse`, episodes are the same stretches of the sequence, each run backwards.
          reset_carry: what a reset puts in place, shaped like a carry or without its batch axes;
            gradients reach it (default: the cell's `initialize_carry`, not `initial_carry`).
          mask: ``[*B, T]`` (or ``[T, *B]``) bool. Where False the carry passes through unchanged
            (a reset there is passed over as well) and the output is that of the last valid step.
            Before the first valid step it is the output that goes with the initial carry, zeros
            for a cell that cannot tell (one that is neither flax's nor has `output_from_carry`).
          row_mask: ``[*B, T, R]`` (or ``[T, *B, R]``) bool, for a :class:`RelationalMemoryCell`
            with matrix inputs: rows that are there, such as the entities of an environment. The
            others are not attended to, their weights are 0, and the gates see x' = 0.
          return_carry: overrides the attribute.
          time_major: overrides the attribute.
          reverse: overrides the attribute.
          keep_order: overrides the attribute.
          return_all_carries: also return the carries after every step, stacked where the time axis
            of the outputs is.

        Returns:
          ``outputs``; ``(carry, outputs)`` with `return_carry`; ``(carries, outputs)`` with
          `return_all_carries`; ``(carry, carries, outputs)`` with both. `run` names them.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
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
        returned = (
            *((result.carry,) if return_carry else ()),
            *((result.carries,) if return_all_carries else ()),
            result.outputs,
        )
        return returned if len(returned) > 1 else result.outputs

    def run(
        self, inputs: Array, *, return_all_carries: bool = False, **arguments: Any
    ) -> SequenceOutputs:
        """The same with a result whose parts have names, whatever `return_carry` is.

        >>> import jax, jax.numpy as jnp
        >>> from rrnn_jax import RNN, RelationalMemoryCell
        >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2))
        >>> x = jnp.ones((8, 10, 5))
        >>> result = rnn.apply(rnn.init(jax.random.key(0), x), x, method="run")
        >>> result.outputs.shape, result.carry.shape, result.carries
        ((8, 10, 128), (8, 4, 32), None)

        Args:
          inputs: as for a call.
          return_all_carries: as for a call.
          **arguments: the others of a call, without `return_carry`.

        Returns:
          `SequenceOutputs`: ``carry``, ``outputs`` and ``carries`` (or None).
        """
        own = {name: getattr(self, name) for name in ("time_major", "reverse", "keep_order")}
        return self._over_time(inputs, Call(**(own | arguments)), return_all_carries)

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

        A learned initial memory is a parameter: `rnn.apply(variables, (8,),
        method="initialize_carry")` gives it.

        Args:
          batch_shape: ``*B``.
          rng: key for the cell's `initialize_carry` (default: ``jax.random.key(0)``).
          feature_shape: shape of one input without batch and time, for cells whose carry depends on
            it, such as convolutional ones (default: ones).

        Returns:
          A carry.

        Raises:
          ValueError: the cell's initial memory is learned, and there are no variables.
        """
        if getattr(self.cell, "learned_carry", False) and self.scope is None:
            raise ValueError(
                "initialize_carry of a cell with learned_carry=True needs its variables: "
                'rnn.apply(variables, batch_shape, method="initialize_carry")'
            )
        features = (1,) * self.cell.num_feature_axes if feature_shape is None else feature_shape
        key = jax.random.key(0) if rng is None else rng
        return self.cell.initialize_carry(key, (*batch_shape, *features))

    def _over_time(self, inputs: Array, call: Call, all_carries: bool) -> SequenceOutputs:
        """Prepares what a call brings, runs it, and puts the results in order."""
        self._check_bound("rnn.apply(variables, inputs)")
        prepared = prepare(self.cell, inputs, call)
        result = run(self.implementation, self._request(prepared, all_carries))
        if call.reverse and call.keep_order:
            outputs, carries = jax.tree.map(prepared.flip, (result.outputs, result.carries))
            result = result._replace(outputs=outputs, carries=carries)
        return result

    def explain(self, inputs: Array, **arguments: Any) -> str:
        """Which implementation runs a call, and why no faster one does.

        >>> import jax, jax.numpy as jnp
        >>> from rrnn_jax import RNN, RelationalMemoryCell
        >>> rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=16, num_heads=2))
        >>> x = jnp.ones((8, 1, 5))
        >>> variables = rnn.init(jax.random.key(0), x)
        >>> reasons = rnn.apply(variables, x, method="explain").split("; ")
        >>> [reason for reason in reasons if reason.startswith("'hoisted'")]
        ["'hoisted' gains nothing in a single step"]

        Args:
          inputs: as for a call.
          **arguments: the others of a call, without `return_carry`.

        Returns:
          A sentence or two.

        Raises:
          ValueError: there are no variables.
        """
        self._check_bound('rnn.apply(variables, inputs, method="explain")')
        own = {name: getattr(self, name) for name in ("time_major", "reverse", "keep_order")}
        prepared = prepare(self.cell, inputs, Call(**(own | arguments)))
        return explain(self.implementation, self._request(prepared, False))

    @nn.nowrap
    def _check_bound(self, instead: str) -> None:
        """Raises unless there are variables, with the call to make `instead`."""
        if self.scope is None:
            raise ValueError(f"RNN has no variables here: it must be called as {instead}")

    def _request(self, prepared: Prepared, all_carries: bool) -> Request:
        """What is to be run."""
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
