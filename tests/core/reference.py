"""An independent step of the Relational Memory Core in NumPy, in the dtype of its arguments.

It knows nothing of `rrnn_jax` and takes its weights by Sonnet's names (see `rrnn_jax.interop`), so
that a misunderstanding would have to be made twice to pass.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]
EPSILON = 1e-5


class Step(NamedTuple):
    """What a step gives.

    Attributes:
      memory: `[B, S, F]`, the next memory (m, with an output gate).
      hidden: `[B, S, F]`, h with an output gate, else the memory.
      output: `[B, S*F]`.
      attention: `[B, blocks, H, S, S+R]`.
      gates: input, forget (and output) gates, `[B, S, F]` or `[B, S, 1]`.
    """

    memory: np.ndarray
    hidden: np.ndarray
    output: np.ndarray
    attention: np.ndarray
    gates: dict[str, np.ndarray]


def initial_memory(batch: int, slots: int, width: int) -> np.ndarray:
    """One-hot rows, `[B, S, F]`; rows F and up are zero."""
    memory = np.zeros((batch, slots, width))
    for slot in range(min(slots, width)):
        memory[:, slot, slot] = 1
    return memory


def step(
    params: Arrays,
    inputs: np.ndarray,
    memory: np.ndarray,
    *,
    heads: int,
    hidden: np.ndarray | None = None,
    forget_bias: float = 1.0,
    input_bias: float = 0.0,
    input_queries: bool = True,
) -> Step:
    """One step of the module on inputs `[B, I]` or `[B, R, I]` and a memory `[B, S, F]`.

    With `hidden`, the paper's equations 3-9: the gates see h, and there is an output gate. Without
    `input_queries` the input rows are the same in every block. Where there is no norm of queries,
    keys and values among the weights, there is none.
    """
    if inputs.ndim == 2:
        inputs = inputs[:, np.newaxis, :]
    slots = memory.shape[1]
    projected = linear(params, "input_projection", inputs)
    rows = np.concatenate([memory, projected], axis=1)
    attention = []
    blocks = sum(name.endswith("/qkv/w") for name in params)
    for k in range(blocks):
        attended, weights = attend(params, f"block{k}", rows, heads)
        attention.append(weights[:, :, :slots])
        rows = layer_norm(params, f"block{k}/attention_norm", rows + attended)
        rows = layer_norm(params, f"block{k}/mlp_norm", mlp(params, rows) + rows)
        if not input_queries:
            rows = np.concatenate([rows[:, :slots], projected], axis=1)
    candidate = rows[:, :slots]

    gates: dict[str, np.ndarray] = {}
    if "gate_input/w" not in params:
        new_memory = new_hidden = candidate
    else:
        names = ["input", "forget"] if hidden is None else ["input", "forget", "output"]
        shown = np.tanh(memory) if hidden is None else hidden
        flat = projected.reshape(len(projected), 1, -1)
        packed = linear(params, "gate_input", flat) + linear(params, "gate_memory", shown)
        offsets = {"input": input_bias, "forget": forget_bias, "output": 0.0}
        width = packed.shape[-1] // len(names)
        for index, name in enumerate(names):
            part = packed[..., index * width : (index + 1) * width]
            gates[name] = 1 / (1 + np.exp(-(part + offsets[name])))
        if hidden is None:
            new_memory = gates["input"] * np.tanh(candidate) + gates["forget"] * memory
            new_hidden = new_memory
        else:
            new_memory = gates["input"] * candidate + gates["forget"] * memory
            new_hidden = gates["output"] * np.tanh(new_memory)
    output = new_hidden.reshape(len(new_hidden), -1)
    return Step(new_memory, new_hidden, output, np.stack(attention, axis=1), gates)


def attend(
    params: Arrays, block: str, rows: np.ndarray, heads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Attended rows `[B, M, F]` and weights `[B, H, M, M]`, one head after the other."""
    qkv = linear(params, f"{block}/qkv", rows)
    if f"{block}/qkv_norm/scale" in params:
        qkv = layer_norm(params, f"{block}/qkv_norm", qkv)
    head_size = rows.shape[-1] // heads
    packed = qkv.shape[-1] // heads
    key_size = (packed - head_size) // 2
    attended, weights = [], []
    for head in range(heads):
        own = qkv[..., head * packed : (head + 1) * packed]
        query, key = own[..., :key_size], own[..., key_size : 2 * key_size]
        value = own[..., 2 * key_size :]
        logits = query @ np.swapaxes(key, 1, 2) / math.sqrt(key_size)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights.append(exponentials / exponentials.sum(axis=-1, keepdims=True))
        attended.append(weights[-1] @ value)
    return np.concatenate(attended, axis=-1), np.stack(weights, axis=1)


def mlp(params: Arrays, rows: np.ndarray) -> np.ndarray:
    """The row-wise MLP: ReLU between the layers, none after the last."""
    layers = sum(name.startswith("mlp/") and name.endswith("/w") for name in params)
    for j in range(layers):
        rows = linear(params, f"mlp/layer{j}", rows if j == 0 else np.maximum(rows, 0))
    return rows


def linear(params: Arrays, name: str, rows: np.ndarray) -> np.ndarray:
    """`x @ w + b`."""
    return rows @ params[f"{name}/w"] + params[f"{name}/b"]


def layer_norm(params: Arrays, name: str, rows: np.ndarray) -> np.ndarray:
    """Over the last axis, with the biased variance."""
    mean = rows.mean(axis=-1, keepdims=True)
    variance = ((rows - mean) ** 2).mean(axis=-1, keepdims=True)
    normal = (rows - mean) / np.sqrt(variance + EPSILON)
    return normal * params[f"{name}/scale"] + params[f"{name}/offset"]
