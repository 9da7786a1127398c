"""The hoisted scan in bfloat16: dtypes, its error compared with the plain scan's, and long sums."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from rrnn_jax.scan import relational
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

SIZES: dict[str, Any] = {"mem_slots": 2, "head_size": 4, "num_heads": 2, "attention_mlp_layers": 1}
LOW = jnp.bfloat16


def low_variables(x: jax.Array) -> Any:
    """Weights in bfloat16."""
    return random_variables(RNN(RelationalMemoryCell(**SIZES, param_dtype=LOW, dtype=LOW)), x)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def gradients(variables: Any, x: jax.Array, dtype: Any, **options: Any) -> Any:
    """Outputs, final carry and the gradients in variables and inputs."""
    param_dtype = jax.tree.leaves(variables)[0].dtype
    cell = RelationalMemoryCell(**SIZES, dtype=dtype, param_dtype=param_dtype)
    rnn = RNN(cell, return_carry=True, **options)

    def loss(variables: Any, x: jax.Array) -> Any:
        carry, y = rnn.apply(variables, x)
        return jnp.sum(jnp.square(y.astype(jnp.float32) - 0.5)), (y, carry)

    found, (y, carry) = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)
    return {"y": y, "carry": carry, "variables": found[0], "x": found[1]}


def error(actual: Any, expected: Any) -> float:
    """Of all numbers of a pytree together, relative."""
    a, b = (
        np.concatenate([np.ravel(leaf).astype(np.float32) for leaf in jax.tree.leaves(tree)])
        for tree in (actual, expected)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("param_dtype", "slots"),
    mostly_slow([(jnp.float32, 2), (LOW, 2), (jnp.float32, 1)], keep=[(jnp.float32, 2)]),
)
def test_bfloat16_is_no_less_exact_than_in_the_plain_scan(param_dtype, slots, monkeypatch):
    monkeypatch.setitem(SIZES, "mem_slots", slots)
    if slots == 1:  # `one_slot`
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(relational, "_has_large_kernels", lambda *sizes: True)
        monkeypatch.setattr(relational, "recurrence", None)
    # In other draws a number before a ReLU changes its sign, in either scan: an error of 1e-2.
    x = normal(np.random.default_rng(1), (4, 6, 5))
    low = low_variables(x)
    variables = cast(low, param_dtype)
    exact = gradients(cast(low, jnp.float32), x, jnp.float32, implementation="scan")
    plain = gradients(variables, x, LOW, implementation="scan")
    fast = gradients(variables, x, LOW, implementation="hoisted")
    dtypes = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (fast, plain)]
    assert dtypes[0] == dtypes[1]
    assert (fast["y"].dtype, fast["carry"].dtype) == (LOW, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(fast["variables"])} == {jnp.dtype(param_dtype)}
    for name, expected in exact.items():
        found = error(fast[name], expected)
        assert 0 < found < 2 * error(plain[name], expected) < 0.1, name


@pytest.mark.slow
def test_gradients_of_low_weights_do_not_stand_still_over_many_steps():
    x = 1 + 0.1 * normal(np.random.default_rng(0), (1, 300, 5))
    low = low_variables(x)
    wide = cast(low, jnp.float32)
    expected = gradients(wide, x, jnp.float32, implementation="hoisted")["variables"]
    for remat in ("none", "chunked"):
        options: Any = {"implementation": "hoisted", "remat": remat}
        actual = gradients(low, x, jnp.float32, **options)["variables"]
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
        ):
            scale, a = np.abs(b).max(), np.asarray(a, np.float32)
            # Rounded once, or (the chunks') a few times.
            np.testing.assert_allclose(a, b, rtol=0, atol=2**-7 * scale, err_msg=str(path))
