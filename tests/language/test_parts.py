"""Tied embedding, dropout and penalties against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax.language import (
    EmbeddingDropout,
    TiedEmbedding,
    VariationalDropout,
    activation_regularisation,
)

WORDS = jnp.array([[3, 1, 3, 0], [2, 2, 4, 1]])


def make(hidden_features=None, **options):
    module = TiedEmbedding(5, 6, hidden_features, **options)
    hidden = jax.random.normal(jax.random.key(1), (2, 4, hidden_features or 6))
    return module, jax.jit(module.init)(jax.random.key(0), hidden, WORDS), hidden


def test_one_table_embeds_and_scores():
    module, variables, hidden = make()
    table = variables["params"]["embedding"]
    assert jax.tree.map(jnp.shape, variables) == {"params": {"embedding": (5, 6), "bias": (5,)}}
    np.testing.assert_array_equal(module.apply(variables, WORDS, method="embed"), table[WORDS])
    logits = module.apply(variables, hidden, method="logits")
    np.testing.assert_allclose(logits, hidden @ table.T, atol=1e-6)


@pytest.mark.parametrize("hidden_features", [None, 9])
def test_log_likelihood_is_that_of_the_target(hidden_features):
    module, variables, hidden = make(hidden_features)
    assert ("projection" in variables["params"]) == (hidden_features is not None)
    log_probs = module.apply(variables, hidden, method="log_probs")
    np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), jnp.ones((2, 4)), atol=1e-6)
    found = module.apply(variables, hidden, WORDS)
    wanted = np.take_along_axis(np.asarray(log_probs), np.asarray(WORDS)[..., None], axis=-1)
    np.testing.assert_allclose(found, wanted[..., 0], atol=1e-6)


def test_words_are_integers():
    module, variables, hidden = make()
    with pytest.raises(TypeError, match=r"words must be an integer array .*, got float32"):
        module.apply(variables, WORDS / 2, method="embed")
    with pytest.raises(TypeError, match=r"targets must be an integer array .*, got bool"):
        module.apply(variables, hidden, WORDS > 0)


def test_a_target_for_each_output():
    module, variables, hidden = make()
    for targets in (WORDS[:, :1], WORDS[0]):
        with pytest.raises(ValueError, match=r"targets must have shape \[\*B, T\] = "):
            module.apply(variables, hidden, targets)
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype, got 'int32'"):
        module.clone(dtype="int32")


def test_low_precision_gives_float32_logits():
    module, variables, hidden = make(9, dtype=jnp.bfloat16)
    assert module.apply(variables, WORDS, method="embed").dtype == jnp.bfloat16
    logits = module.apply(variables, hidden, method="logits")
    assert logits.dtype == jnp.float32
    exact = module.clone(dtype=None).apply(variables, hidden, method="logits")
    np.testing.assert_allclose(logits, exact, atol=0.05)
    # Low parameters leave the outputs exact.
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    found, exact = (module.clone(dtype=None).apply(v, hidden, method="logits") for v in (low, wide))
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_variational_dropout_has_one_mask_for_each_sequence():
    x = jnp.ones((64, 7, 32))
    key = {"dropout": jax.random.key(0)}
    y = VariationalDropout(0.25).apply({}, x, deterministic=False, rngs=key)
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1], y.shape))
    assert bool((y[0] != y[1]).any())
    assert abs(float((y == 0).mean()) - 0.25) < 0.03  # 2,048 draws: 3 deviations.
    np.testing.assert_allclose(y[y != 0], 1 / 0.75, rtol=1e-6)
    same = VariationalDropout(0.25).apply({}, x, deterministic=True)
    np.testing.assert_array_equal(same, x)


def test_embedding_dropout_drops_words():
    words = jax.random.randint(jax.random.key(1), (8, 100), 0, 50)
    embedded = jnp.ones((8, 100, 3))
    key = {"dropout": jax.random.key(0)}
    module = EmbeddingDropout(0.3, vocab_size=50)
    y = np.asarray(module.apply({}, words, embedded, deterministic=False, rngs=key))
    dropped = {v: set(y[np.asarray(words) == v].ravel().round(5)) for v in range(50)}
    assert all(len(values) == 1 for values in dropped.values())
    assert set().union(*dropped.values()) == {0.0, np.float32(1 / 0.7).round(5)}
    np.testing.assert_array_equal(module.apply({}, words, embedded, deterministic=True), embedded)
    with pytest.raises(ValueError, match=r"words must have shape .* = \(8, 100\), got \(8, 1\)"):
        module.apply({}, words[:, :1], embedded, deterministic=False, rngs=key)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        EmbeddingDropout(0.3, vocab_size=0)


def test_activation_penalties_by_hand():
    outputs = jnp.array([[[1.0, 2.0], [1.0, 0.0], [4.0, 0.0]]])
    dropped = outputs.at[..., 1].set(0.0)
    # 18 / 6 of the squares; (0 + 4 + 9 + 0) / 4 of the differences.
    assert float(activation_regularisation(dropped, outputs, 2.0, 1.0)) == 6.0 + 3.25
    one_step = activation_regularisation(dropped[:, :1], outputs[:, :1], 2.0, 1.0)
    assert float(one_step) == 1.0
    with pytest.raises(
        ValueError, match=r"outputs must have shape .* = \(1, 1, 2\), got \(1, 3, 2"
    ):
        activation_regularisation(dropped[:, :1], outputs, 2.0, 1.0)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_are_checked(rate):
    with pytest.raises(ValueError, match="rate must be at least 0 and below 1, got"):
        VariationalDropout(rate)
    with pytest.raises(ValueError, match="rate must be at least 0 and below 1, got"):
        EmbeddingDropout(rate, 5)
