"""The CUDA kernels, run by the emulator on a CPU, against autodiff of `flax.linen.RNN`.

All configurations: ``python -m pytest -m "slow or not slow" tests/core/cuda/test_kernels.py``.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan.cuda import support
from rrnn_jax.scan.cuda.layout import Gpu, Layout, layout_of
from tests.core.choices import chosen
from tests.core.cuda.emulation import Emulator, has_compiler
from tests.core.cuda.program import kernels_run
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

pytestmark = pytest.mark.skipif(not has_compiler, reason="needs g++")


class Case(NamedTuple):
    """A cell and a sequence; flags: 'resets', 'mask' or both; multiprocessors: the GPU's."""

    cell: dict[str, Any]
    B: int = 3
    T: int = 3
    rows: int | None = None
    flags: str = ""
    tiles: int | None = None
    time_axis: int = 1
    cluster: int = 1
    multiprocessors: int = 132
    shared_kib: int = 227

    @property
    def gpu(self) -> Gpu:
        return Gpu(self.multiprocessors, 1024 * self.shared_kib)


def sizes(S: int, H: int, D: int, L: int = 1, **options: Any) -> dict[str, Any]:
    options |= {"mem_slots": S, "num_heads": H, "head_size": D, "attention_mlp_layers": L}
    return options | {"input_bias": 0.25}


QUICK = {
    "gates_of_units": Case(sizes(8, 2, 32, L=2), B=2, flags="resets mask"),
    "gates_of_slots": Case(sizes(4, 1, 64, gate_style="memory"), time_axis=0),
    # Blocks with one sequence more than the others.
    "uneven": Case(sizes(8, 2, 32), B=5, T=2, flags="resets mask", tiles=3, multiprocessors=2),
}
SLOW = {
    "no_gates": Case(sizes(2, 4, 16, L=2, gate_style=None), B=5),
    "one_slot": Case(sizes(1, 8, 16, L=3), B=11),
    "sixteen_slots": Case(sizes(16, 4, 16, L=2), T=2),
    "sixteen_slots_wide_heads": Case(sizes(16, 2, 64, gate_style="memory"), T=2, flags="resets"),
    "two_input_rows": Case(sizes(2, 6, 32, L=2), B=5, T=2, rows=2),
    "rl": Case(sizes(4, 4, 64, L=2, gate_style="memory"), B=4, flags="resets"),
    "nth_farthest": Case(sizes(8, 8, 32, L=2), B=4, T=2, tiles=3),
    "many_rows_of_a_block": Case(sizes(8, 8, 32), B=9, T=2, tiles=7),
    "six_warps": Case(sizes(4, 6, 32), flags="mask"),
    "ten_warps": Case(sizes(8, 5, 64, gate_style="memory"), B=2, T=2, time_axis=0),
    "five_layers": Case(sizes(1, 4, 32, L=5), B=9, T=2),
    "wide": Case(sizes(1, 4, 128), B=2, T=2),
    "uneven_pairs": Case(sizes(8, 2, 32, L=2), B=7, T=2, tiles=4, multiprocessors=2),
    "uneven_short": Case(
        sizes(2, 2, 32, gate_style="memory"), B=9, T=2, tiles=2, multiprocessors=2
    ),
    "uneven_long": Case(sizes(16, 2, 32), B=3, T=2, tiles=4, multiprocessors=2),
    "odd_rounds": Case(sizes(16, 2, 160), B=2, T=2, multiprocessors=84, shared_kib=99),
    "uneven_wide_warps": Case(sizes(8, 1, 192), B=5, T=2, tiles=3, multiprocessors=2),
}
CLUSTERS = {
    "units": Case(sizes(8, 4, 32, L=2), B=2, flags="resets mask", cluster=4),
    "no_gates": Case(sizes(2, 2, 32, L=3, gate_style=None), B=5, T=2, cluster=2),
    "sixteen_slots": SLOW["sixteen_slots_wide_heads"]._replace(cluster=2),
    "rl": SLOW["rl"]._replace(cluster=4),
    "two_tiles": Case(sizes(4, 4, 32, gate_style="memory"), B=4, T=2, tiles=2, cluster=4),
    "uneven": Case(sizes(4, 4, 32), B=18, T=2, tiles=2, cluster=4, multiprocessors=36),
}
SLOW |= {f"cluster_{name}": case for name, case in CLUSTERS.items()}
CASES = mostly_slow((QUICK | SLOW).items(), keep=[("gates_of_units", QUICK["gates_of_units"])])


