"""The kernels for GPUs against the plain scan, interpreted; see also `benchmarks.correctness`."""

import types
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan import gpu, pallas
from rrnn_jax.scan.cuda import support
from tests.core.choices import chosen
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

pytestmark = pytest.mark.filterwarnings("ignore:implementation='fused' is interpreted")

B, T, I = 3, 3, 5  # noqa: E741 - axis letters

CASES = {
    "unit": {},
    "memory": {
        **{"gate_style": "memory", "forget_bias": 0.5, "input_bias": -0.25},
        "attention_mlp_layers": 2,
    },
    "one_slot_several_input_rows": {"mem_slots": 1, "matrix_inputs": True},
    "one_head": {"num_heads": 1, "head_size": 4, "attention_mlp_layers": 3},
}


def make_cell(**options: Any) -> RelationalMemoryCell:
    sizes = {"mem_slots": 2, "head_size": 2, "num_heads": 2, "attention_mlp_layers": 1}
    return RelationalMemoryCell(**sizes | options)


def value_and_gradients(rnn: Any, variables: Any, x: Any, fresh: Any = None, **flags: Any) -> Any:
    """Loss of outputs and final carry; gradients of parameters, inputs, carry and reset carry."""

    def loss(params: Any, x: Any, carry: Any, fresh: Any) -> Any:
        more = {} if fresh is None else {"reset_carry": fresh}
        final, outputs = rnn.apply(
            {"params": params}, x, initial_carry=carry, return_carry=True, **flags, **more
        )
        outputs = outputs.astype(jnp.float32)
        return jnp.sum(jnp.sin(outputs * 3)) + jnp.sum(jnp.cos(final)), outputs

    carry = 0.3 * normal(np.random.default_rng(1), (B, rnn.cell.mem_slots, rnn.cell.mem_size))
    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
    return jax.jit(gradient)(variables["params"], x, carry, fresh)


def assert_agree(actual: Any, expected: Any, tolerance: float) -> None:
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    paths = jax.tree.leaves_with_path(expected)
    for (path, wanted), found in zip(paths, jax.tree.leaves(actual), strict=True):
        wanted, found = np.asarray(wanted, np.float32), np.asarray(found, np.float32)
        error = np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-6)
        assert error < tolerance, f"{jax.tree_util.keystr(path)} is off by {error:.1e}"


def is_fused(rnn: RNN, x: Any, **flags: Any) -> bool:
    return chosen(rnn, x, **flags) == "fused"


# The tests below run one of each option.
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_same_outputs_and_gradients(name):
    time_major = name == "memory"
    cell = make_cell(**CASES[name])
    lead = (T, B) if time_major else (B, T)
    x = normal(np.random.default_rng(0), (*lead, 2, I) if cell.matrix_inputs else (*lead, I))
    ours = RNN(cell, implementation="fused", time_major=time_major)
    variables = random_variables(ours, x)
    assert time_major or is_fused(ours, x)
    expected = value_and_gradients(nn.RNN(cell, time_major=time_major), variables, x)
    assert_agree(value_and_gradients(ours, variables, x), expected, 1e-5)


@pytest.mark.slow
def test_bfloat16_is_as_exact_as_the_plain_scan():
    x = normal(np.random.default_rng(0), (B, T, I))
    wide, low = make_cell(), make_cell(dtype=jnp.bfloat16)
    ours = RNN(low, implementation="fused")
    variables = random_variables(ours, x)
    assert is_fused(ours, x)
    exact, plain, fused = (
        value_and_gradients(rnn, variables, x) for rnn in (nn.RNN(wide), nn.RNN(low), ours)
    )

    def error(found: Any) -> float:
        pairs = zip(*map(jax.tree.leaves, jax.device_get((found[1], exact[1]))), strict=True)
        return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)

    assert 1e-4 < error(fused) < 2 * error(plain)


