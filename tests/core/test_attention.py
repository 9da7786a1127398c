"""Attention: numbers computed by hand, dtypes, the joint LayerNorm, and errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rrnn_jax
from rrnn_jax import MultiHeadAttention
from tests.core import reference
from tests.core.random_variables import normal, random_variables

dot_product_attention = jax.jit(rrnn_jax.dot_product_attention)


def test_small_case_by_hand():
    # K = 4, so logits are halved: q.k / 2 = (0, ln 3), hence weights 1/4 and 3/4.
    query = jnp.zeros((1, 1, 4)).at[0, 0, 0].set(2 * math.log(3))
    key = jnp.zeros((2, 1, 4)).at[1, 0, 0].set(1.0)
    value = jnp.asarray([[[0.0, 8.0]], [[4.0, 0.0]]])
    attended, weights = dot_product_attention(query, key, value)
    np.testing.assert_allclose(weights, [[[0.25, 0.75]]], atol=1e-6)
    np.testing.assert_allclose(attended, [[[3.0, 2.0]]], atol=1e-6)


def test_heads_do_not_mix():
    # Head 0 looks at row 0 alone and head 1 at row 1 alone.
    query = jnp.asarray([[[100.0], [-100.0]]])
    key = jnp.asarray([[[1.0], [1.0]], [[-1.0], [-1.0]]])
    value = jnp.asarray([[[1.0], [2.0]], [[3.0], [4.0]]])
    attended, weights = dot_product_attention(query, key, value)
    np.testing.assert_allclose(attended, [[[1.0], [4.0]]], atol=1e-6)
    np.testing.assert_allclose(weights, [[[1.0, 0.0]], [[0.0, 1.0]]], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rows_of_weights_sum_to_one_in_float32(dtype):
    rng = np.random.default_rng(0)
    query = normal(rng, (2, 3, 4, 5), dtype, 4.0)
    key, value = normal(rng, (2, 6, 4, 5), dtype, 4.0), normal(rng, (2, 6, 4, 7), dtype)
    attended, weights = dot_product_attention(query, key, value)
    assert (attended.shape, attended.dtype) == ((2, 3, 4, 7), dtype)
    assert (weights.shape, weights.dtype) == ((2, 4, 3, 6), jnp.float32)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), np.ones((2, 4, 3)), atol=1e-6)
    assert np.all(weights >= 0)


def test_softmax_is_not_rounded_to_bfloat16():
    # 1/3 has no short binary form: a softmax in bfloat16 would be off by about 1e-3.
    query = jnp.zeros((1, 1, 2), jnp.bfloat16)
    key = jnp.zeros((3, 1, 2), jnp.bfloat16)
    _, weights = dot_product_attention(query, key, key)
    np.testing.assert_allclose(weights, np.full((1, 1, 3), 1 / 3), atol=1e-7)


def test_large_logits_stay_finite():
    query = jnp.full((1, 1, 1), 1e4)
    key = jnp.asarray([[[1e4]], [[-1e4]]])
    attended, weights = dot_product_attention(query, key, jnp.ones_like(key))
    np.testing.assert_array_equal(weights, [[[1.0, 0.0]]])
    np.testing.assert_array_equal(attended, [[[1.0]]])


def test_any_number_of_batch_axes():
    rng = np.random.default_rng(0)
    query, key = (np.asarray(normal(rng, (2, 3, rows, 2, 5))) for rows in (4, 6))
    attended, weights = jax.device_get(dot_product_attention(query, key, key))
    for i in range(2):
        one, one_weights = dot_product_attention(query[i], key[i], key[i])
        np.testing.assert_allclose(attended[i], one, atol=1e-6)
        np.testing.assert_allclose(weights[i], one_weights, atol=1e-6)
        none, none_weights = dot_product_attention(query[i, 1], key[i, 1], key[i, 1])
        np.testing.assert_allclose(attended[i, 1], none, atol=1e-6)
        np.testing.assert_allclose(weights[i, 1], none_weights, atol=1e-6)


@pytest.mark.parametrize(
    ("query", "key", "value", "message"),
    [
        ((4, 5), (6, 4, 5), (6, 4, 5), r"query must have shape \[\*B, Q, H, K\], got \(4, 5\)"),
        ((3, 4, 5), (6, 4, 6), (6, 4, 5), r"key .* \[\*B, M, H, K\] = \(6, 4, 5\), got \(6, 4, 6"),
        ((3, 4, 5), (6, 2, 5), (6, 2, 5), r"key must .* = \(6, 4, 5\), got \(6, 2, 5\)"),
        ((3, 4, 5), (4, 5), (6, 4, 5), r"key must .*, got \(4, 5\)"),
        ((3, 4, 5), (6, 4, 5), (7, 4, 5), r"value .* \[\*B, M, H, D\] = \(6, 4, 5\), got \(7, 4,"),
        ((2, 3, 4, 5), (3, 6, 4, 5), (2, 6, 4, 5), r"key must .* = \(2, 6, 4, 5\), got \(3, 6,"),
    ],
)
def test_shape_errors(query, key, value, message):
    with pytest.raises(ValueError, match=message):
        dot_product_attention(jnp.ones(query), jnp.ones(key), jnp.ones(value))


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_integers_are_no_vectors(name):
    arrays = dict.fromkeys(("query", "key", "value"), jnp.ones((3, 1, 2)))
    with pytest.raises(TypeError, match=f"{name} must be floating-point, got int32"):
        rrnn_jax.dot_product_attention(**arrays | {name: jnp.ones((3, 1, 2), jnp.int32)})


def test_arrays_of_numpy_in_double_precision():
    rows = np.random.default_rng(0).normal(size=(4, 6))
    module: Any = MultiHeadAttention(2, 3)
    variables = random_variables(module, jnp.asarray(rows))
    expected, _ = jax.jit(module.apply)(variables, rows)
    np.testing.assert_allclose(module.apply(variables, rows)[0], expected, atol=1e-6)
    heads = rows.reshape(4, 2, 3)
    attended, weights = rrnn_jax.dot_product_attention(heads, heads, heads)
    assert {attended.dtype, weights.dtype} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(attended, dot_product_attention(heads, heads, heads)[0], atol=1e-6)


def test_layer_norm_spans_queries_keys_and_values_of_all_heads():
    # H = 2, K = D = 1. All rows are equal, so attention is uniform and shows the values alone.
    module = MultiHeadAttention(num_heads=2, head_size=1)
    rows = jnp.ones((3, 2))
    variables = random_variables(module, rows)["params"]
    variables["qkv"]["kernel"] = jnp.zeros((2, 6))
    variables["qkv"]["bias"] = jnp.asarray([0.0, 0.0, 3.0, 0.0, 0.0, -3.0])
    variables["qkv_norm"] = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
    attended, _ = jax.jit(module.apply)({"params": variables}, rows)
    # Mean 0, variance 18/6. Norms per head would give sqrt(2), of the values alone 1.
    np.testing.assert_allclose(attended, np.tile([3**0.5, -(3**0.5)], (3, 1)), rtol=1e-5)
    # Scale and offset belong to places of the packed axis: q, k, v of head 0, then of head 1.
    variables["qkv_norm"]["scale"] = jnp.asarray([9.0, 9.0, 2.0, 9.0, 9.0, 1.0])
    variables["qkv_norm"]["bias"] = jnp.asarray([9.0, 9.0, 1.0, 9.0, 9.0, 0.0])
    attended, _ = jax.jit(module.apply)({"params": variables}, rows)
    np.testing.assert_allclose(attended, np.tile([2 * 3**0.5 + 1, -(3**0.5)], (3, 1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "head_size", "key_size"), [(1, 6, None), (3, 2, None), (2, 3, 4)]
)
def test_module_against_reference(heads, head_size, key_size):
    rng = np.random.default_rng(0)
    rows = normal(rng, (2, 5, heads * head_size))
    module: Any = MultiHeadAttention(heads, head_size, key_size)
    variables = random_variables(module, rows)
    packed = heads * (2 * (key_size or head_size) + head_size)
    assert variables["params"]["qkv"]["kernel"].shape == (heads * head_size, packed)
    attended, weights = jax.jit(module.apply)(variables, rows)
    expected, expected_weights = reference.attend(
        {
            "block/qkv/w": np.asarray(variables["params"]["qkv"]["kernel"]),
            "block/qkv/b": np.asarray(variables["params"]["qkv"]["bias"]),
            "block/qkv_norm/scale": np.asarray(variables["params"]["qkv_norm"]["scale"]),
            "block/qkv_norm/offset": np.asarray(variables["params"]["qkv_norm"]["bias"]),
        },
        "block",
        np.asarray(rows),
        heads,
    )
    np.testing.assert_allclose(attended, expected, atol=1e-5)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    some = jax.jit(module.apply, static_argnames="num_queries")
    first, first_weights = some(variables, rows, num_queries=2)
    np.testing.assert_allclose(first, attended[:, :2], atol=1e-6)
    np.testing.assert_allclose(first_weights, weights[:, :, :2], atol=1e-6)


def test_module_in_bfloat16():
    rows = normal(np.random.default_rng(0), (4, 6))
    module: Any = MultiHeadAttention(2, 3, dtype=jnp.bfloat16)
    variables = random_variables(module, rows)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    attended, weights = jax.jit(module.apply)(variables, rows)
    assert (attended.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    exact, _ = jax.jit(module.clone(dtype=None).apply)(variables, rows)
    np.testing.assert_allclose(attended.astype(jnp.float32), exact, atol=2e-2)


def test_module_needs_queries():
    with pytest.raises(ValueError, match="num_queries must be at least 1, got -1"):
        MultiHeadAttention(2, 4).init(jax.random.key(0), jnp.ones((2, 3, 8)), num_queries=-1)


def test_module_needs_rows():
    with pytest.raises(ValueError, match=r"rows must have shape \[\*B, M, X\], got \(4,\)"):
        MultiHeadAttention(2, 2).init(jax.random.key(0), jnp.ones(4))
