"""Programs in PyTorch: the relational memory as an eager loop, and compiled."""

import time
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.flops import core_work
from benchmarks.problem import Problem
from benchmarks.program import Costs, Program, Results, UnavailableError
from benchmarks.torch_rmc import AttentionKind, TorchRMC
from experiments.common.environment import count_cores


def build(
    problem: Problem,
    mode: str,
    *,
    compiled: bool = False,
    attention: AttentionKind = "sdpa",
    skip_input_row: bool = True,
) -> Program:
    """The relational memory in PyTorch, on JAX's device, with as many threads as JAX.

    Args:
      problem: sizes, weights and inputs.
      mode: one of `program.MODES`.
      compiled: whether `torch.compile` compiles the step; the loop over time is a Python loop.
      attention: how attention is computed.
      skip_input_row: see `TorchRMC`.

    Raises:
      UnavailableError: PyTorch cannot use the device.
    """
    device = _device()
    torch.set_num_threads(count_cores())
    dtype = problem.setting.dtype
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    model = TorchRMC(
        problem.cell,
        attention=attention,
        skip_input_row=skip_input_row,
        dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32,
    )
    model.load_flax(problem.params["cell"])
    model.to(device)
    if compiled:
        torch.compiler.reset()  # Programs of other settings count against a limit.
        model.step = torch.compile(model.step, dynamic=False)  # type: ignore[method-assign]
    run, results = _MODES[mode](model, problem, device)
    start = time.perf_counter()
    run()
    first = time.perf_counter() - start
    return Program(
        run=run,
        results=results,
        comparable=True,
        parameters=sum(weight.numel() for weight in model.parameters()),
        width=problem.cell.output_size,
        work=core_work(problem.setting, mode),
        # The first call compiles.
        costs=Costs(compile_seconds=first if compiled else None),
    )


def _device() -> Any:
    platform = jax.default_backend()
    if platform == "cpu":
        return torch.device("cpu")
    if platform == "gpu" and torch.cuda.is_available():
        return torch.device("cuda")
    raise UnavailableError(f"PyTorch {torch.__version__} cannot use JAX's device ({platform})")


def _forward(model: TorchRMC, problem: Problem, device: Any) -> tuple[Any, Any]:
    inputs = tensor(problem.inputs, device)

    def call() -> Any:
        with torch.no_grad():
            return model(inputs)

    def results() -> Results:
        return {"outputs": call().float().cpu().numpy()}

    return lambda: _finish(call(), device), results


def _train(model: TorchRMC, problem: Problem, device: Any) -> tuple[Any, Any]:
    inputs = tensor(problem.inputs, device).requires_grad_(problem.setting.input_gradients)
    loss_weights = tensor(problem.loss_weights, device)
    names = list(model.weights)
    wanted = [model.weights[name] for name in names]
    if problem.setting.input_gradients:
        wanted.append(inputs)

    def call() -> Any:
        loss = (model(inputs).float() * loss_weights).mean()
        return loss, torch.autograd.grad(loss, wanted)

    def results() -> Results:
        loss, gradients = call()
        found = {"loss": loss.detach().cpu().numpy()}
        found |= model.to_flax(dict(zip(names, gradients, strict=False)))
        if problem.setting.input_gradients:
            found["inputs"] = gradients[-1].float().cpu().numpy()
        return found

    return lambda: _finish(call(), device), results


def _streaming(model: TorchRMC, problem: Problem, device: Any) -> tuple[Any, Any]:
    x = tensor(problem.inputs[:, 0], device)
    weights = model.compute_weights()
    kept = {"memory": model.initial_memory(x.shape[0], device)}

    def call(memory: Any) -> Any:
        with torch.no_grad():
            return model.step(weights, memory, x)

    def run() -> None:
        kept["memory"] = call(kept["memory"])
        _finish(kept["memory"], device)

    def results() -> Results:
        memory = call(model.initial_memory(x.shape[0], device)).float().cpu().numpy()
        return {"outputs": memory.reshape(memory.shape[0], -1), "carry": memory}

    return run, results


_MODES = {"forward": _forward, "train": _train, "streaming": _streaming}


def tensor(array: jax.Array, device: Any) -> Any:
    """A JAX array as a PyTorch tensor with the same dtype."""
    is_half = array.dtype == jax.numpy.bfloat16
    copied = torch.from_numpy(np.array(array, np.float32)).to(device)
    return copied.to(torch.bfloat16) if is_half else copied


def _finish(result: Any, device: Any) -> Any:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result
