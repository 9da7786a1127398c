"""The adaptive softmax against recorded numbers, against brute force, and tied."""

import math
from functools import cache, partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.language import AdaptiveSoftmax, TiedEmbedding, cluster_log_likelihood
from tests.core.random_variables import random_variables
from tests.grids import mostly_slow

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "adaptive_softmax.npz")
CASES = range(int(GOLDEN["num_cases"]))
VALUE, GRADIENT = 1e-5, 1e-4


def load(case: int) -> tuple[dict[str, np.ndarray], AdaptiveSoftmax]:
    prefix = f"case{case}/"
    arrays = {name.removeprefix(prefix): GOLDEN[name] for name in GOLDEN if prefix in name}
    module = AdaptiveSoftmax(
        vocab_size=int(arrays["n_classes"]),
        features=int(arrays["in_features"]),
        cutoffs=tuple(int(c) for c in arrays["cutoffs"]),
        divisor=float(arrays["div_value"]),
        use_bias=bool(arrays["head_bias"]),
        tokens_per_chunk=5,  # Several chunks, the last of them not full.
    )
    return arrays, module


def as_params(arrays: dict[str, np.ndarray], prefix: str, shortlist: int) -> dict:
    """The recorded weights (or their gradients) under our names: rows are words."""
    head = arrays[f"{prefix}params/head/w"].T
    params = {"head": head[:shortlist], "entries": head[shortlist:]}
    if f"{prefix}params/head/b" in arrays:
        params["bias"] = arrays[f"{prefix}params/head/b"]
    for name, array in arrays.items():
        if name.startswith(f"{prefix}params/tail"):
            tail, part = name.removeprefix(f"{prefix}params/").split("/")
            name = tail.replace("tail", "tail_")
            params[name if part == "output" else f"{name}_projection"] = (
                array.T if part == "output" else array
            )
    return {"params": jax.tree.map(jnp.asarray, params)}


