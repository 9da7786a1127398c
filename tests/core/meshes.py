"""A program for four devices: batches over meshes of every kind, against one device."""

import json
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import find_collectives
from rrnn_jax import RNN, RelationalMemoryCell, reset_carry
from rrnn_jax.baselines import EntNetCell
from rrnn_jax.envs import BoxWorld, MiniPacman
from rrnn_jax.language import AdaptiveSoftmax
from tests.core.random_variables import random_variables

BATCH, STEPS, FEATURES = 8, 5, 3
CELL = RelationalMemoryCell(mem_slots=4, head_size=4, num_heads=2, attention_mlp_layers=1)
FLAGS = {
    "nothing": (),
    "no mask": ("resets", "seq_lengths"),
    "all flags": ("resets", "mask", "seq_lengths"),
}
# Of each kind of mesh: what runs, and the flags.
CASES = [("auto", "nothing"), ("auto", "all flags"), ("scan", "all flags")]
LAYERS: dict[str, dict[str, Any]] = {
    "scan": {"implementation": "scan"},
    "hoisted": {"implementation": "hoisted"},
    "time-major": {"implementation": "hoisted", "time_major": True},
    "chunked": {"implementation": "hoisted", "remat": "chunked"},
}


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


def problem(names: tuple[str, ...], implementation: Any, **options: Any) -> tuple[Any, tuple]:
    """A loss of parameters, inputs and flags, and arguments for it."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (BATCH, STEPS, FEATURES))
    resets, mask = jax.random.bernoulli(keys[1], 0.4, (2, BATCH, STEPS))
    flags = {"resets": resets, "mask": mask, "seq_lengths": jnp.arange(BATCH) % STEPS + 1}
    rnn = RNN(CELL, implementation=implementation, return_carry=True, **options)

    def loss(params: Any, x: Any, flags: Any, **more: Any) -> Any:
        if rnn.time_major:
            last = x.ndim - 2
            x = jnp.moveaxis(x, last, 0)
            flags = {
                n: f if f.ndim < last + 1 else jnp.moveaxis(f, last, 0) for n, f in flags.items()
            }
        carry, y = rnn.apply(params, x, **flags, **more)  # type: ignore[misc]
        if "seq_lengths" in flags:  # Nothing past the end means anything.
            y = y[:1] if rnn.time_major else y[..., :1, :]
        return jnp.mean(jnp.sin(3 * y)) + jnp.mean(carry**2)

    return loss, (shared_params(), x, {name: flags[name] for name in names})


@cache
def shared_params() -> Any:
    """Parameters of all problems."""
    return random_variables(RNN(CELL), jnp.ones((1, 1, FEATURES)))


@cache
def on_one_device(names: tuple[str, ...], reverse: bool = False) -> Any:
    """Loss and gradients by the plain scan."""
    loss, args = problem(names, "scan", reverse=reverse)
    return jax.device_get(jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*args))


def error(actual: Any, expected: Any) -> float:
    """The largest error of an array, relative to its largest entry."""
    pairs = zip(*map(jax.tree.leaves, jax.device_get((actual, expected))), strict=True)
    return max(float(abs(a - b).max() / (abs(b).max() + 1e-12)) for a, b in pairs)


def explicit(names: tuple[str, ...], implementation: str, **options: Any) -> float:
    """Data parallelism in JAX's present way: axes of the mesh are parts of arrays' types."""
    loss, args = problem(names, implementation, **options)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        found = gradient(*placed(mesh, args))
    return error(found, on_one_device(names, options.get("reverse", False)))


def closed_over() -> float:
    """Data that are constants of a program, of which JAX knows the devices."""
    loss, args = problem(FLAGS["all flags"], "auto")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, *data = placed(mesh, args)
        found = jax.jit(jax.value_and_grad(lambda params: loss(params, *data)))(params)
    value, (gradient, _) = on_one_device(FLAGS["all flags"])
    return error(found, (value, gradient))


def placed(mesh: Any, args: tuple) -> tuple:
    def put(tree: Any, spec: P) -> Any:
        return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)

    return put(args[0], P()), put(args[1], P("data")), put(args[2], P("data"))


def mapped(
    names: tuple[str, ...], implementation: str, carry: bool = False, **options: Any
) -> float:
    """`jax.shard_map` that checks which values vary; a carry made varying, or the layer's own."""
    loss, args = problem(names, implementation, **options)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def of_a_shard(params: Any, x: Any, flags: Any) -> Any:
        more = {}
        if carry:
            first = CELL.initialize_carry(jax.random.key(0), x[:, 0].shape)
            more = {"initial_carry": jax.lax.pcast(first, ("data",), to="varying")}

        def mean(params: Any, x: Any) -> Any:
            return jax.lax.pmean(loss(params, x, flags, **more), "data")

        return jax.value_and_grad(mean, argnums=(0, 1))(params, x)

    specs = (P(), P("data"), P("data"))
    function = jax.shard_map(
        of_a_shard, mesh=mesh, in_specs=specs, out_specs=(P(), (P(), P("data")))
    )
    found = jax.jit(function)(*args)
    return error(found, on_one_device(names, options.get("reverse", False)))