@pytest.mark.slow
def test_batched_by_vmap():
    cell = make_cell(**CASES["one_slot_several_input_rows"])
    x = normal(np.random.default_rng(0), (2, B, T, 2, I))
    ours, theirs = RNN(cell, implementation="fused"), nn.RNN(cell)
    assert is_fused(ours, x[0])
    members = [random_variables(ours, x[0], seed=seed)["params"] for seed in (0, 1)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    def gradients(rnn: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            return jnp.sum(jnp.sin(rnn.apply({"params": params}, x)))

        return jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(params, x)

    assert_agree(gradients(ours), gradients(theirs), 1e-5)


@pytest.mark.parametrize(
    "names", mostly_slow(["resets", "mask", "resets mask"], keep=["resets mask"])
)
def test_resets_and_mask(names):
    cell = make_cell(**CASES["unit" if names == "mask" else "memory"])
    x = normal(np.random.default_rng(0), (B, T, I))
    # A reset before the first step, in the middle, and none; a step left out first and last.
    flags = {
        "resets": jnp.asarray([[True, False, False], [False, True, True], [False] * 3]),
        "mask": jnp.asarray([[True] * 3, [False, True, False], [True, False, True]]),
    }
    options = {name: flags[name] for name in names.split()}
    time_major = names != "resets"
    ours = RNN(cell, implementation="fused", time_major=time_major)
    theirs = RNN(cell, implementation="scan", time_major=time_major)
    if time_major:
        x, options = jnp.swapaxes(x, 0, 1), {name: flag.T for name, flag in options.items()}
    variables = random_variables(ours, x)
    if "resets" in names:
        options["fresh"] = 0.5 * normal(np.random.default_rng(2), (B, 2, 4))
    expected = value_and_gradients(theirs, variables, x, **options)
    assert_agree(value_and_gradients(ours, variables, x, **options), expected, 1e-5)


def test_other_remats_are_refused():
    x = jnp.zeros((B, T, I))
    assert is_fused(RNN(make_cell(), implementation="fused", remat="save_products"), x)
    for remat in ("full", "chunked"):
        with pytest.raises(ValueError, match="'fused' needs remat='none' or 'save_products'"):
            RNN(make_cell(), implementation="fused", remat=remat).init(jax.random.key(0), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 2}, "needs num_blocks=1, got 2"),
        ({"gate_style": None}, "needs gate_style 'unit' or 'memory', got None"),
        ({"output_gate": True}, "needs output_gate=False, got True"),
        ({"qkv_norm": False}, "needs qkv_norm=True, got False"),
        ({"key_size": 4}, "needs key_size=2, got 4"),
        ({"mem_slots": 3}, "needs a power of 2 for mem_slots, got 3"),
        ({"head_size": 64, "num_heads": 8, "mem_slots": 16}, "needs at most 32768"),
    ],
)
def test_refused(options, message):
    x = jnp.zeros((B, T, I))
    with pytest.raises(ValueError, match=f"'fused' {message}"):
        RNN(make_cell(**options), implementation="fused").init(jax.random.key(0), x)


def choose(unroll: int = 1, **options: Any) -> str:
    resets = jnp.zeros((8, T), bool) if options.pop("flags", False) else None
    rnn = RNN(make_cell(**options), unroll=unroll)
    return chosen(rnn, jnp.zeros((8, T, I), rnn.cell.dtype), resets=resets)


def test_auto_takes_what_was_measured_on_one_nvidia_gpu(monkeypatch):
    assert choose() == "hoisted"
    monkeypatch.setattr(gpu, "on_nvidia_gpus", lambda devices: True)
    assert choose() == "fused"
    for dtype in ("bfloat16", "float32"):
        assert choose(dtype=dtype) == "fused"
    assert choose(num_blocks=2) == "hoisted"
    assert choose(flags=True) == "hoisted"
    assert choose(unroll=2) == "hoisted"
    monkeypatch.setattr(pallas, "_has_pallas_triton", lambda: False)
    assert choose() == "hoisted"
    with pytest.raises(ValueError, match=r"'fused' needs jax\.experimental\.pallas\.triton"):
        RNN(make_cell(), implementation="fused").init(jax.random.key(0), jnp.zeros((B, T, I)))


def test_auto_prefers_cuda_kernels_where_they_were_measured(monkeypatch):
    sizes = {"dtype": jnp.bfloat16, "mem_slots": 4, "head_size": 64, "num_heads": 4}
    assert choose(**sizes) == "hoisted"
    monkeypatch.setattr(gpu, "on_nvidia_gpus", lambda devices: True)
    monkeypatch.setattr(support, "why_not_here", lambda: None)
    for capability, name in (((9, 0), "cuda"), ((8, 0), "fused"), ((10, 0), "fused")):
        monkeypatch.setattr(support, "capability_here", lambda found=capability: found)
        assert choose(**sizes) == name
    monkeypatch.setattr(support, "capability_here", lambda: (9, 0))
    assert choose(**sizes, flags=True) == "hoisted"
    assert choose(**sizes | {"dtype": jnp.float32}) == "fused"
    monkeypatch.setattr(support, "why_not_here", lambda: "needs NVRTC")
    assert choose(**sizes) == "fused"