class Problem(NamedTuple):
    cell: RelationalMemoryCell
    case: Case
    params: Any
    x: Any
    carry: Any
    fresh: Any
    resets: Any
    mask: Any
    weights: Any

    def gradients(self, run: Any) -> Any:
        """Loss of outputs and final carry; gradients of params, inputs, both carries."""

        def loss(params: Any, x: Any, carry: Any, fresh: Any) -> Any:
            final, outputs = run(params, x, carry, fresh)
            return jnp.sum(outputs.astype(jnp.float32) * self.weights) + jnp.sum(jnp.cos(final))

        wanted = (0, 1, 2, 3) if "resets" in self.case.flags else (0, 1, 2)
        return jax.value_and_grad(loss, wanted), (self.params, self.x, self.carry, self.fresh)

    def plain(self, cell: RelationalMemoryCell) -> Any:
        """What `flax.linen.RNN` gives; with flags a scan over the cell's steps."""
        axis = self.case.time_axis

        def run(params: Any, x: Any, carry: Any, fresh: Any) -> Any:
            if not self.case.flags:
                rnn = nn.RNN(cell, time_major=axis == 0, return_carry=True)
                return rnn.apply({"params": {"cell": params}}, x, initial_carry=carry)

            def step(carry: Any, inputs: Any) -> Any:
                x, reset, mask = inputs
                start = carry if reset is None else jnp.where(reset[:, None, None], fresh, carry)
                end, _ = cell.apply({"params": params}, start, x)
                if mask is not None:
                    end = jnp.where(mask[:, None, None], end, carry)
                return end, cell.output_from_carry(end)

            def first(x: Any) -> Any:
                return None if x is None else jnp.moveaxis(x, axis, 0)

            final, outputs = jax.lax.scan(
                step, carry, tuple(map(first, (x, self.resets, self.mask)))
            )
            return final, jnp.moveaxis(outputs, 0, axis)

        return self.gradients(run)

    def kernels(self) -> Any:
        def run(params: Any, x: Any, carry: Any, fresh: Any) -> Any:
            return kernels_run(
                self.cell.clone(dtype=jnp.bfloat16),
                *(params, x, carry, fresh, self.resets, self.mask),
                time_axis=self.case.time_axis,
                tiles=self.case.tiles,
                cluster=self.case.cluster,
                gpu=self.case.gpu,
            )

        return self.gradients(run)


def make_problem(case: Case, inputs: int = 5) -> Problem:
    rng = np.random.default_rng(0)
    cell = RelationalMemoryCell(**case.cell, matrix_inputs=case.rows is not None)
    B, T, S, F = case.B, case.T, cell.mem_slots, cell.mem_size
    x = normal(rng, (B, T, *(() if case.rows is None else (case.rows,)), inputs))
    carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)
    carry += normal(rng, carry.shape, scale=0.3)
    params = random_variables(cell, carry, x[:, 0])["params"]
    # Kernels as at their start; biases and scales drawn wide.
    params = jax.tree.map(lambda a: a if a.ndim == 1 else 2 * a / a.shape[0] ** 0.5, params)
    # Most hidden units far from zero: near zero, rounding decides a ReLU.
    for j in range(cell.attention_mlp_layers - 1):
        layer = params["memory"]["mlp"][f"layer_{j}"]
        layer["bias"] += 2 * jnp.sign(layer["bias"])
    resets = jnp.asarray(rng.random((B, T)) < 0.4).at[0, 1].set(True)
    mask = jnp.asarray(rng.random((B, T)) < 0.7).at[0, 0].set(False)
    arrays = [x, resets, mask, normal(rng, (B, T, S * F))]
    x, resets, mask, weights = (jnp.moveaxis(a, 1, case.time_axis) for a in arrays)
    return Problem(
        cell,
        case,
        params,
        x,
        carry,
        normal(rng, carry.shape, scale=0.3),
        resets if "resets" in case.flags else None,
        mask if "mask" in case.flags else None,
        weights,
    )


def layout_of_case(case: Case) -> Layout:
    cell = RelationalMemoryCell(**case.cell)
    return layout_of(cell, case.B, 1, bool(case.flags), case.gpu, case.tiles, case.cluster)


@pytest.mark.parametrize("name", [name for name in QUICK | SLOW if "uneven" in name])
def test_uneven_cases_have_blocks_of_both_kinds(name):
    layout = layout_of_case((QUICK | SLOW)[name])
    assert layout.full_blocks == 1
    assert layout.blocks((QUICK | SLOW)[name].B) > 1


def test_odd_rounds_are_odd():
    layout = layout_of_case(SLOW["odd_rounds"])
    assert (layout.warp_tiles, layout.fragments) == (5, 10)  # Five slices of both gates.


def errors(found: Any, exact: Any) -> np.ndarray:
    pairs = zip(*map(jax.tree.leaves, jax.device_get((found, exact))), strict=True)
    return np.array([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs])


