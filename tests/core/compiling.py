"""Compiling quickly: the tests' programs are small, and compiling them takes most of the time."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

# LLVM's passes off; old fusion emitters, which make a fifth of the code. Rounding may differ in the
# last bit from a program compiled with the defaults.
_OPTIONS: dict[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


@cache
def _known_options() -> dict[str, Any]:
    """Those of the options that this version of XLA and this backend know."""
    known = {}
    for name, value in _OPTIONS.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


def quick_jit(function: Callable, **options: Any) -> Any:
    """`jax.jit` with hardly any optimisation: compiles several times sooner."""
    return jax.jit(function, compiler_options=_known_options(), **options)
