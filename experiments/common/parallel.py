"""Many devices and many processes: seeds over devices first, then the rows of the batch.

The numbers are those of one device, to rounding, however many there are: a batch is the whole batch
wherever its rows lie, and the compiler adds the sums that cross devices.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.common.refused import RefusedError
from experiments.common.train_config import TrainConfig

SEEDS, DATA = "seeds", "data"
"""Axes of the mesh."""


def make_mesh(config: TrainConfig) -> Mesh | None:
    """A mesh over the devices of all processes; None for a single device.

    Devices that cannot be used are named in a line: each needs as many seeds, or rows of a pass, as
    the others.

    Raises:
      RefusedError: there are fewer devices than `config.devices`, or several processes and devices
        that cannot all be used.
    """
    devices = jax.devices()
    if config.devices is not None:
        if config.devices > len(devices):
            raise RefusedError(f"--devices {config.devices}: there are {len(devices)}")
        devices = devices[: config.devices]
    seeds = math.gcd(config.num_seeds, len(devices))
    data = math.gcd(config.batch_size // config.micro_batches, len(devices) // seeds)
    used = seeds * data
    if used < len(devices):
        rows = config.batch_size // config.micro_batches
        what = (
            f"{config.num_seeds} seeds and {rows} rows per pass go evenly onto {used} of "
            f"{len(devices)} devices"
        )
        if jax.process_count() > 1:
            raise RefusedError(f"{what}; with several processes all must be used")
        print(f"{what}; the others are not used")
    if used == 1 and jax.process_count() == 1:
        return None
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((seeds, data), (SEEDS, DATA), axis_types=kinds, devices=devices[:used])


def split_rows(tree: Any, axis: int = 0) -> Any:
    """Divides the rows of arrays over the devices of the mesh; without a mesh does nothing.

    To be called in a problem's functions on what has a batch axis: batches that were drawn,
    environments, carries. What is computed row by row of such arrays stays where its rows are.

    Args:
      tree: arrays.
      axis: their batch axis.

    Returns:
      The arrays.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or DATA not in mesh.axis_names or mesh.shape[DATA] == 1:
        return tree
    spec = PartitionSpec(*[None] * axis, DATA)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def place(tree: Any, shardings: Any) -> Any:
    """Puts host arrays, the same in all processes, where they belong.

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
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings)


def to_host(tree: Any) -> Any:
    """NumPy arrays of the whole of arrays, in all processes; to be called by all of them."""

    def get(array: Any) -> Any:
        if not isinstance(array, jax.Array) or array.is_fully_addressable:
            return array
        if array.is_fully_replicated:
            return array.addressable_data(0)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(get, tree))


def agree(*flags: bool) -> tuple[bool, ...]:
    """Each flag, if it is set in any process; to be called by all of them at the same point."""
    if jax.process_count() == 1:
        return flags
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.asarray(flags))
    return tuple(bool(flag) for flag in np.any(found, axis=0))


def is_main() -> bool:
    """Whether this process writes files and draws the bar."""
    return jax.process_index() == 0