@pytest.mark.parametrize(("name", "case"), CASES, ids=[*QUICK, *SLOW])
def test_gradients_are_as_exact_as_the_plain_scan_in_bfloat16(name, case, monkeypatch):
    emulator = Emulator().use(monkeypatch)
    problem = make_problem(case)

    def run(function: Any, arguments: Any) -> Any:
        return jax.jit(function)(*arguments)

    exact = run(*problem.plain(problem.cell))
    plain = errors(run(*problem.plain(problem.cell.clone(dtype=jnp.bfloat16))), exact)
    found = run(*problem.kernels())
    assert emulator.runs == {"forward": 1, "backward": 1}
    chex.assert_trees_all_equal_shapes_and_dtypes(found, exact)
    kernels = errors(found, exact)
    # Shown by pytest -rP.
    for what, value in {"kernels": kernels, "plain scan": plain}.items():
        print(f"{name}, {what}: largest {value.max():.1e}, median {np.median(value):.1e}")
    # Of few numbers the plain scan may be right by chance: there its median counts.
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(exact)]
    assert kernels.max() > 1e-4
    for path, a, b in zip(paths, kernels, np.maximum(plain, np.median(plain)), strict=True):
        assert a < 2 * b, f"{name}: {path} is off by {a:.1e}, the plain scan by {b:.1e}"


def run_in_orders(
    case: Case, orders: Any, monkeypatch: Any, edits: Any = (), **changes: Any
) -> Iterator[bool]:
    """Whether all results are bitwise those of threads that take turns, for each order.

    With clusters, or `changes` of the layout: those of threads that take turns in one block of the
    usual layout. Failures count as other results.
    """

    def run(case: Case, orders: Any, edits: Any, **changes: Any) -> Iterator[list[np.ndarray]]:
        emulator = Emulator(edits=tuple(edits), **changes).use(monkeypatch)
        function, arguments = make_problem(case).kernels()
        compiled = jax.jit(function)
        for order in orders:
            emulator.order = order
            try:
                yield [np.asarray(x) for x in jax.tree.leaves(compiled(*arguments))]
            except jax.errors.JaxRuntimeError:
                yield []

    block = case._replace(cluster=1, multiprocessors=case.gpu.at_once(case.cluster))
    (expected,) = run(block, [0], edits if case.cluster == 1 and not changes else ())
    for found in run(case, orders, edits, **changes):
        yield len(found) == len(expected) > 0 and all(map(np.array_equal, found, expected))


@pytest.mark.slow
def test_any_order_of_threads_gives_the_same_bits(monkeypatch):
    orders = [88172645463325252, 1234567890123]
    assert all(run_in_orders(QUICK["gates_of_units"], orders, monkeypatch))


@pytest.mark.slow
def test_a_cluster_gives_the_bits_of_a_block(monkeypatch):
    case = QUICK["gates_of_units"]._replace(cluster=2)  # Compiled already, as a block.
    assert all(run_in_orders(case, [88172645463325252], monkeypatch))


PREPARED = {"wgmma": True, "prefetch": True}  # Not the usual ones.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gates_of_units", "uneven", "rl", "nth_farthest", "sixteen_slots", "wide"]
)
def test_prepared_layouts_give_the_same_bits(name, monkeypatch):
    orders = [0, 88172645463325252]
    assert all(run_in_orders((QUICK | SLOW)[name], orders, monkeypatch, **PREPARED))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "gates_of_units",
        "gates_of_slots",
        "rl",
        "sixteen_slots",
        *(f"cluster_{n}" for n in CLUSTERS),
    ],
)
def test_twenty_orders_of_threads_give_the_same_bits(name, monkeypatch):
    orders = [int(x) for x in np.random.default_rng(0).integers(1, 2**62, 20)]
    assert all(run_in_orders((QUICK | SLOW)[name], orders, monkeypatch))


