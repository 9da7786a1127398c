"""The DNC against an independent NumPy step, its invariants, its sizes and its errors."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrnn_jax import RNN
from rrnn_jax.baselines import DNCCell, DNCState
from rrnn_jax.baselines.dnc_addressing import allocation_weights, write_allocations
from rrnn_jax.baselines.dnc_memory import interface_size
from tests.baselines import dnc_reference
from tests.core.random_variables import normal, random_variables
from tests.grids import mostly_slow

SIZES = {
    "memory_size": 5,
    "word_size": 3,
    "num_reads": 2,
    "num_writes": 1,
    "controller_size": 4,
    "output_size": 3,
}
B, T, I = 2, 6, 3  # noqa: E741

CONFIGS = {
    "lstm": {},
    "two-layer lstm, clipped": {"controller_layers": 2, "clip_value": 0.3},
    "two writes, unclipped, other bias": {
        "num_writes": 2,
        "num_reads": 3,
        "clip_value": None,
        "forget_bias": 0.5,
    },
    "feedforward": {"controller": "feedforward", "clip_value": 0.3},
    "two-layer feedforward": {"controller": "feedforward", "controller_layers": 2},
}


def make_cell(**options) -> DNCCell:
    return DNCCell(**{**SIZES, **options})


def as_numpy(carry: DNCState, row: int) -> dict:
    """One sequence's state in float64."""
    one = jax.tree.map(lambda leaf: np.asarray(leaf[row], np.float64), carry)
    return one._asdict()


KEPT = ["two-layer lstm, clipped", "two writes, unclipped, other bias", "feedforward"]


@pytest.mark.parametrize("name", mostly_slow(CONFIGS, keep=KEPT))
def test_steps_equal_numpy(name):
    cell = make_cell(**CONFIGS[name])
    x = normal(np.random.default_rng(0), (B, T, I), scale=2.0)
    # A state of a few steps with other weights, for rows that start equal stay ambiguous.
    begin = cell.initialize_carry(jax.random.key(0), (B, I))
    rng = np.random.default_rng(1)
    begin = begin._replace(
        memory=normal(rng, begin.memory.shape),
        usage=jnp.asarray(rng.uniform(size=begin.usage.shape), jnp.float32),
    )
    variables = random_variables(cell, begin, x[:, 0])
    run = jax.jit(
        lambda v, x, carry: RNN(cell).apply(
            {"params": {"cell": v["params"]}}, x, initial_carry=carry, return_all_carries=True
        )
    )
    carries, outputs = jax.device_get(run(variables, x, begin))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for row in range(B):
        carry = as_numpy(begin, row)
        for t in range(T):
            carry, y = dnc_reference.step(params, carry, np.asarray(x[row, t], np.float64), cell)
            np.testing.assert_allclose(outputs[row, t], y, atol=2e-5)
            actual = as_numpy(jax.tree.map(lambda leaf: leaf[:, t], carries), row)  # noqa: B023
            assert actual.keys() == carry.keys()
            for field, value in carry.items():
                if field != "controller":
                    np.testing.assert_allclose(actual[field], value, atol=2e-5, err_msg=field)
            for (c, h), (c_np, h_np) in zip(actual["controller"], carry["controller"], strict=True):
                np.testing.assert_allclose(c, c_np, atol=2e-5)
                np.testing.assert_allclose(h, h_np, atol=2e-5)


def test_clipping_matters():
    x = normal(np.random.default_rng(0), (B, T, I), scale=2.0)
    carry = make_cell().initialize_carry(jax.random.key(0), (B, I))
    variables = random_variables(make_cell(), carry, x[:, 0])
    y = {
        clip: jax.jit(make_cell(clip_value=clip).apply)(variables, carry, x[:, 0])[1]
        for clip in (0, None, 20.0, 0.1)
    }
    np.testing.assert_array_equal(y[0], y[None])
    np.testing.assert_allclose(y[20.0], y[None], atol=1e-6)
    assert np.abs(y[None]).max() > 0.1 == pytest.approx(np.abs(y[0.1]).max())


# Allocation


allocate = jax.jit(allocation_weights)
# On a grid: which of two rows comes first is anyone's guess if they differ by less than rounding.
usages = st.lists(
    st.sampled_from([0.0, 1.0, 0.5]) | st.integers(0, 2**12).map(lambda n: n / 2**12),
    min_size=6,
    max_size=6,
)


@settings(deadline=None, max_examples=60)
@given(usages)
def test_allocation_equals_stable_sort(usage):
    usage = np.asarray(usage, np.float32)
    expected = dnc_reference.allocation(usage)
    np.testing.assert_allclose(allocate(jnp.asarray(usage)), expected, atol=2e-6)


def test_allocation_of_equal_rows_goes_to_the_lowest_index():
    usage = jnp.asarray([[0.0, 0.0, 0.0], [1.0, 0.25, 0.25], [0.0, 1.0, 0.0]])
    expected = [[1, 0, 0], [0, 0.75, 0.75 * 0.25], [1, 0, 0]]
    np.testing.assert_allclose(allocate(usage), expected, atol=2e-6)


