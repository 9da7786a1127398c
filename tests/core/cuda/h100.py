"""A training step compiled for an H100 without one: ``python -m tests.core.cuda.h100 rl``.

Wants the packages of ``jax[cuda12]`` or ``jax[cuda13]`` and no GPU. Prints a JSON object: how many
operations the step has, in all and in each loop, and the registers and spills of both kernels.
``language`` is the paper's language model, which ``"hoisted"`` runs with products of cuBLAS;
``rl_block`` is ``rl`` without clusters.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SETTINGS = {  # benchmarks/settings.py's, by the names of its fields
    "rl": {"batch": 32, "steps": 40, "slots": 4, "heads": 4, "size": 64, "inputs": 256}
    | {"gates": "memory", "learned_inputs": True},
    "nth_farthest": {"batch": 1600, "steps": 8, "slots": 8, "heads": 8, "size": 32, "inputs": 40}
    | {"gates": "unit", "learned_inputs": False},
    "language": {"batch": 64, "steps": 16, "slots": 1, "heads": 4, "size": 625, "inputs": 512}
    | {"gates": "unit", "learned_inputs": True, "mlp_layers": 5, "implementation": "hoisted"},
}
SETTINGS["rl_block"] = SETTINGS["rl"] | {"cluster": 1}


def missing() -> str | None:
    """What is not installed that this wants; None if all is there."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        return "needs the packages of jax[cuda12] or jax[cuda13]"
    return None if ptxas() else "needs ptxas (nvidia-cuda-nvcc)"


def ptxas() -> Path | None:
    """The assembler: of NVIDIA's wheels, or of a CUDA installation."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [path for place in places for path in Path(place).glob("*/bin/ptxas")]
    path = found[0] if found else shutil.which("ptxas")
    return None if path is None else Path(path)


def measure(setting: str) -> dict[str, Any]:
    """`compiled_step` in a process of its own: XLA reads its flags once."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", __spec__.name, setting]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compiled_step(setting: str) -> dict[str, Any]:
    """Compiles the step; the operations by kind, the kernels' calls, registers and spills."""
    with TemporaryDirectory() as folder:
        assembler = ptxas()
        flags = f"--xla_gpu_autotune_level=0 --xla_dump_to={folder} --xla_dump_hlo_as_text"
        if assembler is not None:
            flags += f" --xla_gpu_cuda_data_dir={assembler.parent.parent}"
            os.environ["PATH"] = f"{assembler.parent}:{os.environ['PATH']}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
        if "implementation" in SETTINGS[setting]:  # Triton's products want to be timed first.
            os.environ["XLA_FLAGS"] += " --xla_gpu_enable_triton_gemm=false"
        layout, temporary = _compile(setting)
        lines = [
            line
            for path in Path(folder).glob("*thunk_sequence.txt")
            if "step" in path.name
            for line in path.read_text().splitlines()
            if re.match(r"\s*\d+: k", line)
        ]
    kinds: dict[str, int] = {}
    for line in lines:
        match = re.search(r": (k\w+)", line)
        assert match is not None
        kinds[match[1]] = kinds.get(match[1], 0) + 1
    found = {
        "setting": setting,
        "operations": len(lines),
        "kinds": kinds,
        "kernels": sum("rrnn_" in line for line in lines),
        "loops": loops(lines),
        "temporary_bytes": temporary,
    }
    if layout is None:
        return found
    return found | {each: registers(each, layout) for each in ("forward", "backward")}


def loops(lines: list[str]) -> list[dict[str, int]]:
    """Of each loop: operations of an iteration, products, pads of more than a million numbers."""
    found: list[dict[str, int]] = []
    inside = False
    for line in lines:
        if not line[0].isspace():
            inside = "kWhile" in line
            found += [{"operations": 0, "products": 0, "pads": 0}] if inside else []
        elif inside and re.match(r" {4}\d", line) and "compare" not in line:
            blocks = re.search(r"_pad_\w* grid: \[(\d+)", line)
            found[-1]["operations"] += 1
            found[-1]["products"] += "kCublas" in line
            found[-1]["pads"] += blocks is not None and int(blocks[1]) > 2000
    return found


def _compile(setting: str) -> tuple[Any, int]:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from benchmarks.collectives import H100
    from rrnn_jax import RNN, RelationalMemoryCell
    from rrnn_jax.scan import cuda, relational
    from rrnn_jax.scan.cuda import support
    from rrnn_jax.scan.cuda.layout import layout_of

    # As if there were a GPU.
    support.why_not_here = lambda: None
    relational.platform = lambda: "gpu"

    s = SETTINGS[setting]
    cluster = s.get("cluster")
    cuda.layout_of = partial(layout_of, cluster=cluster)
    cell = RelationalMemoryCell(
        *(s["slots"], s["size"], s["heads"]),
        attention_mlp_layers=s.get("mlp_layers", 2),
        gate_style=s["gates"],
        dtype=jnp.bfloat16,
    )
    implementation = s.get("implementation", "cuda")
    rnn = RNN(cell, implementation=implementation)
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", topology="1x1x1", target_config=H100
    )
    on_device = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def step(params: Any, x: Any, weights: Any, carry: Any) -> Any:
        outputs = rnn.apply({"params": {"cell": params}}, x, initial_carry=carry)
        return jnp.mean(outputs.astype(jnp.float32) * weights)

    def shape(*sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    B, T, F = s["batch"], s["steps"], cell.mem_size
    x, carry = shape(B, T, s["inputs"]), shape(B, cell.mem_slots, F)
    params = jax.eval_shape(cell.init, jax.random.key(0), carry, shape(B, s["inputs"]))["params"]
    arguments = (params, x, shape(B, T, cell.output_size), carry)
    arguments = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_device), arguments
    )
    wanted = (0, 1) if s["learned_inputs"] else 0
    compiled = jax.jit(jax.value_and_grad(step, wanted)).lower(*arguments).compile()
    layout = layout_of(cell, B, cluster=cluster) if implementation == "cuda" else None
    return layout, compiled.memory_analysis().temp_size_in_bytes  # type: ignore[union-attr]


def registers(kernel: str, layout: Any, save: bool = True) -> dict[str, int] | None:
    """Shared memory; registers of a thread and spills, by the assembler; None without one."""
    from rrnn_jax.scan.cuda.nvrtc import kernel_ptx

    assembler = ptxas()
    if assembler is None:
        return None
    with TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(kernel_ptx(kernel, layout, save))
        target = "sm_90a" if layout.wgmma else "sm_90"
        command = [assembler, f"-arch={target}", "-v", path, "-o", path.with_suffix(".o")]
        messages = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    shared = layout.forward_bytes if kernel == "forward" else layout.backward_bytes
    # Whether each product of a group of warps waits for the one before.
    found = {"shared_bytes": shared, "serialized": int("serialized" in messages)}
    for name, pattern in {
        "registers": r"Used (\d+) registers",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }.items():
        match = re.search(pattern, messages)
        assert match is not None, messages
        found[name] = int(match[1])
    return found


if __name__ == "__main__":
    print(json.dumps(compiled_step(sys.argv[1])))
