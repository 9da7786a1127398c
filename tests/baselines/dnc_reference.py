"""An independent step of the DNC in NumPy, written for one sequence and one head at a time.

It knows nothing of `rrnn_jax`: it sorts where the cell compares, loops where the cell multiplies,
and takes the interface's parts apart by their own offsets.
"""

from typing import Any

import numpy as np


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def norm(x):
    return np.sqrt(np.dot(x, x) + 1e-6)


def content(key, strength, memory):
    similarity = [np.dot(key, row) / (norm(key) * norm(row) + 1e-6) for row in memory]
    return softmax(np.log1p(np.exp(strength)) * np.array(similarity))


def allocation(usage):
    usage = (1e-6 + (1 - 1e-6) * usage).astype(np.float32).astype(usage.dtype)
    order = np.argsort(usage, kind="stable")
    weights, product = np.zeros_like(usage), 1.0
    for row in order:
        weights[row] = (1.0 - usage[row]) * product
        product *= usage[row]
    return weights


def access(state: dict[str, Any], xi, reads: int, writes: int) -> dict[str, Any]:
    """The memory's next state, from the packed interface vector `xi` of one sequence."""
    memory, usage = state["memory"].copy(), state["usage"].copy()
    rows, words = memory.shape
    offset = 0

    def take(*shape):
        nonlocal offset
        size = int(np.prod(shape))
        part = xi[offset : offset + size].reshape(shape)
        offset += size
        return part

    add, erase = take(writes, words), sigmoid(take(writes, words))
    free, allocate = sigmoid(take(reads)), sigmoid(take(writes))
    write_gate, modes = sigmoid(take(writes)), take(reads, 2 * writes + 1)
    write_keys, write_strengths = take(writes, words), take(writes)
    read_keys, read_strengths = take(reads, words), take(reads)
    assert offset == xi.size

    for row in range(rows):
        unwritten = np.prod([1 - w[row] for w in state["write_weights"]])
        usage[row] += (1 - usage[row]) * (1 - unwritten)
        for head in range(reads):
            usage[row] *= 1 - free[head] * state["read_weights"][head, row]

    weights, seen = np.zeros((writes, rows)), usage.copy()
    for p in range(writes):
        allocated = allocation(seen)
        seen += (1 - seen) * allocate[p] * write_gate[p] * allocated
        looked_up = content(write_keys[p], write_strengths[p], state["memory"])
        weights[p] = write_gate[p] * (allocate[p] * allocated + (1 - allocate[p]) * looked_up)
    for p in range(writes):
        memory *= 1 - np.outer(weights[p], erase[p])
    for p in range(writes):
        memory += np.outer(weights[p], add[p])

    link, precedence = state["link"].copy(), state["precedence_weights"].copy()
    for p in range(writes):
        for i in range(rows):
            for j in range(rows):
                kept = (1 - weights[p, i] - weights[p, j]) * link[p, i, j]
                link[p, i, j] = 0 if i == j else kept + weights[p, i] * precedence[p, j]
        precedence[p] = (1 - weights[p].sum()) * precedence[p] + weights[p]

    read_weights = np.zeros((reads, rows))
    for r in range(reads):
        mode, before = softmax(modes[r]), state["read_weights"][r]
        read_weights[r] = mode[-1] * content(read_keys[r], read_strengths[r], memory)
        for p in range(writes):
            read_weights[r] += mode[p] * (before @ link[p])
            read_weights[r] += mode[writes + p] * (link[p] @ before)
    return {
        "read_words": read_weights @ memory,
        "memory": memory,
        "read_weights": read_weights,
        "write_weights": weights,
        "link": link,
        "precedence_weights": precedence,
        "usage": usage,
    }


def step(params, carry: dict[str, Any], x, cell) -> tuple[dict[str, Any], Any]:
    """One step of a whole cell, `cell` giving its sizes; `carry["controller"]` lists (c, h)."""

    def dense(name, value):
        return value @ params[name]["kernel"] + params[name]["bias"]

    def clip(value):
        return np.clip(value, -cell.clip_value, cell.clip_value) if cell.clip_value else value

    seen = np.concatenate([x, carry["read_words"].reshape(-1)])
    layers, hidden = [], []
    if cell.controller == "feedforward":
        value = seen
        for layer in range(cell.controller_layers):
            value = np.maximum(dense(f"controller_{layer}", value), 0)
        hidden = [clip(value)]
    for layer, (c, h) in enumerate(carry["controller"]):
        below = hidden[-1:] if layer else []
        gates = dense(f"controller_{layer}", np.concatenate([seen, *below, h]))
        i, g, f, o = gates.reshape(4, -1)
        c = sigmoid(f + cell.forget_bias) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        layers.append((clip(c), clip(h)))
        hidden.append(clip(h))
    hidden = np.concatenate(hidden)
    new = access(carry, dense("interface", hidden), cell.num_reads, cell.num_writes)
    new["controller"] = layers
    return new, clip(dense("output", np.concatenate([hidden, new["read_words"].reshape(-1)])))
