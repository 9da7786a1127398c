"""A program for two devices: gradients of a sharded batch against those of a whole one."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.random_variables import random_variables

BATCH, STEPS, FEATURES = 8, 5, 3

CASES: dict[str, dict[str, Any]] = {
    "scan": {"implementation": "scan"},
    "hoisted": {"implementation": "hoisted"},
    "hoisted, time-major": {"implementation": "hoisted", "time_major": True},
    "hoisted, chunked": {"implementation": "hoisted", "remat": "chunked"},
}
WAYS = ("jit", "shard_map")


def collectives(program: str) -> dict[str, int]:
    """How many numbers at most each kind of collective operation of a compiled program gives."""
    largest: dict[str, int] = {}
    operation = r"= (.*?) (all-\w[\w-]*?|collective-permute|reduce-scatter)(?:-start)?\("
    for shapes, kind in re.findall(operation, program):
        sizes = [
            int(np.prod([int(n) for n in shape.split(",") if n]))
            for shape in re.findall(r"\[([\d,]*)\]", shapes)
        ]
        largest[kind] = max(largest.get(kind, 0), *sizes)
    return largest


def compare(
    mesh: Mesh, way: str, options: dict[str, Any], with_resets: bool = True
) -> dict[str, Any]:
    """Error of loss and gradients, relative to each array's largest entry, and what was sent."""
    rnn = RNN(RelationalMemoryCell(mem_slots=4, head_size=4, num_heads=2), **options)
    time_major = options.get("time_major", False)
    lead = (STEPS, BATCH) if time_major else (BATCH, STEPS)
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (*lead, FEATURES))
    resets = jax.random.bernoulli(keys[1], 0.3, lead)
    params = random_variables(rnn, x)

    def loss(params: Any, x: jax.Array, resets: jax.Array) -> jax.Array:
        used = resets if with_resets else None
        return jnp.sum(jnp.sin(3 * rnn.apply(params, x, resets=used)))

    whole = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x, resets)

    everywhere = PartitionSpec()
    split = PartitionSpec(None, "data") if time_major else PartitionSpec("data")
    specs = (everywhere, split, split)
    args = tuple(
        jax.device_put(value, NamedSharding(mesh, spec))
        for value, spec in zip((params, x, resets), specs, strict=True)
    )
    function: Callable = jax.value_and_grad(loss, argnums=(0, 1))
    if way == "shard_map":

        def of_a_shard(*args: Any) -> Any:
            value, (weights, inputs) = jax.value_and_grad(loss, argnums=(0, 1))(*args)
            return *jax.lax.psum((value, weights), "data"), inputs

        sharded = jax.shard_map(
            of_a_shard,
            mesh=mesh,
            in_specs=specs,
            out_specs=(everywhere, everywhere, split),
            check_vma=False,
        )

        def function(*args: Any) -> Any:
            value, weights, inputs = sharded(*args)
            return value, (weights, inputs)

    compiled = jax.jit(function).lower(*args).compile()
    pairs = zip(*map(jax.tree.leaves, jax.device_get((whole, compiled(*args)))), strict=True)
    return {
        "error": max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs),
        "collectives": collectives(compiled.as_text()),
        "largest_weight": max(leaf.size for leaf in jax.tree.leaves(params)),
    }


def main() -> None:
    """Prints what was found in the cases that are named, as JSON."""
    kinds = jax.sharding.AxisType
    mesh, explicit = (
        jax.make_mesh((2,), ("data",), axis_types=(kind,)) for kind in (kinds.Auto, kinds.Explicit)
    )
    found = {}
    for name in sys.argv[1:]:
        if name == "explicit":
            options = {"implementation": "auto"}
            found[name] = compare(explicit, "jit", options, with_resets=False)
        else:
            way, case = name.split(", ", maxsplit=1)
            found[name] = compare(mesh, way, CASES[case])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
