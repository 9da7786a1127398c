r"""The collectives of a training step, compiled without its devices, and a model of their cost.

In a step each device computes the gradient of its rows, an *all-reduce* sums the gradients, and
each device applies the same update. In weak scaling, with a fixed number of rows per GPU, the
all-reduce is the cost of more GPUs. It needs the whole gradient and the update needs its result, so
nothing overlaps:

.. math:: efficiency = t_{step} / (t_{step} + t_{all-reduce}).

In a node of 8 GPUs, and across `m` nodes, an all-reduce of `b` bytes (reduced within the node, an
eighth by each GPU; that eighth across nodes, each GPU with its own card; gathered) takes

    2 (7/8) b / NVLINK + 2 ((m - 1)/m) (b/8) / INFINIBAND
      + LAUNCH + 2 (7 HOP + log2(m) NETWORK_HOP)

with published rates: an H100's NVLink has 900 GB/s, 450 in each direction; a DGX H100 has an
InfiniBand card of 400 Gbit/s for each GPU. Times per message are the constants of NCCL's own model
(src/graph/tuning.cc: tree, protocol "simple"). The model ignores stragglers and congestion.
"""

import importlib.util
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from benchmarks.program import UnavailableError
from experiments.common.parallel import DATA, SEEDS
from experiments.common.problem import Problem

NVLINK = 450e9
"""NVLink of an H100: bytes per second in each direction."""
INFINIBAND = 50e9
"""A GPU's card of 400 Gbit/s: bytes per second in each direction."""
LAUNCH, HOP, NETWORK_HOP = 8.4e-6, 4.0e-6, 14e-6
"""Seconds per collective, per message over NVLink, and per message over the network."""
NODE = 8
"""GPUs of a node."""

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The description of a GPU that XLA needs to compile for it."""

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (?P<type>.*?) (?P<kind>{_KINDS})(?P<start>-start)?\(")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4}
_SIZES |= {"f32": 4, "s64": 8, "u64": 8, "f64": 8}


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
      kind: for example "all-reduce".
      size: bytes of its result on each device.
      repeats: whether it is in the body of a loop.
    """

    kind: str
    size: int
    repeats: bool


def find_collectives(program: str) -> list[Collective]:
    """The collectives of a compiled program's text, the largest first.

    >>> find_collectives("%a = (f32[2,3]{1,0}, f32[]) all-reduce(%b, %c), channel_id=1")
    [Collective(kind='all-reduce', size=28, repeats=False)]
    >>> find_collectives("%a = ((f32[2]{0}), f32[2]{0}) all-reduce-start(%b), channel_id=1")
    [Collective(kind='all-reduce', size=8, repeats=False)]

    Raises:
      ValueError: the size of a dtype is not known.
    """
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    found, computation = [], ""
    for line in program.splitlines():
        if line and not line[0].isspace():
            computation = line.removeprefix("ENTRY ").lstrip("%").partition(" ")[0]
        match = _COLLECTIVE.search(line)
        if match:
            types = match["type"]
            # The type of the start of an asynchronous one is (operands, results, ...), except for
            # an all-reduce on GPUs: it has the results only.
            flat = match["kind"] == "all-reduce" and not types.startswith("((")
            if match["start"] and types.startswith("(") and not flat:
                types = _second(types)
            found.append(Collective(match["kind"], sum(_sizes(types)), computation in bodies))
    return sorted(found, key=lambda each: -each.size)


def _second(types: str) -> str:
    """The second element of the type of a tuple."""
    depth, elements = 0, [""]
    for character in types[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += character
    return elements[1]


def _sizes(types: str) -> Iterator[int]:
    for name, sizes in re.findall(r"(\w+)\[([\d,]*)\]", types):
        if name not in _SIZES:
            raise ValueError(f"program must have collectives of {', '.join(_SIZES)}, got {name}")
        yield _SIZES[name] * math.prod(int(size) for size in sizes.split(",") if size)


def compile_update(problem: Problem, devices: int, target: str = "gpu") -> str:
    """Compiles an update of a problem with rows divided over devices that need not be there.

    Args:
      problem: the problem.
      devices: the number of devices.
      target: "gpu", H100s; or "tpu", chips of a TPU v5e.

    Returns:
      The text of the compiled program.

    Raises:
      UnavailableError: JAX's packages for the target are not installed.
    """
    from jax.experimental import topologies

    if target == "gpu":
        _need("packages of jax[cuda12] or jax[cuda13]", "jax_cuda12_plugin", "jax_cuda13_plugin")
        shape = f"1x{max(devices // NODE, 1)}x{min(devices, NODE)}"
        topology = topologies.get_topology_desc(
            "h100", platform="cuda", topology=shape, target_config=H100
        )
    else:
        _need("libtpu of jax[tpu]", "libtpu")
        topology = topologies.get_topology_desc(f"v5e:2x{devices // 2}", platform="tpu")
    chips = np.array(topology.devices).reshape(1, devices)
    mesh = Mesh(chips, (SEEDS, DATA), axis_types=(AxisType.Auto,) * 2)
    everywhere = NamedSharding(mesh, PartitionSpec())

    def whole(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(problem.init, key)
    update = jax.jit(lambda state, key: problem.update(state, key, None), out_shardings=everywhere)
    # The layers ask for the default device's platform while they are traced.
    with jax.set_mesh(mesh), jax.default_device(target):
        traced = update.trace(jax.tree.map(whole, state), whole(key))
    platforms = ("cuda",) if target == "gpu" else ("tpu",)
    return traced.lower(lowering_platforms=platforms).compile().as_text() or ""


def _need(what: str, *modules: str) -> None:
    if not any(importlib.util.find_spec(name) for name in modules):
        raise UnavailableError(f"compiling needs the {what}")


def all_reduce_seconds(size: float, gpus: int) -> float:
    """Seconds of an all-reduce of `size` bytes, by the model above.

    >>> [round(1e6 * all_reduce_seconds(4e6, gpus), 1) for gpus in (1, 8, 64, 1024)]
    [0.0, 80.0, 181.5, 295.8]
    """
    if gpus == 1:
        return 0.0
    within, nodes = min(gpus, NODE), max(gpus / NODE, 1)
    transfer = 2 * (within - 1) / within * size / NVLINK
    transfer += 2 * (nodes - 1) / nodes * size / within / INFINIBAND
    hops = (within - 1) * HOP + math.log2(nodes) * NETWORK_HOP
    return transfer + LAUNCH + 2 * hops


def efficiency(step_seconds: float, size: float, gpus: int) -> float:
    """Speed on several GPUs divided by the ideal speed.

    >>> efficiency(1.0, 4e6, 1)
    1.0
    """
    return step_seconds / (step_seconds + all_reduce_seconds(size, gpus))
