"""Several devices and processes: seeds are distributed over devices first, then batch rows.

Results equal those of one device to rounding: a batch is always the whole batch, and the compiler
adds the collectives.
"""

import itertools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.common import records
from experiments.common.refused import RefusedError
from experiments.common.train_config import TrainConfig

SEEDS, DATA = "seeds", "data"
"""Axes of the mesh."""

EXIT_LOST = 4
_HEARTBEAT_SECONDS = 20  # The others regard a process as dead after this time without a message.
_SHUTDOWN_SECONDS = 300  # The others wait at their end while the first one draws and writes.
_BARRIER_SECONDS = 86_400  # The heartbeat ends a wait for a dead process.
_waits = itertools.count()
ResultT = TypeVar("ResultT")


def connect(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process to the others of a run; call it before JAX initialises its devices.

    From now on only the first process writes files, and the others print only errors.

    Args:
      coordinator: HOST:PORT of the first process. None, here and below: as set by SLURM, Open MPI
        or Kubernetes, see `jax.distributed.initialize`.
      num_processes: the number of processes.
      process_id: the index of this process, from 0.

    Raises:
      RefusedError: the number of processes is unknown, or they cannot be reached.
    """
    # Otherwise JAX handles SIGTERM instead of this program.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise RefusedError(
            "the processes of this run cannot be connected; give --coordinator HOST:PORT, "
            f"--num-processes and --process-id where no cluster does: {reason}"
        ) from error
    if not is_main():
        records.only_read()
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for the rest of the process


def leave_lost(error: Exception) -> None:
    """Ends this process if the error may mean that another process ended."""
    if count() == 1:
        return
    if not isinstance(error, jax.errors.JaxRuntimeError):
        traceback.print_exception(error)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    print(
        "error: another process of this run has ended or failed; run the same command in every "
        f"process to resume from the last checkpoint ({reason[:200]})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_LOST)  # A normal exit would wait for the other process.


def make_mesh(config: TrainConfig) -> Mesh | None:
    """A mesh over the devices of all processes; None for a single device.

    A message reports unused devices: each needs the same number of seeds, or of rows of a pass.

    Raises:
      RefusedError: there are fewer devices than `config.devices`, or several processes and devices
        that cannot all be used.
    """
    devices = jax.devices()
    if config.devices is not None:
        if config.devices > len(devices):
            raise RefusedError(f"--devices {config.devices}: there are {len(devices)}")
        devices = devices[: config.devices]
    rows = config.batch_size // config.micro_batches
    seeds, data = divide(config.num_seeds, rows, len(devices))
    used = seeds * data
    if used < len(devices):
        what = (
            f"{config.num_seeds} seeds and {rows} rows per pass go evenly onto {used} of "
            f"{len(devices)} devices"
        )
        if count() > 1:
            raise RefusedError(f"{what}; with several processes all must be used")
        print(f"{what}; the others are not used")
    if used == 1 and count() == 1:
        return None
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((seeds, data), (SEEDS, DATA), axis_types=kinds, devices=devices[:used])


def divide(num_seeds: int, rows: int, devices: int) -> tuple[int, int]:
    """Numbers of parts of the seeds and of the rows that use most devices; most parts of seeds.

    >>> divide(3, 1600, 3), divide(3, 1600, 16), divide(2, 15, 4)
    ((3, 1), (1, 16), (1, 3))
    """
    pairs = [
        (seeds, max(data for data in _divisors(rows) if seeds * data <= devices))
        for seeds in _divisors(num_seeds)
        if seeds <= devices
    ]
    return max(pairs, key=lambda pair: (pair[0] * pair[1], pair[0]))


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def split_rows(tree: Any, axis: int = 0) -> Any:
    """Divides the rows of arrays over the devices of the mesh; does nothing without a mesh.

    Call it in a problem's functions on arrays with a batch axis: batches, environments, carries.
    Row-wise results stay on the devices of their rows. Rows that cannot be divided evenly are not
    moved.

    Args:
      tree: arrays.
      axis: their batch axis.

    Returns:
      The arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or DATA not in mesh.axis_names or mesh.shape[DATA] == 1:
        return tree
    spec, devices = PartitionSpec(*[None] * axis, DATA), mesh.shape[DATA]

    def split(x: jax.Array) -> jax.Array:
        if x.ndim <= axis or x.shape[axis] % devices:
            return x
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(split, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Moves host arrays, equal in all processes, to devices.

    Args:
      tree: NumPy arrays.
      shardings: a sharding, or a tree of them; None for the default device.

    Returns:
      Arrays on devices.
    """
    if shardings is None:
        return jax.device_put(tree)
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        if count() == 1:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """Whole arrays as NumPy arrays, in all processes; all of them must call it."""

    def get(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return array
        if array.is_fully_replicated:
            return array.addressable_data(0)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(get, tree))


def wait() -> None:
    """Waits until all processes have called it, for as long as none of them has ended.

    Call it where one process can be late: the first collective among CPUs waits only 30 s.
    """
    if count() > 1:
        from orbax.checkpoint import multihost

        barrier = multihost.get_barrier_sync_fn()
        barrier(key=f"wait {next(_waits)}", timeout_ms=1000 * _BARRIER_SECONDS)


def agree(*flags: bool) -> tuple[bool, ...]:
    """Whether each flag is set in any process; all must call it at the same point."""
    if count() == 1:
        return flags
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.asarray(flags))
    return tuple(bool(flag) for flag in np.any(found, axis=0))


def differ(number: int) -> bool:
    """Whether the processes give different numbers; all must call it at the same point."""
    if count() == 1:
        return False
    from jax.experimental import multihost_utils

    return len(np.unique(multihost_utils.process_allgather(np.asarray(number)))) > 1


def is_main() -> bool:
    """Whether this process writes files and draws the bar."""
    return count() == 1 or jax.process_index() == 0


def count() -> int:
    """The number of processes of this run; does not initialise devices if there is one."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def first(action: Callable[[], Any]) -> None:
    """Runs an action in the first process; the others wait, and fail if it fails."""
    every(action if is_main() else lambda: None)


def every(action: Callable[[], ResultT]) -> ResultT:
    """Runs an action in each process, without collectives in it; all fail if one fails."""
    error: Exception | None = None
    result: Any = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    wait()  # It may take longer than a collective does.
    (failed,) = agree(error is not None)
    if error is not None:
        raise error
    if failed:
        raise RefusedError("another process of this run has refused it")
    return result