@pytest.mark.parametrize("case", mostly_slow(CASES, keep=[0, 3]))
def test_agrees_with_recorded_values_and_gradients(case):
    arrays, module = load(case)
    variables = as_params(arrays, "", module.cutoffs[0])
    hidden, targets = (jnp.asarray(arrays[name])[None] for name in ("inputs", "targets"))

    def loss(variables, hidden):
        likelihood = module.apply(variables, hidden, targets)
        return -jnp.mean(likelihood), likelihood

    (value, likelihood), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        variables, hidden
    )
    np.testing.assert_allclose(likelihood[0], arrays["output"], atol=VALUE, rtol=VALUE)
    np.testing.assert_allclose(value, arrays["loss"], atol=VALUE)
    expected = as_params(arrays, "grads/", module.cutoffs[0])
    assert jax.tree.structure(grads[0]) == jax.tree.structure(expected)
    for found, wanted in zip(jax.tree.leaves(grads[0]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, atol=GRADIENT * np.abs(wanted).max())
    wanted = arrays["grads/inputs"]
    np.testing.assert_allclose(grads[1][0], wanted, atol=GRADIENT * np.abs(wanted).max())


@pytest.mark.parametrize("case", CASES)
def test_all_log_probabilities(case):
    arrays, module = load(case)
    variables = as_params(arrays, "", module.cutoffs[0])
    log_probs = jax.jit(partial(module.apply, method="log_probs"))(variables, arrays["inputs"])
    np.testing.assert_allclose(log_probs, arrays["log_prob"], atol=VALUE, rtol=VALUE)
    np.testing.assert_array_equal(jnp.argmax(log_probs, axis=-1), arrays["predict"])


@cache
def make(**options) -> tuple[AdaptiveSoftmax, dict, jax.Array, jax.Array]:
    module = AdaptiveSoftmax(30, 8, (5, 12), divisor=2.0, tokens_per_chunk=6, **options)
    width = options.get("hidden_features") or 8
    hidden = jax.random.normal(jax.random.key(1), (3, 7, width))
    words = jax.random.randint(jax.random.key(2), (3, 7), 0, 30)
    return module, jax.jit(module.init)(jax.random.key(0), hidden, words), hidden, words


def test_embeds_a_word_as_its_row_through_the_projection():
    module, variables, _, _ = make()
    params = variables["params"]
    embedded = module.apply(variables, jnp.arange(30)[None], method="embed")[0]
    np.testing.assert_array_equal(embedded[:5], params["head"])
    np.testing.assert_allclose(
        embedded[5:12], params["tail_0"] @ params["tail_0_projection"].T, atol=1e-6
    )
    np.testing.assert_allclose(
        embedded[12:], params["tail_1"] @ params["tail_1_projection"].T, atol=1e-6
    )


def test_tied_gradients_are_those_of_autodiff():
    """Input and output in one loss, against the plain log-softmax over all words."""
    module, variables, hidden, words = make(hidden_features=6, use_bias=True)

    def loss(variables, hidden, plain):
        embedded = module.apply(variables, words, method="embed")
        hidden = hidden + jnp.tanh(embedded[..., :6])
        if plain:
            log_probs = module.apply(variables, hidden, method="log_probs")
            likelihood = jnp.take_along_axis(log_probs, words[..., None], axis=-1)[..., 0]
        else:
            likelihood = module.apply(variables, hidden, words)
        return jnp.sum(likelihood * jnp.cos(jnp.arange(21.0).reshape(3, 7)))

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    found, wanted = (gradient(variables, hidden, plain) for plain in (False, True))
    chex.assert_trees_all_close(found, wanted, atol=2e-5)


@pytest.mark.parametrize("tokens_per_chunk", mostly_slow([1, 4, 1000], keep=[4]))
def test_cluster_is_a_softmax_where_selected(tokens_per_chunk):
    inputs = jax.random.normal(jax.random.key(0), (2, 2, 5, 4))
    table = jax.random.normal(jax.random.key(1), (6, 4))
    targets = jax.random.randint(jax.random.key(2), (2, 2, 5), -3, 9)  # Out of range elsewhere.
    selected = (targets >= 0) & (targets < 6)
    assert 0 < selected.sum() < selected.size

    def plain(inputs, table):
        log_probs = jax.nn.log_softmax(inputs @ table.T)
        chosen = jnp.take_along_axis(log_probs, jnp.clip(targets, 0, 5)[..., None], axis=-1)
        return jnp.where(selected, chosen[..., 0], 0.0)

    def chunked(inputs, table):
        return cluster_log_likelihood(
            inputs, table, targets, selected, tokens_per_chunk=tokens_per_chunk
        )

    @partial(jax.jit, static_argnums=0)
    def value_and_pulled(function, cotangent):
        value, pull = jax.vjp(function, inputs, table)
        return value, *pull(cotangent)

    cotangent = jax.random.normal(jax.random.key(3), targets.shape)
    found, wanted = (value_and_pulled(function, cotangent) for function in (chunked, plain))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_models_side_by_side():
    """Over seeds by `vmap`, whose numbers of chunks differ."""
    module, variables, hidden, words = make()
    words = jnp.stack([words, jnp.zeros_like(words)])
    hidden = jnp.stack([hidden, 2 * hidden])

    def loss(hidden, words):
        return jnp.sum(module.apply(variables, hidden, words))

    together = jax.jit(jax.vmap(jax.value_and_grad(loss)))(hidden, words)
    alone = jax.jit(jax.value_and_grad(loss))
    for i in range(2):
        apart = alone(hidden[i], words[i])
        found = jax.tree.map(lambda a, i=i: a[i], together)
        chex.assert_trees_all_close(found, apart, atol=1e-5)


@pytest.mark.parametrize("use_bias", mostly_slow([False, True], keep=[True]))
def test_gradients_under_x64(use_bias):
    module = AdaptiveSoftmax(11, 4, (3,), use_bias=use_bias)
    hidden, words = jnp.ones((2, 3, 4), jnp.float32), jnp.array([[0, 3, 10]] * 2, jnp.int32)
    variables = module.init(jax.random.key(0), hidden, words)
    gradient = jax.jit(jax.grad(lambda v: module.apply(v, hidden, words).sum()))
    expected = gradient(variables)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        found = gradient(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_low_precision_products_accumulate_in_float32():
    module, variables, hidden, words = make()
    low = module.clone(dtype=jnp.bfloat16)
    found = jax.jit(low.apply)(variables, hidden, words)
    assert found.dtype == jnp.float32
    exact = jax.jit(module.apply)(variables, hidden, words)
    np.testing.assert_allclose(found, exact, atol=0.1)
    for inputs, method, dtype in (
        (words, "embed", jnp.bfloat16),
        (hidden, "log_probs", found.dtype),
    ):
        shaped = jax.eval_shape(partial(low.apply, method=method), variables, inputs)
        assert shaped.dtype == dtype


@pytest.mark.slow
def test_low_precision_parameters_leave_the_outputs_exact():
    module, _, hidden, words = make(hidden_features=6, param_dtype=jnp.bfloat16, use_bias=True)
    variables = jax.jit(module.init)(jax.random.key(0), hidden, words)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.bfloat16)}
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
    for arguments, method in (((hidden, words), "__call__"), ((hidden,), "log_probs")):
        run = jax.jit(partial(module.apply, method=method))
        np.testing.assert_allclose(run(variables, *arguments), run(wide, *arguments), atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "vocab_size"),
    mostly_slow([(np.uint8, 256), (np.uint16, 65536)], keep=[(np.uint8, 256)]),
)
def test_words_of_any_integer_dtype(dtype, vocab_size):
    module = AdaptiveSoftmax(vocab_size, 4, (20, 100))
    words, hidden = jnp.array([[3, 90, 120]]), jnp.ones((1, 3, 4))
    variables = random_variables(module, hidden, words)

    def loss(variables, words):
        embedded = module.apply(variables, words, method="embed")
        return jnp.sum(module.apply(variables, jnp.tanh(embedded), words))

    gradients = jax.jit(jax.value_and_grad(loss))
    found, wanted = (gradients(variables, words.astype(d)) for d in (dtype, int))
    chex.assert_trees_all_equal(found, wanted)