# What stands there, and what it is replaced by.
BARRIERS = {
    "copies of weights": ("wait_copies<CLUSTER == 1 ? RING - NEXT * NA : 0>()", "(void)0"),
    "forward": ("      if (CLUSTER == 1) sync();\n      exchange", "      exchange"),
    "backward": ("        if (CLUSTER == 1) sync();\n", ""),
    "groups of warps": ("      wait_groups<1>();", ""),
    "last group of warps": ("  wait_groups<0>();\n", ""),
}
# What keeps the blocks of a cluster apart: waiting, and several buffers.
APART = {
    "wait": ("    wait_for(barriers + turn % 2, turn / 2 % 2);\n", ""),
    "operands forward": ("return sh.X[i % BUFFERS];", "return sh.X[0];"),
    "operands backward": ("LAYERS + 1 - layer", "0"),
    "gates": ("return sh.G[CLUSTER > 1 ? t % 2 : 0];", "return sh.G[0];"),
    "sums": ("return CLUSTER > 1 ? turn % 2 : 0;", "return 0;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BARRIERS)
def test_a_missing_barrier_is_seen(name, monkeypatch):
    case, orders = QUICK["gates_of_units"], range(1, 1000, 200)
    changes = PREPARED if "group" in name else {}
    assert not all(run_in_orders(case, orders, monkeypatch, [BARRIERS[name]], **changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", APART)
def test_a_missing_wait_or_buffer_of_a_cluster_is_seen(name, monkeypatch):
    case = QUICK["gates_of_units"]._replace(cluster=2)
    assert not all(run_in_orders(case, range(1, 1000, 50), monkeypatch, [APART[name]]))


@pytest.mark.slow
def test_resets_and_mask_equal_separate_and_unpadded_sequences(monkeypatch):
    Emulator().use(monkeypatch)
    # Wide inputs, whose terms are computed the same way for any number of steps.
    problem = make_problem(Case(sizes(4, 4, 16), B=3, T=4), inputs=64)
    cell, x = problem.cell.clone(dtype=jnp.bfloat16), problem.x

    @jax.jit
    def run(x: Any, carry: Any, resets: Any = None, mask: Any = None) -> Any:
        return kernels_run(cell, problem.params, x, carry, problem.fresh, resets, mask)[1]

    ones = jnp.ones((3, 4), bool)
    packed = run(x, problem.carry, (~ones).at[:, 2].set(True), ones)
    first, second = run(x[:, :2], problem.carry), run(x[:, 2:], problem.fresh)
    np.testing.assert_array_equal(packed, jnp.concatenate([first, second], 1))

    # The second and third steps are skipped, for any inputs.
    mask = ones.at[:, 1:3].set(False)
    padded = run(x.at[:, 1:3].set(jnp.nan), problem.carry, ~ones, mask)
    np.testing.assert_array_equal(padded[:, jnp.array([0, 3])], run(x[:, ::3], problem.carry))
    np.testing.assert_array_equal(padded[:, 1:3], jnp.repeat(padded[:, :1], 2, axis=1))


@pytest.mark.slow
def test_vmap_runs_the_kernels_once_for_each(monkeypatch):
    emulator = Emulator().use(monkeypatch)
    monkeypatch.setattr(support, "why_not_here", lambda: None)
    # A core and a batch whose kernels are compiled already.
    cell = RelationalMemoryCell(**QUICK["gates_of_units"].cell, dtype=jnp.bfloat16)
    rnn = RNN(cell, implementation="cuda")
    x = normal(np.random.default_rng(0), (2, 3, 5))
    flags = {"resets": jnp.zeros((2, 3), bool).at[1, 1].set(True), "mask": jnp.ones((2, 3), bool)}
    variables = random_variables(RNN(cell), x)
    pair = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), variables)

    def loss(variables: Any) -> Any:
        return jnp.sum(jnp.sin(rnn.apply(variables, x, **flags).astype(jnp.float32)))

    found = jax.jit(jax.vmap(jax.grad(loss)))(pair)
    assert emulator.runs == {"forward": 2, "backward": 2}
    for i in range(2):
        expected = jax.jit(jax.grad(loss))(jax.tree.map(lambda a, i=i: a[i], pair))
        assert errors(jax.tree.map(lambda a, i=i: a[i], found), expected).max() < 1e-5


def test_it_is_an_implementation_of_rnn(monkeypatch):
    emulator = Emulator().use(monkeypatch)
    monkeypatch.setattr(support, "why_not_here", lambda: None)
    # A core and a batch whose kernels are compiled already.
    cell = RelationalMemoryCell(**QUICK["gates_of_units"].cell, dtype=jnp.bfloat16)
    x = normal(np.random.default_rng(0), (2, 3, 5))
    resets, mask = jnp.zeros((2, 3), bool).at[1, 1].set(True), jnp.ones((2, 3), bool)
    variables = random_variables(RNN(cell), x)

    def loss(rnn: RNN, variables: Any) -> Any:
        carry, outputs = rnn.apply(variables, x, resets=resets, mask=mask, return_carry=True)
        assert carry.dtype == jnp.float32
        assert outputs.dtype == jnp.bfloat16
        return jnp.sum(jnp.sin(outputs.astype(jnp.float32))) + jnp.sum(carry)

    ours, theirs = (RNN(cell, implementation=name) for name in ("cuda", "hoisted"))
    found, expected = (jax.jit(jax.grad(partial(loss, rnn)))(variables) for rnn in (ours, theirs))
    assert emulator.runs == {"forward": 1, "backward": 1}
    assert errors(found, expected).max() < 0.05
    # Auto does not take it on a CPU; there is a reason.
    assert chosen(RNN(cell), x) == "hoisted"
    monkeypatch.undo()
    with pytest.raises(ValueError, match="'cuda' needs an NVIDIA GPU, got cpu; use"):
        ours.apply(variables, x)
