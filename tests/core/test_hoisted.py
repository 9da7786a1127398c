"""The hoisted scan against autodiff of the plain scan: loss, outputs and every gradient."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan import relational
from rrnn_jax.scan.relational import input_terms
from rrnn_jax.scan.relational.operations import kernel_term
from tests.core.choices import chosen
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

B, T, R, I = 3, 7, 2, 5  # noqa: E741 - axis letters
RTOL = 1e-5  # of the largest entry of each gradient

SIZES = {"mem_slots": 3, "head_size": 4, "num_heads": 2}
FLAGS = {"flags": True}
EQ_2 = {"num_blocks": 2, "input_queries": False, "matrix_inputs": True, "qkv_norm": False}
# Name: options of the cell, options of the run.
CONFIGS = {
    "unit": ({}, {}),
    "memory": ({"gate_style": "memory"}, {}),
    "no-gates": ({"gate_style": None}, {"remat": "full"}),
    "flags": ({}, FLAGS),
    "flags-time-major": ({}, FLAGS | {"time_major": True}),
    "flags-full": ({"gate_style": "memory"}, FLAGS | {"remat": "full"}),
    "flags-chunked": ({"num_blocks": 2}, FLAGS | {"remat": "chunked"}),
    "mlp-1": ({"attention_mlp_layers": 1}, {"remat": "save_products"}),
    "mlp-3-key-2": ({"attention_mlp_layers": 3, "key_size": 2}, {}),
    "blocks-3": ({"num_blocks": 3}, {"remat": "full"}),
    "blocks-2-matrix-flags": ({"num_blocks": 2, "matrix_inputs": True}, FLAGS),
    "matrix": ({"matrix_inputs": True}, {"remat": "chunked"}),
    "output-gate-flags": ({"output_gate": True}, FLAGS),
    "output-gate-memory": ({"output_gate": True, "gate_style": "memory", "num_blocks": 2}, {}),
    "no-qkv-norm": ({"qkv_norm": False}, {}),
    "no-qkv-norm-blocks-2": ({"qkv_norm": False, "num_blocks": 2}, {"remat": "full"}),
    "eq-2-blocks-2": ({"num_blocks": 2, "input_queries": False}, FLAGS),
    "eq-2-blocks-3-matrix": ({**EQ_2, "num_blocks": 3}, {}),
    "unroll": ({}, FLAGS | {"unroll": 3}),
    "biases": ({"forget_bias": -0.5, "input_bias": 0.75}, {}),
}


def gradients(config: dict, options: dict, implementation: str) -> tuple:
    """Loss, outputs and gradients in variables, inputs and initial carry."""
    options = dict(options)
    rng = np.random.default_rng(0)
    cell = RelationalMemoryCell(**SIZES | config)
    time_major = options.pop("time_major", False)
    lead = (T, B) if time_major else (B, T)
    x = normal(rng, (*lead, R, I) if cell.matrix_inputs else (*lead, I))
    carry = jax.tree.map(
        lambda m: normal(rng, m.shape),
        cell.initialize_carry(jax.random.key(0), x[:, 0].shape if not time_major else x[0].shape),
    )
    weights = normal(rng, (*lead, cell.output_size))
    flags = {}
    if options.pop("flags", False):
        resets = rng.random(lead) < 0.3
        (resets[:, 0] if time_major else resets[0])[:] = False  # One sequence keeps its carry.
        flags = {"resets": jnp.asarray(resets), "mask": jnp.asarray(rng.random(lead) < 0.7)}
    options |= {"implementation": implementation, "time_major": time_major}
    rnn = RNN(cell, return_carry=True, **options)
    variables = random_variables(rnn, x)

    def loss(variables, x, carry):
        final, y = rnn.apply(variables, x, initial_carry=carry, **flags)
        # A sum of squares: one of both signs may cancel to nothing but rounding.
        last = sum(jnp.sum(jnp.square(m)) for m in jax.tree.leaves(final))
        return jnp.sum(jnp.square(y.astype(weights.dtype) - weights)) + last, y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(variables, x, carry)


@cache
def _plain_gradients(config: tuple, options: tuple) -> tuple:
    return gradients(dict(config), dict(options), "scan")


def plain_gradients(config: dict, options: dict) -> tuple:
    """Those of the plain scan without `remat`; once for all tests that compare with them."""
    kept = {name: value for name, value in options.items() if name != "remat"}
    return _plain_gradients(tuple(config.items()), tuple(kept.items()))


def assert_close(actual, expected) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        scale = float(np.abs(b).max())
        assert scale > 0, path
        np.testing.assert_allclose(a, b, rtol=0, atol=RTOL * scale, err_msg=str(path))


# What the tests below run has each option once, and `test_sequences.py` each `remat`.
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_plain_autodiff(name):
    config, options = CONFIGS[name]
    assert_close(gradients(config, options, "hoisted"), plain_gradients(config, options))


OTHER = {"num_blocks": 2, "output_gate": True}
# As for a core that no cache holds: gradients of kernels after the scan, and its chunks.
LARGE = {
    "flags": ({}, FLAGS),
    "blocks-2-output-gate": (OTHER, FLAGS),
    "matrix-time-major": ({"matrix_inputs": True}, {"time_major": True, "unroll": 2}),
    "full": ({}, {"remat": "full"}),
    "chunked": (OTHER, FLAGS | {"remat": "chunked"}),
}


@pytest.mark.parametrize(
    ("name", "transpose"),
    mostly_slow(
        itertools.product(LARGE, (False, True)),
        keep=[("blocks-2-output-gate", True)],
    ),
)
def test_kernels_that_no_cache_holds(name, transpose, monkeypatch):
    config, options = LARGE[name]
    monkeypatch.setattr(relational, "_has_large_kernels", lambda *sizes: True)
    monkeypatch.setattr(relational, "_pays_to_transpose", lambda steps: transpose)
    # Chunks of two steps, which do not divide T.
    monkeypatch.setattr(relational, "ROWS_PER_GRADIENT", 2 * B * 3)
    assert_close(gradients(config, options, "hoisted"), plain_gradients(config, options))


@pytest.mark.slow
@pytest.mark.parametrize("head_size", [3, 4])  # 3 is padded, to 4.
def test_one_slot_with_large_kernels_on_a_gpu(head_size, monkeypatch):
    config = {"mem_slots": 1, "head_size": head_size, "input_bias": np.float16(0.5)}
    expected = plain_gradients(config, {})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(relational, "_has_large_kernels", lambda *sizes: True)
    with monkeypatch.context() as alone:
        alone.setattr(relational, "recurrence", None)  # The general form does not run.
        assert_close(gradients(config, {}, "hoisted"), expected)
        with pytest.raises(TypeError):  # But for flags.
            gradients(config, FLAGS, "hoisted")


# By default `test_kernels_in_tiles_of_a_gpu` runs as there.
@pytest.mark.slow
@pytest.mark.parametrize("config", [{}, OTHER])
def test_as_other_backends_would_run_it(config, monkeypatch):
    expected = plain_gradients(config, FLAGS)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_close(gradients(config, FLAGS, "hoisted"), expected)


@pytest.mark.slow
def test_kernels_in_tiles_of_a_gpu(monkeypatch):
    """In bfloat16, sizes that are no multiples of 8: padded once, the same values and gradients."""
    config = {"head_size": 3, "key_size": 2, "dtype": jnp.bfloat16, "attention_mlp_layers": 1}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cell, x = RelationalMemoryCell(**SIZES | config), jnp.ones((B, T, I))
    rnn = RNN(cell, implementation="hoisted")
    program = str(jax.make_jaxpr(rnn.apply)(random_variables(rnn, x), x))
    assert "bf16[8,16]" in program  # Of [6, 14].
    with monkeypatch.context() as on_a_mesh:  # Of explicit axes, which may divide a kernel.
        on_a_mesh.setattr(relational, "has_explicit_axes", lambda x: True)
        assert "bf16[8,16]" not in str(jax.make_jaxpr(rnn.apply)(random_variables(rnn, x), x))
    found = gradients(config, FLAGS, "hoisted")
    monkeypatch.setattr(relational, "GPU_TILE", 1)
    for a, b in zip(
        *map(jax.tree.leaves, (found, gradients(config, FLAGS, "hoisted"))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.01 * float(np.abs(b).max()))


@pytest.mark.parametrize("cpu", [False, True])
def test_gradients_of_kernels_are_wide_sums(cpu):
    """So that devices that divide a batch do not sum numbers rounded to bfloat16."""
    rng = np.random.default_rng(0)
    rows, g = (normal(rng, (3, 4, n)).astype(jnp.bfloat16) for n in (5, 6))
    kernel = jnp.zeros((5, 6))

    @jax.jit
    def gradient(rows, g):
        return jax.linear_transpose(lambda k: kernel_term(cpu, rows, k, g), kernel)(g)[0]

    exact = np.einsum("abi,abj->ij", *(np.asarray(x, np.float64) for x in (rows, g)))
    found = gradient(rows, g)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)


def test_large_kernels_are_transposed_for_few_rows(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(relational, "_has_avx512", lambda: False)
    language = RelationalMemoryCell(mem_slots=1, head_size=500, num_heads=5, attention_mlp_layers=5)
    small = RelationalMemoryCell(mem_slots=1, head_size=32, num_heads=8)

    def found(cell, batch_size, steps):
        x = jax.ShapeDtypeStruct((batch_size, steps, 3), jnp.float32)
        large = relational._has_large_kernels(cell, batch_size, steps)
        return large and relational._pays_to_transpose(steps), chosen(RNN(cell), x)

    assert found(language, 4, 20) == (True, "hoisted")
    assert found(language, 32, 20) == (True, "hoisted")
    assert found(language, 64, 20) == (False, "hoisted")
    assert found(language, 1, 20) == (False, "scan")
    assert found(language, 4, 3) == (False, "scan")
    assert found(small, 4, 20) == (False, "scan")
    monkeypatch.setattr(relational, "_has_avx512", lambda: True)
    assert found(language, 4, 20) == (False, "hoisted")
    assert found(language, 4, 100) == (True, "hoisted")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert found(language, 4, 20) == (False, "hoisted")


@pytest.mark.parametrize(
    ("config", "combine"),
    mostly_slow(itertools.product(({}, EQ_2), (True, False)), keep=[(EQ_2, True)]),
)
def test_combined_input_weights(config, combine, monkeypatch):
    monkeypatch.setattr(input_terms, "_pays_to_combine", lambda *args: combine)
    options = FLAGS | {"time_major": True}
    assert_close(gradients(config, options, "hoisted"), plain_gradients(config, options))


def test_weights_are_combined_where_that_saves_operations():
    kernel, reader = jnp.zeros((4, 64)), {"kernel": jnp.zeros((64, 192))}
    pays = input_terms._pays_to_combine
    assert pays((32, 32, 1, 4), kernel, [reader])
    assert not pays((1, 1, 1, 4), kernel, [reader])  # A single step of a stream.
    assert not pays((32, 32, 1, 128), jnp.zeros((128, 64)), [reader])  # Wider than the memory.


def test_auto_hoists_where_it_pays():
    cell = RelationalMemoryCell(mem_slots=2, head_size=2, num_heads=1)
    for implementation, batch, steps, expected in (
        ("auto", 4, 1, "scan"),
        ("auto", 4, 2, "hoisted"),
        ("auto", 3, 2, "scan" if jax.default_backend() == "cpu" else "hoisted"),
        ("hoisted", 1, 1, "hoisted"),
    ):
        x = jax.ShapeDtypeStruct((batch, steps, 3), jnp.float32)
        found = chosen(RNN(cell, implementation=implementation), x)
        assert found == expected, (implementation, batch, steps)


def test_unroll_reaches_the_loop():
    x = jnp.ones((2, 4, 3))
    cell = RelationalMemoryCell(mem_slots=2, head_size=2, num_heads=1)
    variables = random_variables(RNN(cell), x)
    rnn = RNN(cell, unroll=2, implementation="hoisted")
    jaxpr = jax.make_jaxpr(jax.grad(lambda v: jnp.sum(rnn.apply(v, x))))(variables)
    assert str(jaxpr).count("unroll=2") == 2


# Slots; whether kernels are large; where.
LARGER = {"no": (2, False, "cpu"), "large-kernels": (2, True, "cpu"), "one-slot": (1, True, "gpu")}


@pytest.fixture(params=mostly_slow(LARGER, keep=["no"]))
def squares(request, monkeypatch):
    """Functions of inputs and of a kernel that sum up squared outputs, for each implementation."""
    slots, large, platform = LARGER[request.param]
    monkeypatch.setattr(relational, "_has_large_kernels", lambda *sizes: large)
    if platform == "gpu":
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
    cell = RelationalMemoryCell(mem_slots=slots, head_size=3, num_heads=1, attention_mlp_layers=1)
    x = normal(np.random.default_rng(0), (2, 3, 4))
    variables = random_variables(RNN(cell), x)
    layer = variables["params"]["cell"]["memory"]["mlp"]["layer_0"]
    resets = jnp.asarray([[False, True, False], [False] * 3]) if slots > 1 else None

    def of(implementation):
        rnn = RNN(cell, implementation=implementation)

        def f(args):
            changed = jax.tree.map(lambda leaf: leaf, variables)
            changed["params"]["cell"]["memory"]["mlp"]["layer_0"]["kernel"] = args[1]
            return jnp.sum(jnp.square(rnn.apply(changed, args[0], resets=resets)))

        return f

    return of, (x, layer["kernel"])


@pytest.mark.slow
def test_forward_mode_and_second_derivatives(squares):
    """Products with the Hessian are forward over reverse and reverse over reverse."""
    of, args = squares
    tangents = jax.tree.map(jnp.cos, args)

    @jax.jit
    def actual():
        f = of("hoisted")

        def slope(args):
            return sum(jnp.vdot(g, t) for g, t in zip(jax.grad(f)(args), tangents, strict=True))

        product = jax.jvp(jax.grad(f), (args,), (tangents,))
        return jax.jvp(f, (args,), (tangents,)), product, jax.grad(slope)(args)

    @jax.jit
    def expected():
        product = jax.jvp(jax.grad(of("scan")), (args,), (tangents,))
        return jax.jvp(of("scan"), (args,), (tangents,)), product, product[1]

    assert_close(actual(), expected())


@pytest.mark.slow
def test_hessian_and_second_forward_derivative(squares):
    of, (x, kernel) = squares

    def both(implementation):
        f = of(implementation)

        def of_kernel(row):
            return f((x, kernel.at[0].set(row)))

        along = jax.jacfwd(jax.jacfwd(lambda a: f((a * x, kernel))))(1.0)
        _, linear = jax.linearize(f, (x, kernel))
        return jax.hessian(of_kernel)(kernel[0]), along, linear((jnp.cos(x), jnp.cos(kernel)))

    actual, expected = (jax.jit(lambda n=n: both(n))() for n in ("hoisted", "scan"))
    assert_close(actual, expected)