@pytest.mark.parametrize(
    "module",
    [AdaptiveSoftmax(30, 8, (5, 12), divisor=2.0, tokens_per_chunk=6), TiedEmbedding(30, 8)],
)
def test_words_outside_the_vocabulary_have_no_likelihood_and_no_embedding(module):
    _, _, hidden, words = make()
    variables = random_variables(module, hidden, words)
    words = words.at[1, :3].set(jnp.array([-1, 30, 35]))
    outside = (words < 0) | (words >= 30)
    np.testing.assert_array_equal(
        jnp.isnan(jax.jit(module.apply)(variables, hidden, words)), outside
    )
    embedded = module.apply(variables, words, method="embed")
    np.testing.assert_array_equal(jnp.isnan(embedded), jnp.repeat(outside[..., None], 8, axis=-1))


@pytest.mark.parametrize("width", [None, 8, 12])
def test_outputs_of_another_width(width):
    hidden, words = jnp.ones((1, 3, 10)), jnp.zeros((1, 3), int)
    message = rf"hidden must have {width or 8} .* \(1, 3, 10\); hidden_features must be its width"
    for module in (
        AdaptiveSoftmax(30, 8, (5,), hidden_features=width),
        TiedEmbedding(30, 8, width),
    ):
        with pytest.raises(ValueError, match=message):
            module.init(jax.random.key(0), hidden, words)


@pytest.mark.parametrize("cutoffs", [(), (0,), (5, 5), (30,), (12, 5)])
def test_cutoffs_must_rise(cutoffs):
    with pytest.raises(ValueError, match=r"cutoffs must rise .* vocab_size=30, got"):
        AdaptiveSoftmax(30, 8, cutoffs)


def test_cutoffs_are_a_tuple():
    with pytest.raises(TypeError, match=r"cutoffs must be a tuple such as \(20, 40\), got 5"):
        AdaptiveSoftmax(30, 8, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": (10.5, 20)}, r"cutoffs\[0\] must be an integer, got 10\.5"),
        ({"divisor": "4"}, "divisor must be a number, got '4'"),
        ({"use_bias": "no"}, "use_bias must be True or False, got 'no'"),
        ({"dtype": "int32"}, "dtype must be a floating-point dtype, got 'int32'"),
    ],
)
def test_types_of_attributes(options, message):
    with pytest.raises(TypeError, match=message):
        AdaptiveSoftmax(**{"vocab_size": 30, "features": 8, "cutoffs": (5,)} | options)


def test_divisor_and_shapes_are_checked():
    for divisor in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"finite and at least 1, got {divisor}"):
            AdaptiveSoftmax(30, 8, (5,), divisor=divisor)
    module, variables, hidden, words = make()
    with pytest.raises(ValueError, match=r"targets must have shape \[\*B, T\] = \(3, 7\)"):
        module.apply(variables, hidden, words[:, :-1])
    table = jnp.ones((4, 8))
    for found, run in (
        ("float32", lambda: module.apply(variables, hidden, words / 2)),
        ("float32", lambda: cluster_log_likelihood(hidden, table, words / 2, words > 0)),
        ("list", lambda: module.apply(variables, hidden, [[3]])),
    ):
        with pytest.raises(TypeError, match=rf"targets must be an integer .*, got {found}"):
            run()
    with pytest.raises(ValueError, match="tokens_per_chunk must be at least 1"):
        cluster_log_likelihood(hidden, table, words, words > 0, tokens_per_chunk=0)
    with pytest.raises(TypeError, match=r"selected must be a bool array .*, got int32"):
        cluster_log_likelihood(hidden, table, words, words)