def unchecked(**options: Any) -> dict[str, Any]:
    """`jax.shard_map` without that check, and with sums of the gradients by hand."""
    names = FLAGS["all flags"]
    loss, args = problem(names, **options)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def of_a_shard(*args: Any) -> Any:
        value, (weights, inputs) = jax.value_and_grad(loss, argnums=(0, 1))(*args)
        value, weights = jax.lax.pmean((value, weights), "data")
        return value, (weights, inputs / 4)

    specs = (P(), P("data"), P("data"))
    function = jax.shard_map(
        of_a_shard, mesh=mesh, in_specs=specs, out_specs=(P(), (P(), P("data"))), check_vma=False
    )
    return sent(function, placed(mesh, args), on_one_device(names))


def sent(function: Any, args: tuple, expected: Any, undo: Callable = lambda x: x) -> dict[str, Any]:
    """The error of a function of sharded arguments, and what its program sends."""
    compiled = jax.jit(function).lower(*args).compile()
    return {
        "error": error(undo(compiled(*args)), expected),
        "collectives": collectives(compiled.as_text()),
        "largest_weight": max(leaf.size for leaf in jax.tree.leaves(args[0])),
    }


def reset_by_hand() -> float:
    """A hand-written loop on a mesh with explicit axes; arrays whose last axes have no sharding."""
    carry = CELL.initialize_carry(jax.random.key(0), (BATCH, FEATURES)) + 1
    flags = jnp.arange(BATCH) % 3 == 0
    expected = reset_carry(CELL, carry, flags)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        here = jax.device_put(carry, P("data"))
        found = [
            reset_carry(CELL, here, jax.device_put(flags, P("data"))),
            jax.jit(lambda carry: reset_carry(CELL, carry, flags))(here),
        ]
    assert all(jax.typeof(x).sharding.spec[0] == "data" for x in found)
    return error(found, [expected] * 2)


def options_of(kind: str, implementation: Any) -> float:
    """Matrix inputs and dropout on a mesh with explicit axes."""
    has_rows, drops = "matrix" in kind, "dropout" in kind
    cell = CELL.clone(matrix_inputs=has_rows, dropout_rate=0.5 if drops else 0.0)
    keys = jax.random.split(jax.random.key(0), 3)
    rows = (5,) if has_rows else ()
    x = jax.random.normal(keys[0], (BATCH, STEPS, *rows, FEATURES))
    more = {"row_mask": jax.random.bernoulli(keys[1], 0.7, x.shape[:-1])} if rows else {}
    rnn = RNN(cell, implementation=implementation, split_rngs={"params": False, "dropout": True})
    rngs = {"dropout": keys[2]}

    def loss(params: Any, x: Any, more: Any) -> Any:
        return jnp.mean(jnp.sin(3 * rnn.apply(params, x, rngs=rngs, **more)))

    params = random_variables(rnn, x)
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    expected = gradient(params, x, more)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        return error(gradient(*placed(mesh, (params, x, more))), expected)


def other_cells() -> float:
    """A cell without an output of its carry, masked, on a mesh with explicit axes."""
    rnn = RNN(EntNetCell(features=4, num_cells=2))
    x = jax.random.normal(jax.random.key(0), (BATCH, STEPS, FEATURES))
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, (BATCH, STEPS))
    params = random_variables(rnn, x)
    gradient = jax.jit(jax.grad(lambda p, x, more: jnp.mean(rnn.apply(p, x, **more) ** 2)))
    expected = gradient(params, x, {"mask": mask})
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        return error(gradient(*placed(mesh, (params, x, {"mask": mask}))), expected)


