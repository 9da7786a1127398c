"""Programs in JAX: a recurrent model compiled in one mode, with its costs."""

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.flops import Work, core_work
from benchmarks.problem import Problem
from benchmarks.program import Costs, Program, Results, UnavailableError
from rrnn_jax import RNN
from rrnn_jax.typing import Implementation, Remat


class Model(NamedTuple):
    """A recurrent model as functions of its weights.

    Attributes:
      params: the weights.
      apply: ``apply(params, inputs [B, T, I])`` returns the outputs.
      step: ``step(params, carry, x [B, I])`` returns carry and output; None if there is none.
      carry: the initial carry.
      width: width of its output.
      comparable: whether it computes the same function as the relational memory.
      work: its least work, given a mode.
    """

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]
    step: Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]] | None
    carry: Any
    width: int
    comparable: bool
    work: Callable[[str], Work]


def plain(problem: Problem) -> Model:
    """`flax.linen.RNN` of the cell; for single steps the cell itself."""
    rnn = nn.RNN(problem.cell)

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return rnn.apply({"params": params}, inputs)  # type: ignore[return-value]

    def step(params: Any, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        return problem.cell.apply({"params": params["cell"]}, carry, x)  # type: ignore[return-value]

    return _relational(problem, apply, step)


def ours(problem: Problem, implementation: str, remat: Remat = "none") -> Model:
    """`rrnn_jax.RNN` of the cell; for single steps a sequence of one step with a given carry."""
    rnn = RNN(problem.cell, implementation=cast(Implementation, implementation), remat=remat)

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return rnn.apply({"params": params}, inputs)  # type: ignore[return-value]

    def step(params: Any, carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        returned: Any = rnn.apply(
            {"params": params}, x[:, None], initial_carry=carry, return_carry=True
        )
        carry, outputs = returned
        return carry, outputs[:, 0]

    return _relational(problem, apply, step)


def _relational(problem: Problem, apply: Any, step: Any) -> Model:
    initial = jax.jit(problem.cell.initialize_carry, static_argnums=1)
    carry = initial(jax.random.key(0), problem.inputs[:, 0].shape)
    work = functools.partial(core_work, problem.setting)
    return Model(problem.params, apply, step, carry, problem.cell.output_size, True, work)


def build(model: Model, problem: Problem, mode: str) -> Program:
    """Compiles a model in one mode.

    Raises:
      UnavailableError: the model has no such mode.
    """
    with matmul_precision(problem.setting.dtype):
        run, results, costs = _MODES[mode](model, problem)
    leaves = jax.tree.leaves(model.params)
    return Program(
        run=run,
        results=results,
        comparable=model.comparable,
        parameters=sum(leaf.size for leaf in leaves),
        width=model.width,
        work=model.work(mode),
        costs=costs,
    )


def _forward(model: Model, problem: Problem) -> tuple[Any, Any, Costs]:
    args = (model.params, problem.inputs)
    compiled, costs = compile_apart(model.apply, args)

    def results() -> Results:
        return {"outputs": to_numpy(compiled(*args))}

    return lambda: jax.block_until_ready(compiled(*args)), results, costs


def _train(model: Model, problem: Problem) -> tuple[Any, Any, Costs]:
    def loss(params: Any, inputs: jax.Array, loss_weights: jax.Array) -> jax.Array:
        outputs = model.apply(params, inputs).astype(jnp.float32)
        return jnp.mean(outputs * loss_weights)

    wanted = (0, 1) if problem.setting.input_gradients else (0,)
    loss_weights = problem.loss_weights
    if model.width != loss_weights.shape[-1]:
        loss_weights = jnp.resize(loss_weights, (*loss_weights.shape[:-1], model.width))
    args = (model.params, problem.inputs, loss_weights)
    compiled, costs = compile_apart(jax.value_and_grad(loss, argnums=wanted), args)

    def results() -> Results:
        value, gradients = compiled(*args)
        weights = gradients[0]["cell"] if model.comparable else gradients[0]
        found = {"loss": to_numpy(value)} | named_leaves(weights)
        return found | ({"inputs": to_numpy(gradients[1])} if len(gradients) > 1 else {})

    return lambda: jax.block_until_ready(compiled(*args)), results, costs


def _streaming(model: Model, problem: Problem) -> tuple[Any, Any, Costs]:
    if model.step is None:
        raise UnavailableError("it has no single step with a carry")
    x = problem.inputs[:, 0]
    # The carry is donated, so each call consumes the previous one.
    compiled, costs = compile_apart(model.step, (model.params, model.carry, x), donate=(1,))
    kept = {"carry": jax.tree.map(jnp.copy, model.carry)}

    def run() -> None:
        kept["carry"], output = compiled(model.params, kept["carry"], x)
        jax.block_until_ready(output)

    def results() -> Results:
        carry, output = compiled(model.params, jax.tree.map(jnp.copy, model.carry), x)
        return {"outputs": to_numpy(output)} | named_leaves(carry, "carry")

    return run, results, costs


_MODES = {"forward": _forward, "train": _train, "streaming": _streaming}


def compile_apart(
    function: Callable[..., Any], args: tuple[Any, ...], donate: tuple[int, ...] = ()
) -> tuple[jax.stages.Compiled, Costs]:
    """Compiles a function ahead of time; also returns the costs."""
    jax.clear_caches()  # Earlier traces of other variants must not shorten this one's time.
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = compiled.memory_analysis()
    costs = Costs(
        trace_seconds=traced - start,
        compile_seconds=done - traced,
        temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
        program=hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16],
    )
    return compiled, costs


def matmul_precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """The precision of products for a dtype; a CPU has only one.

    Raises:
      UnavailableError: the device has no such products.
    """
    backend = jax.default_backend()
    if dtype == "tf32" and backend != "gpu":
        raise UnavailableError(f"tf32 needs a GPU, got {backend}")
    if backend == "cpu":
        return contextlib.nullcontext()
    names = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
    return jax.default_matmul_precision(names[dtype])


def named_leaves(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Leaves as NumPy arrays, named by their path: ``memory/mlp/layer_0/kernel``."""
    named = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named["/".join(filter(None, (prefix, name)))] = to_numpy(leaf)
    return named


def to_numpy(array: jax.Array) -> np.ndarray:
    """Converts to float32 in NumPy."""
    return np.asarray(array.astype(jnp.float32))