@pytest.mark.parametrize(
    ("version", "devices", "expected"),
    [("PJRT C API\ncuda 13000", 1, True), ("cuda 13000", 2, False), ("rocm 70000", 1, False)],
)
def test_one_nvidia_gpu(monkeypatch, version, devices, expected):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(client=client)
    cpu = jax.devices("cpu")[0]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: [device] * devices)
    assert gpu.on_nvidia_gpus(1) is expected
    with jax.default_device("gpu"):
        assert gpu.on_nvidia_gpus(1) is expected
    with jax.default_device(cpu):
        assert not gpu.on_nvidia_gpus(1)


def test_derivatives_of_kernels_that_save_integers():
    """As the CUDA kernels do, in uint32."""

    def plain(arguments: gpu.Arguments) -> Any:
        weights, carry, _, terms, *_ = arguments
        return jnp.sin(weights * carry), terms**2 * carry  # type: ignore[operator]

    def backward(arguments: gpu.Arguments, kept: Any, cotangents: Any) -> gpu.Arguments:
        del kept
        return jax.vjp(plain, arguments)[1](cotangents)[0]

    saved = {"records": jnp.zeros(4, jnp.uint32), "gates": jnp.zeros(2)}
    kernels = gpu.Kernels(lambda arguments, keep: (plain(arguments), saved), backward)

    def loss(run: Any, values: Any) -> Any:
        weights, carry, terms = values
        final, memories = run(gpu.Arguments(weights, carry, None, terms, None, None))
        return jnp.sum(final**2) + jnp.sum(jnp.cos(memories))

    values = tuple(jnp.arange(1.0, 4.0) / k for k in (2, 3, 5))
    by_kernels = partial(loss, partial(gpu.differentiable, plain, kernels))
    for of in (jax.grad, jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        found, expected = (jax.jit(of(f))(values) for f in (by_kernels, partial(loss, plain)))
        chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_bfloat16_inputs_are_multiplied_in_bfloat16():
    """Without a dtype, as in the other scans, though the memory is float32."""
    x = normal(np.random.default_rng(0), (B, T, I)).astype(jnp.bfloat16)
    rnn = RNN(make_cell(param_dtype=jnp.bfloat16))
    variables = jax.tree.map(lambda p: p.astype(jnp.bfloat16), random_variables(rnn, x))
    found, expected = (
        jax.jit(rnn.clone(implementation=name).apply)(variables, x) for name in ("fused", "hoisted")
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("over", ["params", "nothing"])
def test_kernels_are_refused_within_a_checked_shard_map(over):
    """Whether the inputs vary or not."""
    x = jnp.zeros((B, T, I))
    rnn = RNN(make_cell(), implementation="fused")
    members = jax.tree.map(lambda leaf: leaf[None], random_variables(rnn, x))
    mesh = jax.make_mesh((1,), ("member",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.P("member" if over == "params" else None), jax.P()

    def outputs(members: Any, **options: Any) -> Any:
        def run(params: Any, x: Any) -> Any:
            return rnn.apply(jax.tree.map(lambda leaf: leaf[0], params), x)

        shard = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=specs[0], **options)
        return jax.eval_shape(shard, members, x)

    with pytest.raises(ValueError, match=r"'fused' does not run within jax\.shard_map with check"):
        outputs(members)
    assert outputs(members, check_vma=False).shape == (B, T, rnn.cell.output_size)


@pytest.mark.slow
def test_every_other_derivative_is_that_of_the_plain_recurrence():
    x = normal(np.random.default_rng(0), (B, T, I))
    resets = jnp.asarray([[True, False, False], [False, True, True], [False] * 3])
    variables = random_variables(RNN(make_cell()), x)

    def derivatives(implementation: str) -> Any:
        rnn = RNN(make_cell(), implementation=implementation)  # type: ignore[arg-type]

        def f(x: Any) -> Any:
            return jnp.sum(jnp.sin(rnn.apply(variables, x, resets=resets)))

        tangent = jnp.cos(x)
        forward = jax.jvp(f, (x,), (tangent,))
        product = jax.jvp(jax.grad(f), (x,), (tangent,))
        twice = jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2))(x)
        return forward, product, twice

    actual, expected = (jax.jit(lambda n=n: derivatives(n))() for n in ("fused", "scan"))
    assert_agree(actual, expected, 1e-5)
