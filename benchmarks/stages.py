"""Marks in the sources of the CUDA kernels, at which the first thread reads the clock.

XLA's profiler tells how long a kernel takes; this tells which part of a step takes how many cycles.
The first thread waits for the others at barriers, so the stage after a barrier includes the wait.
"""

import re

from rrnn_jax.scan.cuda.nvrtc import SOURCES

MARKS = {
    "forward": [
        ("      publish();", "memory as operands"),
        ("keep(record(p.records, t) + (KEPT_QKV + kind * TILE) * THREADS, qkv[kind]);\n"
         "      }\n    }",
         "products: queries, keys, values"),
        ("      project(qkv);", "their norm"),
        ("      attention(qkv, x);", "attention"),
        ("      normalise(x, NORM1, KEPT_NORM1, NORM1_RSTD);", "first norm"),
        ("      feed_forward(x);", "MLP"),
        ("      normalise(x, NORM2, KEPT_NORM2, NORM2_RSTD);", "second norm"),
        ("      update(x);\n      sync();", "gates and update"),
    ],
    "backward": [
        ("    begin_step();", "statistics"),
        ("    update_backward(y, normal, d_gate);", "update and gates"),
        ("    norm_backward(y, normal, NORM2, NORM2_RSTD);", "second norm"),
        ("    if (GATES != NO_GATES) gates_backward(d_gate);", "products: gates"),
        ("    feed_forward_backward(y);", "MLP"),
        ("    norm_backward(y, normal, NORM1, NORM1_RSTD);", "first norm"),
        ("    attention_backward(qkv, normal);", "attention"),
        ("    qkv_norm_backward(qkv);", "norm of queries, keys, values"),
        ("    end_step();", "products: queries, keys, values"),
    ],
}  # fmt: skip
"""By kernel: code, and the name of the stage that ends after it."""

_CLOCK = """
__device__ unsigned stage_cycles[16];
#define CLOCK(now) asm volatile("mov.u32 %0, %%clock;" : "=r"(now) :: "memory")
#define FIRST (thread_index() == 0 && block_index() == 0)
#define BEGIN() CLOCK(last); if (FIRST) for (int i = 0; i < 16; i++) stage_cycles[i] = 0
#define STAGE(i) if (FIRST) { \\
    unsigned now; CLOCK(now); atomicAdd(&stage_cycles[i], now - last), last = now; }
#define END(to) sync(); if (FIRST) \\
    for (int i = 0; i < 16; i++) ((unsigned*)(to))[i] = atomicAdd(&stage_cycles[i], 0u)
"""
_LOOP = {
    "forward": "#pragma unroll 1\n    for (t = 0; t < at.steps; t++) {",
    "backward": "#pragma unroll 1\n    for (t = at.steps - 1; t >= 0; t--) step();",
}
_KEPT_IN = {"forward": "p.statistics", "backward": "p.d_first"}
_ENDS = re.compile(r"  \}\n\};\n\n#ifndef EMULATED")


def marked(kernel: str) -> str:
    """The source of a kernel that counts cycles over all steps.

    They are, as uint32, the first numbers of `statistics` (forward) or of the first carry's
    cotangent (backward); the other results stay as they are.

    Args:
      kernel: "forward" or "backward".

    Raises:
      ValueError: the source does not have a mark once.
    """
    source = (SOURCES / f"{kernel}.cu").read_text()
    loop = _LOOP[kernel]
    edits = [(loop, f"BEGIN();\n{loop}"), ("  int t;\n", "  int t;\n  unsigned last;\n")]
    edits += [(code, f"{code} STAGE({i})") for i, (code, _) in enumerate(MARKS[kernel])]
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"{kernel}.cu must have this once, got {source.count(old)}: {old!r}")
        source = source.replace(old, new)
    source, count = _ENDS.subn(
        f"    END({_KEPT_IN[kernel]});\n  }}\n}};\n\n#ifndef EMULATED", source
    )
    if count != 1:
        raise ValueError(f"{kernel}.cu must have one end of its class, got {count}")
    include = '#include "attention.h"\n'
    return source.replace(include, include + _CLOCK, 1)
