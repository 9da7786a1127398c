"""Strict flags for every test, a shared cache of compiled programs, and limits on a test's cost."""

import ctypes
import functools
import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Most of the time of most tests is compiling. Processes that tests start inherit the environment.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
jax.config.update("jax_disable_most_optimizations", True)
# Parts of a module are compiled side by side, for more time in all; the workers fill the cores.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
# The older emitters of fused operations take a fifth of the time.
_OLDER_EMITTERS = "xla_cpu_use_fusion_emitters"
# XLA ends a process for an unknown flag, and the XLA of JAX 0.11's plugins does not know this one.
_PLUGINS = [name for name in ("jax_cuda12_plugin", "jax_cuda13_plugin") if find_spec(name)]
_HAS_OLDER_EMITTERS = jax.__version_info__ < (0, 12) and not _PLUGINS
if _HAS_OLDER_EMITTERS:
    _FLAGS.append(f"--{_OLDER_EMITTERS}=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

_MAX_CACHE = 2**30  # Bytes; a larger cache begins anew.
_MAX_RESIDENT = 1.1e9  # Bytes; a process that grows beyond frees its programs within a file, too.
_MAX_PROGRAMS = 200  # What a test may compile.

# The longest files, which go first so that all workers end together.
_LONGEST = [
    *("test_doctests.py", "core/test_sequences.py", "baselines/test_contract.py"),
    *("core/test_hoisted.py", "core/test_fused.py", "experiments/test_nth_farthest.py"),
    *("test_docs.py", "core/test_golden.py", "benchmarks/test_scan_throughput.py"),
    *("experiments/test_training.py", "core/test_transparent.py", "experiments/test_engine.py"),
    *("core/test_carry.py", "core/test_sharding.py", "experiments/test_recorded_metrics.py"),
]

_compiled = 0
_resident_after_release = 0


def _count(event: str, duration: float, **about: str | int) -> None:
    global _compiled
    _compiled += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def pytest_configure(config: pytest.Config) -> None:
    """Workers, the processes that tests start, and the next session read what was compiled."""
    # Shells let jobs in the background ignore Ctrl-C, and what tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config.option, "loadscopereorder"):  # xdist's order is by number of tests.
        config.option.loadscopereorder = False
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not hasattr(config, "cache"):
        return
    directory = Path(config.cache.mkdir("compiled"))
    files = list(directory.iterdir())
    if sum(file.stat().st_size for file in files) > _MAX_CACHE:
        for file in files:
            file.unlink()
    # Workers and processes that tests start inherit the environment.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """What was imported stays: garbage collections of the tests need not walk through it.

    Tracing allocates many objects that are freed without a collection; by default Python would
    collect after every 700 of them. Memory is bounded by `_MAX_RESIDENT`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def standard_promotion():
    """For third-party cells that strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def all_optimisations() -> Iterator[Callable[..., Any]]:
    """Compiles as users do; gives a `jax.jit` with their emitters, too."""
    options = {_OLDER_EMITTERS: True} if _HAS_OLDER_EMITTERS else None
    jax.config.update("jax_disable_most_optimizations", False)
    yield functools.partial(jax.jit, compiler_options=options)
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def release_programs() -> Iterator[None]:
    """Frees the compiled programs of a file: later garbage collections would walk through them."""
    yield
    _release()


@pytest.fixture(autouse=True)
def few_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that compiles more programs than the limit, or than its marker allows."""
    before = _compiled
    yield
    if _resident() > max(_MAX_RESIDENT, 1.2 * _resident_after_release):
        _release()
    marker = request.node.get_closest_marker("programs")
    limit = marker.args[0] if marker else _MAX_PROGRAMS
    if (found := _compiled - before) > limit and not request.node.get_closest_marker("slow"):
        pytest.fail(f"compiles {found} programs, more than {limit}: use jax.jit or fewer shapes")


def _release() -> None:
    global _resident_after_release
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what is freed.
        trim(0)
    _resident_after_release = _resident()


def _resident() -> int:
    """Bytes of this process in memory, or 0 where that is not told."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * resource.getpagesize()
