"""Layers made of `RNN`: bidirectional ones and stacks."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from rrnn_jax.rnn import RNN
from rrnn_jax.typing import Array, Carry


class Bidirectional(nn.Bidirectional):
    r"""`flax.linen.Bidirectional` with resets and masks; the same parameter tree.

    .. math:: y_t = \mathrm{merge}(\overrightarrow{y}_t, \overleftarrow{y}_t)

    With ``resets`` each episode runs forward from its first step and backward from its last;
    masked steps are skipped in both directions.

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, Bidirectional, RelationalMemoryCell
    >>> cell = RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2)
    >>> both = Bidirectional(RNN(cell), RNN(cell.copy()))
    >>> x = jnp.ones((8, 10, 5))
    >>> mask = jnp.ones((8, 10), bool).at[:, 7:].set(False)
    >>> y, variables = jax.jit(both.init_with_output)(jax.random.key(0), x, mask=mask)
    >>> y.shape  # [B, T, 2*S*F]
    (8, 10, 128)

    Attributes:
      forward_rnn, backward_rnn: an `RNN` each; pass the same one twice to share parameters.
      merge_fn: joins the outputs of both (default: concatenation along the last axis).
      time_major: inputs are ``[T, *B, ...]`` (default: False).
      return_carry: return ``((forward, backward), outputs)`` (default: False).
    """

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        reset_carry: tuple[Carry, Carry] | None = None,
        init_key: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        **arguments: Any,
    ) -> Any:
        """Runs both over `inputs`.

        Args:
          inputs: as for an `RNN`.
          initial_carry: a carry for each direction (default: each cell's own).
          reset_carry: a carry after resets for each direction (default: see `RNN`).
          init_key: key for both cells' `initialize_carry`.
          return_carry: overrides the attribute.
          time_major: overrides the attribute.
          reverse: ignored, as in Flax: one direction is reversed, and outputs are in the order of
            the inputs.
          keep_order: ignored.
          **arguments: `seq_lengths`, `resets`, `mask` and `row_mask` of an `RNN`, for both.

        Returns:
          ``outputs``, or ``((forward, backward), outputs)`` with `return_carry`.

        Raises:
          ValueError: carries that are not one for each direction.
          TypeError: `return_all_carries`, or an attribute that is not an `RNN`.
        """
        del reverse, keep_order
        _check_layers(forward_rnn=self.forward_rnn, backward_rnn=self.backward_rnn)
        time_major = self.time_major if time_major is None else time_major
        return_carry = self.return_carry if return_carry is None else return_carry
        _check_arguments(self, arguments)
        starts = _one_for_each("initial_carry", initial_carry, "directions", 2)
        resets = _one_for_each("reset_carry", reset_carry, "directions", 2)
        keys = (None, None) if init_key is None else jax.random.split(init_key)
        options = {"time_major": time_major, "return_carry": True, **arguments}
        own = [{} if one is None else {"reset_carry": one} for one in resets]
        forward, ahead = self.forward_rnn(
            inputs, initial_carry=starts[0], init_key=keys[0], reverse=False, **options, **own[0]
        )
        backward, behind = self.backward_rnn(
            inputs,
            initial_carry=starts[1],
            init_key=keys[1],
            reverse=True,
            keep_order=True,
            **options,
            **own[1],
        )
        outputs = jax.tree.map(self.merge_fn, ahead, behind)
        return ((forward, backward), outputs) if return_carry else outputs


class RNNStack(nn.Module):
    r"""A stack of `RNN` layers, each on the outputs of the previous one.

    .. math:: y^0 = x, \qquad y^l = \mathrm{RNN}_l(y^{l-1})

    >>> import jax, jax.numpy as jnp
    >>> from rrnn_jax import RNN, RelationalMemoryCell, RNNStack
    >>> cell = RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2)
    >>> stack = RNNStack([RNN(cell), RNN(cell.copy())])
    >>> x = jnp.ones((8, 10, 5))
    >>> variables = jax.jit(stack.init)(jax.random.key(0), x)
    >>> apply = jax.jit(stack.apply, static_argnames="return_carry")
    >>> carries, y = apply(variables, x, return_carry=True)
    >>> carries, y = apply(variables, x, initial_carry=carries, return_carry=True)
    >>> y.shape, len(carries)
    ((8, 10, 64), 2)

    Every layer gets the outputs of the one below in the order of the inputs, also those of a layer
    that runs in reverse. The order of the last layer's outputs is that of an `RNN`.

    Attributes:
      rnns: the layers, the lowest first, each with a cell of its own (`cell.copy()`): layers with
        the same cell object share its parameters. Their `return_carry` has no effect, and
        `keep_order` only in the last.
    """

    rnns: Sequence[RNN]

    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Sequence[Carry] | None = None,
        reset_carry: Sequence[Carry] | None = None,
        init_key: Array | None = None,
        row_mask: Array | None = None,
        return_carry: bool = False,
        **arguments: Any,
    ) -> Any:
        """Runs the layers over `inputs`.

        Args:
          inputs: as for the first layer.
          initial_carry: a carry for each layer (default: each cell's own).
          reset_carry: a carry after resets for each layer (default: see `RNN`).
          init_key: key that is split for the `initialize_carry` of all cells.
          row_mask: as for the first layer, the only one with matrix inputs.
          return_carry: also return the carries of all layers.
          **arguments: other arguments of an `RNN`, for every layer. `reverse` and `keep_order` have
            no effect on a `Bidirectional`, which returns outputs in the order of its inputs.

        Returns:
          The last layer's outputs, or ``(carries, outputs)`` with `return_carry`.

        Raises:
          ValueError: carries that are not one for each layer.
          TypeError: `return_all_carries`, or a layer that is not an `RNN`.
        """
        if not isinstance(self.rnns, tuple | list) or not self.rnns:
            raise ValueError(f"rnns must be a list of at least one RNN, got {self.rnns!r}")
        _check_layers(**{f"rnns[{i}]": rnn for i, rnn in enumerate(self.rnns)})
        _check_arguments(self, arguments)
        count = len(self.rnns)
        starts = _one_for_each("initial_carry", initial_carry, "layers", count)
        resets = _one_for_each("reset_carry", reset_carry, "layers", count)
        keys = [None] * count if init_key is None else jax.random.split(init_key, count)
        carries = []
        for i, (rnn, start, reset) in enumerate(zip(self.rnns, starts, resets, strict=True)):
            options = {"init_key": keys[i]} | ({} if reset is None else {"reset_carry": reset})
            if i == 0 and row_mask is not None:
                options["row_mask"] = row_mask
            if i + 1 < count:
                options["keep_order"] = True  # The flags of the next layer are in that order.
            options = {"initial_carry": start, "return_carry": True, **arguments, **options}
            carry, inputs = rnn(inputs, **options)
            carries.append(carry)
        return (tuple(carries), inputs) if return_carry else inputs


def _check_arguments(layer: nn.Module, arguments: dict[str, Any]) -> None:
    """Raises for arguments of an `RNN` that a layer of several does not have."""
    if "return_all_carries" in arguments:
        raise TypeError(f"return_all_carries is an argument of RNN, not of {type(layer).__name__}")


def _one_for_each(name: str, carries: Any, of: str, count: int) -> Sequence[Carry | None]:
    """The carries; None for each if there are none; raises if their number differs."""
    if carries is None:
        return [None] * count
    if not isinstance(carries, tuple | list) or len(carries) != count:
        raise ValueError(
            f"{name} must hold a carry for each of {count} {of}, got {jax.tree.structure(carries)}"
        )
    return carries


def _check_layers(**rnns: Any) -> None:
    """Raises unless all are layers: a common mistake is to pass cells."""
    for name, rnn in rnns.items():
        arguments = inspect.signature(type(rnn).__call__).parameters.values()
        takes = any(x.name == "initial_carry" or x.kind == x.VAR_KEYWORD for x in arguments)
        if isinstance(rnn, nn.RNNCellBase) or not isinstance(rnn, nn.Module) or not takes:
            raise TypeError(f"{name} must be an RNN, got {type(rnn).__name__}")
