"""Problems on a stream: windows of a long text in order, with a carry between them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.gradients import gradient_step
from experiments.common.optimizers import make_optimizer
from experiments.common.parallel import split_rows
from experiments.common.problem import Evaluation, Mean, Metrics, Params, Problem, Score
from experiments.common.supervised import with_average
from experiments.common.train_config import TrainConfig

Carry = Any


class Window(NamedTuple):
    """A part of the stream for each row.

    Attributes:
      inputs: ``[B, T]`` int32.
      targets: ``[B, T]`` int32, the next tokens.
      mask: ``[B, T]`` bool: which targets count; False in the padding of the last window.
      starts: ``[B]`` bool: whether the row starts here, with a fresh carry.
    """

    inputs: Any
    targets: Any
    mask: Any
    starts: Any


@dataclasses.dataclass(frozen=True)
class Windows:
    """The feed of a text: B equal parts of it, each in windows of T tokens.

    Row b reads part b from beginning to end, repeatedly. Every target is in exactly one window of
    an epoch; the last window is padded and masked.

    >>> windows = Windows(np.arange(10), batch_size=2, length=3)
    >>> windows.num_steps
    2
    >>> window = windows(1, 1)
    >>> window.inputs[0].tolist(), window.mask[0].tolist()
    ([[3, 3, 3], [7, 8, 8]], [[True, False, False], [True, True, False]])

    Attributes:
      tokens: ``[N]`` integers; may be a memory map, of which only the requested part is read.
      batch_size: B.
      length: T.

    Raises:
      ValueError: there is less than one target for each row.
    """

    tokens: np.ndarray
    batch_size: int
    length: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.batch_size:
            raise ValueError(
                f"tokens must be more than one for each of {self.batch_size} rows, "
                f"got {len(self.tokens)}"
            )

    @property
    def num_steps(self) -> int:
        """Windows of an epoch."""
        longest = -(-(len(self.tokens) - 1) // self.batch_size)
        return -(-longest // self.length)

    def __call__(self, step: int, num_steps: int) -> Window:
        """Windows `step`, `step + 1`, ..., each leaf ``[num_steps, B, ...]``."""
        last = len(self.tokens) - 1  # The number of targets.
        bounds = [last * b // self.batch_size for b in range(self.batch_size + 1)]
        ends = np.asarray(bounds[1:])[:, None]
        inputs, targets, masks, starts = [], [], [], []
        for index in range(step, step + num_steps):
            window = index % self.num_steps
            places = np.asarray(bounds[:-1])[:, None] + window * self.length
            places = places + np.arange(self.length)
            mask = places < ends
            places = np.minimum(places, ends - 1)
            # Sorted reads of few rows, so that a memory map is not read elsewhere.
            inputs.append(np.asarray(self.tokens[places], np.int32))
            targets.append(np.asarray(self.tokens[places + 1], np.int32))
            masks.append(mask)
            starts.append(np.full(self.batch_size, window == 0))
        return Window(*map(np.stack, (inputs, targets, masks, starts)))


class State(NamedTuple):
    """The state of a streaming problem; `carry` has a row for each of the batch."""

    params: Params
    opt_state: Any
    carry: Carry


def streaming(
    config: TrainConfig,
    *,
    init: Callable[[jax.Array], Params],
    initial_carry: Callable[[int], Carry],
    loss: Callable[..., tuple[jax.Array, tuple[Carry, Metrics]]],
    train: Any,
    evaluations: Mapping[str, Any],
    score: Score,
    eval_loss: Callable[..., tuple[jax.Array, tuple[Carry, Metrics]]] | None = None,
    needs_key: bool = False,
    show: Callable[[Params], str] | None = None,
) -> Problem:
    """A problem whose updates read a stream in consecutive windows.

    The carry is part of the `State`. Gradients stop at the start of a window (truncated
    backpropagation); the carry continues, also through checkpoints.

    Args:
      config: the training config; `config.batch_size` is that of `train`.
      init: ``init(key) -> params``.
      initial_carry: ``initial_carry(batch_size) -> carry`` of fresh rows, each leaf ``[B, ...]``.
      loss: ``loss(params, carry, batch) -> (loss, (carry, metrics))``, a mean over the batch's
        rows. The carry is already fresh where ``batch.starts``.
      train: the batches, a `Windows` or a similar feed: callable, with `batch_size` and
        `num_steps`, and batches with a field ``starts``.
      evaluations: "valid" and optionally "test", likewise; each is read once, from fresh carries.
      score: a metric of the loss.
      eval_loss: as `loss`, for evaluations, without a key (default: `loss`).
      needs_key: whether the loss has a key as its fourth argument, for dropout (then `eval_loss`
        is required).
      show: ``show(params) -> text``, see `Problem`.

    Raises:
      ValueError: `eval_loss` is missing, or the batch sizes differ.
    """
    if needs_key and eval_loss is None:
        raise ValueError("eval_loss must be given with needs_key")
    if train.batch_size != config.batch_size:
        raise ValueError(f"batch_size must be {train.batch_size}, got {config.batch_size}")
    optimizer = make_optimizer(config)

    def of_rows(params: Params, rows: tuple, key: jax.Array) -> tuple:
        return loss(params, *rows, key) if needs_key else loss(params, *rows)

    def start(key: jax.Array) -> State:
        params = init(key)
        return State(params, optimizer.init(params), initial_carry(config.batch_size))

    def update(state: State, key: jax.Array, batch: Any) -> tuple[State, Metrics]:
        rows = _fresh_where(batch.starts, initial_carry, state.carry), batch
        params, opt_state, carry, metrics = gradient_step(
            optimizer, of_rows, state[:2], rows, key, config.micro_batches
        )
        return State(params, opt_state, split_rows(carry)), metrics

    return Problem(
        init=start,
        update=update,
        evaluations={
            name: _evaluation(windows, initial_carry, eval_loss or loss)
            for name, windows in evaluations.items()
        },
        score=score,
        feed=train,
        rows=("carry",),
        show=None if show is None else lambda state: show(state.params),
    )


def _evaluation(
    windows: Any, initial_carry: Callable[[int], Carry], judge: Callable[..., tuple]
) -> Evaluation:
    """An evaluation that reads a stream once; averaged weights have separate carries."""

    def begin(state: State) -> dict[str, Carry]:
        names = with_average(lambda params: {"": Mean.of(jnp.zeros(1))}, *state[:2])
        return {name: initial_carry(windows.batch_size) for name in names}

    def step(state: State, carries: dict, key: jax.Array, batch: Any) -> tuple[dict, Metrics]:
        del key
        carries, batch = split_rows((carries, batch))
        left = iter(carries.items())
        new: dict[str, Carry] = {}

        def judged(params: Params) -> dict[str, Mean]:
            name, carry = next(left)
            carry = _fresh_where(batch.starts, initial_carry, carry)
            value, (new[name], metrics) = judge(params, carry, batch)
            # The last window of a text may have fewer targets.
            return {"loss": Mean.of(value[None], jnp.sum(batch.mask)[None]), **metrics}

        return new, with_average(judged, state.params, state.opt_state)

    return Evaluation(step, windows.num_steps, begin, windows)


def _fresh_where(starts: jax.Array, initial_carry: Callable[[int], Carry], carry: Carry) -> Carry:
    """The carry, with fresh rows where a row starts."""

    def choose(fresh: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(starts.reshape(-1, *[1] * (old.ndim - 1)), fresh, old)

    return jax.tree.map(choose, initial_carry(starts.shape[0]), carry)