def mapped_parts() -> float:
    """The adaptive softmax and the games within `jax.shard_map`."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    softmax = AdaptiveSoftmax(11, 4, (3,), use_bias=True)
    hidden = jax.random.normal(jax.random.key(0), (BATCH, 3, 4))
    words = jax.random.randint(jax.random.key(1), (BATCH, 3), 0, 11)
    params = random_variables(softmax, hidden, words)

    def loss(params: Any, hidden: Any, words: Any, mean: Callable) -> Any:
        return mean(jnp.mean(softmax.apply(params, hidden, words)))  # type: ignore[arg-type]

    def of_a_shard(*args: Any) -> Any:
        return jax.grad(partial(loss, mean=lambda x: jax.lax.pmean(x, "data")))(*args)

    specs = (P(), P("data"), P("data"))
    found = jax.jit(jax.shard_map(of_a_shard, mesh=mesh, in_specs=specs, out_specs=P()))(
        params, hidden, words
    )
    alone = jax.jit(jax.grad(partial(loss, mean=lambda x: x)))
    largest = error(found, alone(params, hidden, words))

    keys = jax.random.split(jax.random.key(2), BATCH)
    for env in (BoxWorld(grid_size=6, solution_length=(1,), num_distractors=(0,)), MiniPacman()):
        play = jax.vmap(lambda k, env=env: env.step(k, env.reset(k)[1], jnp.int32(1))[0])
        here = jax.shard_map(play, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        largest = max(largest, error(jax.jit(here)(keys), jax.jit(play)(keys)))
    return largest


def two_axes(**options: Any) -> dict[str, Any]:
    """Two batch axes, both sharded: nothing is gathered, but outputs by the scan with a mask."""
    names = FLAGS["no mask" if options == LAYERS["scan"] else "all flags"]
    loss, args = problem(names, **options)
    split = BATCH // 2, 2
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = jax.device_put(args[0], NamedSharding(mesh, P()))
    x, flags = jax.tree.map(
        lambda value: jax.device_put(
            value.reshape(*split, *value.shape[1:]), NamedSharding(mesh, P("a", "b"))
        ),
        args[1:],
    )
    gradient = jax.value_and_grad(loss, argnums=(0, 1))

    def undo(found: Any) -> Any:
        value, (d_params, d_x) = found
        return value, (d_params, d_x.reshape(args[1].shape))

    return sent(gradient, (params, x, flags), on_one_device(names), undo)


def sharded_params(implementation: str) -> dict[str, Any]:
    """Kernels over the devices that the batch is over, too: an error, and the bytes sent."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    names = FLAGS["all flags"]
    found: dict[str, Any] = {"bytes": {}}
    for each in ("scan", implementation):
        loss, args = problem(names, each)
        _, x, flags = placed(mesh, args)
        params = jax.tree.map(partial(split_columns, mesh), args[0])
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        compiled = gradient.lower(params, x, flags).compile()
        found["error"] = error(compiled(params, x, flags), on_one_device(names))
        all_sent = find_collectives(compiled.as_text())
        found["bytes"][each] = sum(one.size * (STEPS if one.repeats else 1) for one in all_sent)
    return found


def split_columns(mesh: jax.sharding.Mesh, array: jax.Array) -> jax.Array:
    """A kernel with its columns over the devices; anything else on all of them."""
    spec = P(None, "data") if array.ndim == 2 and array.shape[1] % mesh.size == 0 else P()
    return jax.device_put(array, NamedSharding(mesh, spec))


def kernels() -> dict[str, Any]:
    """Interpreted kernels: each device runs its share of the batch."""
    cell = RelationalMemoryCell(mem_slots=2, head_size=2, num_heads=2)
    x = jax.random.normal(jax.random.key(0), (4, 3, FEATURES))
    resets = jax.random.bernoulli(jax.random.key(1), 0.3, (4, 3))
    params = random_variables(RNN(cell), x)

    def gradient(implementation: Any) -> Any:
        rnn = RNN(cell, implementation=implementation)
        return jax.jit(
            jax.value_and_grad(
                lambda p, x, r: jnp.mean(jnp.sin(rnn.apply(p, x, resets=r))), argnums=(0, 1)
            )
        )

    expected = gradient("scan")(params, x, resets)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        return sent(gradient("fused"), placed(mesh, (params, x, resets)), expected)


PROGRAMS: dict[str, Callable[[], Any]] = {
    f"{way.__name__}, {implementation}, {flags}": partial(way, FLAGS[flags], implementation)
    for way in (explicit, mapped)
    for implementation, flags in CASES
} | {
    "mapped, carry": partial(mapped, FLAGS["all flags"], "auto", carry=True),
    "mapped, chunked": partial(mapped, FLAGS["all flags"], "scan", remat="chunked"),
    "explicit, chunked": partial(explicit, FLAGS["all flags"], "scan", remat="chunked"),
    "explicit, closed over": closed_over,
    "explicit, reversed": partial(explicit, FLAGS["all flags"], "scan", reverse=True),
    "mapped, reversed": partial(mapped, FLAGS["all flags"], "auto", reverse=True),
    **{
        f"explicit, {kind}, {implementation}": partial(options_of, kind, implementation)
        for kind in ("matrix", "dropout", "matrix with dropout")
        for implementation in ("scan", "hoisted")
    },
    "reset by hand": reset_by_hand,
    "explicit, other cells": other_cells,
    "mapped, parts": mapped_parts,
    **{f"two axes, {name}": partial(two_axes, **LAYERS[name]) for name in LAYERS},
    **{f"unchecked, {name}": partial(unchecked, **LAYERS[name]) for name in LAYERS},
    "sharded params": partial(sharded_params, "hoisted"),
    "kernels": kernels,
}


def main() -> None:
    """Prints what was found by the programs that are named, as JSON."""
    print(json.dumps({name: PROGRAMS[name]() for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
