"""The device's part of training: many updates per call, for several seeds and devices."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.common.parallel import DATA, SEEDS, count, make_mesh, place, to_host, wait
from experiments.common.problem import Evaluation, Mean, Metrics, Problem
from experiments.common.train_config import TrainConfig

Values = Mapping[str, list[float | None]]
"""The means of metrics by name, one for each seed; None if a mean is undefined."""

_STREAMS = {"init": 0, "train": 1, "valid": 2, "test": 4}  # 3 is for figures.
_PIECE = 64  # Steps of an evaluation whose batches are on the device at once.


class TrainState(NamedTuple):
    """The state of training.

    Random numbers are functions of seed and step, so there is no random state.

    Attributes:
      step: updates made.
      inner: the problem's state; every leaf has a leading axis of seeds.
    """

    step: jax.Array
    inner: Any

    @property
    def params(self) -> Any:
        """The parameters, with a leading axis of seeds."""
        return self.inner.params


class _Program:
    """A function of arrays and a static number, compiled once for each number.

    Processes wait until all have compiled it, so that none is late for its collectives.
    """

    def __init__(self, function: Callable[..., Any], static: int, **options: Any) -> None:
        self._jitted = jax.jit(function, static_argnums=static, **options)
        self._compiled: dict[int, Any] = {}

    def compile(self, *args: Any) -> None:
        """Compiles it for these arguments and this number, the last one, without running it."""
        if args[-1] not in self._compiled:
            self._compiled[args[-1]] = self._jitted.lower(*args).compile()
            wait()

    def __call__(self, *args: Any) -> Any:
        self.compile(*args)
        return self._compiled[args[-1]](*args[:-1])


class Programs:
    """The jitted functions of a problem.

    Args:
      problem: the problem.
      config: the training config.
    """

    def __init__(self, problem: Problem, config: TrainConfig) -> None:
        self.problem, self.config = problem, config
        self.mesh = make_mesh(config)
        self._everywhere: Any = self._sharding()
        self._seeds = np.asarray(config.seeds, np.int32)
        self._data: tuple = ()
        if problem.data is not None:
            self._data = (place(problem.data, self._everywhere),)
        shardings = self._state_shardings()
        self._init = jax.jit(self._make_init(), out_shardings=shardings)
        self._train = _Program(
            self._make_chunk(),
            static=3,
            donate_argnums=0,
            out_shardings=None if self.mesh is None else (shardings, self._everywhere),
        )
        self._evaluations: dict[tuple, tuple[Any, Any]] = {}

    @property
    def shapes(self) -> TrainState:
        """Shapes and dtypes of the state, as required of a checkpoint."""
        return jax.eval_shape(self._make_init(), self._seeds, *self._data)

    def init(self) -> TrainState:
        """The state before the first update."""
        with self._on_mesh():
            return self._init(self._seeds, *self._data)

    def place(self, state: TrainState) -> TrainState:
        """Moves a state of NumPy arrays to the devices."""
        return place(state, self._state_shardings())

    def batches(self, step: int, num_steps: int) -> Any:
        """The batches of updates, sent to the devices; None without a feed."""
        return self._fed(self.problem.feed, step, num_steps)

    def train_chunk(self, state: TrainState, num_steps: int, batches: Any = None) -> tuple:
        """Dispatches updates without waiting for them.

        Args:
          state: the state, which is donated.
          num_steps: number of updates.
          batches: their batches (default: from the feed).

        Returns:
          The state, and metrics pooled over the updates, for `to_values`.
        """
        if batches is None and self.problem.feed is not None:
            batches = self.batches(int(state.step), num_steps)
        with self._on_mesh():
            return self._train(state, batches, self._data, num_steps)

    def compile(self, state: TrainState, num_steps: int, batches: Any) -> None:
        """Compiles ``train_chunk(state, num_steps, batches)``, so that its first call is fast."""
        with self._on_mesh():
            self._train.compile(state, batches, self._data, num_steps)

    def evaluate(self, state: TrainState, name: str = "valid") -> dict[str, list[float | None]]:
        """The metrics of an evaluation, one value for each seed."""
        evaluation = self.problem.evaluations[name]
        begin, steps = self._evaluation(evaluation)
        stream = np.int32(_STREAMS[name])
        piece = evaluation.num_steps if evaluation.feed is None else _PIECE
        total: dict[str, Mean] = {}
        with self._on_mesh():
            carry = begin(state.inner, self._data)
        for first in range(0, evaluation.num_steps, piece):
            count = min(piece, evaluation.num_steps - first)
            batches = self._fed(evaluation.feed, first, count)
            with self._on_mesh():
                carry, found = steps(
                    *(state.inner, carry, stream, np.int32(first), batches, self._data, count)
                )
            found = to_host(found)
            total = {k: mean + total[k] for k, mean in found.items()} if total else found
        return to_values(total)

    def show(self, state: TrainState) -> str | None:
        """The problem's examples for the first seed; None if it has none."""
        if self.problem.show is None:
            return None
        inner = state.inner if count() == 1 else to_host(state.inner)
        return self.problem.show(jax.tree.map(lambda x: x[0], inner))

    def _make_init(self) -> Callable[..., TrainState]:
        def init(seeds: jax.Array, *data: Any) -> TrainState:
            def one(seed: jax.Array) -> Any:
                return self.problem.init(_key(seed, _STREAMS["init"]), *data)

            return TrainState(jnp.int32(0), _over_seeds(one)(seeds))

        return init

    def _make_chunk(self) -> Callable[..., tuple]:
        def chunk(state: TrainState, batches: Any, data: tuple, num_steps: int) -> tuple:
            def one(seed: jax.Array, inner: Any) -> tuple:
                key = _key(seed, _STREAMS["train"])

                def update(inner: Any, now: tuple) -> tuple:
                    step, batch = now
                    return self.problem.update(inner, jax.random.fold_in(key, step), batch, *data)

                steps = state.step + jnp.arange(num_steps, dtype=jnp.int32)
                inner, metrics = jax.lax.scan(update, inner, (steps, batches))
                return inner, _pool(metrics)

            inner, metrics = _over_seeds(one)(jnp.asarray(self._seeds), state.inner)
            return TrainState(state.step + num_steps, inner), metrics

        return chunk

    def _evaluation(self, evaluation: Evaluation) -> tuple[Any, Any]:
        """Its jitted functions; evaluations with the same functions share them."""
        key = (evaluation.init, evaluation.step)
        if key not in self._evaluations:

            def begin(inner: Any, data: tuple) -> Any:
                seeds = jnp.asarray(self._seeds)
                return _over_seeds(lambda seed, inner: evaluation.init(inner, *data))(seeds, inner)

            def steps(inner, carry, stream, first, batches, data, num_steps) -> tuple:
                def one(seed: jax.Array, inner: Any, carry: Any) -> tuple:
                    key = _key(seed, stream)

                    def step(carry: Any, now: tuple) -> tuple:
                        index, batch = now
                        key_of_step = jax.random.fold_in(key, index)
                        return evaluation.step(inner, carry, key_of_step, batch, *data)

                    indices = first + jnp.arange(num_steps, dtype=jnp.int32)
                    carry, metrics = jax.lax.scan(step, carry, (indices, batches))
                    return carry, _pool(metrics)

                return _over_seeds(one)(jnp.asarray(self._seeds), inner, carry)

            self._evaluations[key] = jax.jit(begin), _Program(steps, static=6)
        return self._evaluations[key]

    def _fed(self, feed: Any, step: int, num_steps: int) -> Any:
        if feed is None:
            return None
        batches = feed(step, num_steps)
        if self.mesh is None:
            return place(batches, None)
        split, whole = self._sharding(None, DATA), self._everywhere
        devices = self.mesh.shape[DATA]
        return place(
            batches,
            jax.tree.map(lambda x: whole if np.shape(x)[1] % devices else split, batches),
        )

    def _sharding(self, *axes: str | None) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec(*axes))

    def _state_shardings(self) -> Any:
        """Shardings: seeds over their axis, and the problem's `rows` over the other."""
        if self.mesh is None:
            return None
        inner = self.shapes.inner
        whole, rows = self._sharding(SEEDS), self._sharding(SEEDS, DATA)
        if not self.problem.rows:
            return TrainState(self._everywhere, jax.tree.map(lambda _: whole, inner))
        fields = {
            name: jax.tree.map(
                lambda _, name=name: rows if name in self.problem.rows else whole, value
            )
            for name, value in inner._asdict().items()
        }
        return TrainState(self._everywhere, type(inner)(**fields))

    def _on_mesh(self) -> Any:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def to_values(metrics: Metrics) -> dict[str, list[float | None]]:
    """Pooled metrics as numbers, one for each seed; waits for the device.

    >>> to_values({"return": Mean(np.float32([3, 0]), np.float32([2, 0]))})
    {'return': [1.5, None]}
    """
    return {
        name: [
            None if count == 0 else float(total / count)
            for total, count in zip(mean.total, mean.count, strict=True)
        ]
        for name, mean in to_host(metrics).items()
    }


def _pool(metrics: Metrics) -> dict[str, Mean]:
    """Pools over a leading axis of steps."""
    return {name: Mean(*(jnp.sum(x, 0) for x in mean)) for name, mean in metrics.items()}


def _over_seeds(function: Callable) -> Callable:
    """Maps over the leading axis; a single seed runs unbatched, which is faster."""

    def run(*args: Any) -> Any:
        if jax.tree.leaves(args)[0].shape[0] > 1:
            mesh = jax.sharding.get_abstract_mesh()
            name = None if mesh.empty or SEEDS not in mesh.axis_names else SEEDS
            return jax.vmap(function, spmd_axis_name=name)(*args)
        result = function(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: jnp.asarray(x)[None], result)

    return run


def _key(seed: jax.Array, stream: Any) -> jax.Array:
    """The key of a stream; streams are independent, so evaluation data are never trained on."""
    return jax.random.fold_in(jax.random.key(seed), stream)