def test_allocation_gradient_equals_that_of_sorting():
    """The gradient by differences of the sorted form, where no two rows are equally used."""
    usage = np.array([0.3, 0.05, 0.9, 0.6])
    weights = np.array([1.0, -2.0, 0.5, 3.0])
    gradient = jax.grad(lambda u: jnp.vdot(allocation_weights(u), jnp.asarray(weights, u.dtype)))
    actual = jax.jit(gradient)(jnp.asarray(usage, jnp.float32))

    def sorted_form(u):
        order = np.argsort(u)
        before = np.concatenate([[1.0], np.cumprod(u[order])[:-1]])
        return float(weights[order] @ ((1 - u[order]) * before))

    step = 1e-6
    expected = [
        (sorted_form(usage + step * unit) - sorted_form(usage - step * unit)) / (2 * step)
        for unit in np.eye(4)
    ]
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_allocation_survives_usage_beyond_its_range():
    usage = jnp.asarray([-1e-5, 1.0 + 1e-6, 0.5])
    both = jax.jit(jax.value_and_grad(lambda u: jnp.sum(allocation_weights(u))))
    value, gradient = both(usage)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_write_heads_take_different_rows():
    gates = jnp.asarray([1.0, 1.0])
    write = jax.jit(write_allocations)
    allocations = write(jnp.asarray([0.9, 0.0, 0.1]), gates, gates)
    np.testing.assert_allclose(allocations[0], [0, 1, 0], atol=2e-6)
    np.testing.assert_allclose(allocations[1], [0.01, 0, 0.9], atol=2e-6)
    closed = write(jnp.asarray([0.9, 0.0, 0.1]), gates, jnp.zeros(2))
    np.testing.assert_array_equal(closed[0], closed[1])


# Invariants


def test_no_gradient_from_usage_to_write_weights():
    cell = make_cell(num_writes=2)
    x = normal(np.random.default_rng(0), (B, I))
    carry = cell.initialize_carry(jax.random.key(0), (B, I))
    variables = random_variables(cell, carry, x)
    gradient = jax.jit(jax.grad(lambda c: jnp.sum(cell.apply(variables, c, x)[0].usage)))(
        carry._replace(write_weights=carry.write_weights + 0.3)
    )
    np.testing.assert_array_equal(gradient.write_weights, 0.0)
    np.testing.assert_array_less(0.0, gradient.usage)


PROPERTY_CELL = make_cell(num_writes=2)


@cache
def property_variables():
    return random_variables(RNN(PROPERTY_CELL), jnp.zeros((1, 40, I)))


run_carries = jax.jit(
    lambda variables, x: RNN(PROPERTY_CELL).apply(variables, x, return_all_carries=True)[0]
)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.1, 20.0), st.floats(0.1, 10.0))
def test_weightings_usage_and_links_keep_their_range(seed, input_scale, weight_scale):
    x = normal(np.random.default_rng(seed), (1, 40, I), scale=input_scale)
    variables = jax.tree.map(lambda leaf: leaf * jnp.float32(weight_scale), property_variables())
    carries = run_carries(variables, x)
    slack = 2e-5  # Sums over 40 steps in float32.
    for name in ("read_weights", "write_weights", "precedence_weights", "link"):
        value = np.asarray(getattr(carries, name))
        assert np.isfinite(value).all(), name
        assert value.min() >= -slack, name
        assert value.max() <= 1 + slack, name
        assert value.sum(-1).max() <= 1 + slack, name
    assert carries.link.sum(-2).max() <= 1 + slack
    np.testing.assert_array_equal(np.diagonal(carries.link, axis1=-2, axis2=-1), 0.0)
    assert carries.usage.min() >= -slack
    assert carries.usage.max() <= 1 + slack


# Sizes


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_parameter_count(controller, layers):
    W, R, P, C, O = 3, 2, 2, 4, 5  # noqa: E741
    cell = make_cell(num_writes=P, output_size=O, controller=controller, controller_layers=layers)
    x = jnp.zeros((B, I))
    shapes = jax.eval_shape(
        cell.init, jax.random.key(0), cell.initialize_carry(jax.random.key(0), x.shape), x
    )
    interface = W * (R + 3 * P) + 3 * P + R * (2 * P + 3)
    assert interface == interface_size(W, R, P)
    seen = I + R * W
    if controller == "lstm":
        inputs = [seen + C, seen + 2 * C][:layers]
        expected, hidden = sum((n + 1) * 4 * C for n in inputs), layers * C
    else:
        expected, hidden = sum((n + 1) * C for n in [seen, C][:layers]), C
    expected += (hidden + 1) * interface + (hidden + R * W + 1) * O
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_interface_size_is_that_of_the_article():
    # Graves et al., Methods: (W x R) + 3W + 5R + 3 for one write head.
    W, R = 64, 4
    assert interface_size(W, R, 1) == W * R + 3 * W + 5 * R + 3


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"memory_size": 0}, ValueError, "memory_size must be at least 1, got 0"),
        ({"num_reads": 1.5}, TypeError, "num_reads must be an integer, got 1.5"),
        ({"controller_layers": 0}, ValueError, "controller_layers must be at least 1, got 0"),
        ({"controller": "gru"}, ValueError, "controller must be one of 'lstm', 'feedforward'"),
        ({"clip_value": -1.0}, ValueError, "clip_value must be at least 0, got -1.0"),
        ({"clip_value": np.nan}, ValueError, "clip_value must be at least 0, got nan"),
        ({"clip_value": "x"}, TypeError, "clip_value must be a number, got 'x'"),
        ({"forget_bias": "x"}, TypeError, "forget_bias must be a number, got 'x'"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        make_cell(**options)
