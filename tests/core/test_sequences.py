"""Resets, masks, lengths and chunks: packed equals apart, padded equals unpadded, cut equals whole.

Every property is checked for the Relational Memory Core (on each implementation) and for flax's
LSTM, with one and with two batch axes, in outputs, carries and gradients.
"""

import math
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell
from tests.grids import mostly_slow

T, FEATURES = 7, 3


class Case(NamedTuple):
    cell: nn.RNNCellBase
    implementation: str
    batch: tuple[int, ...]
    time_major: bool = False


RMC = RelationalMemoryCell(mem_slots=3, head_size=4, num_heads=2)
LSTM = nn.OptimizedLSTMCell(5)
CASES = {
    "rmc-scan": Case(RMC, "scan", (2,)),
    "rmc-hoisted": Case(RMC, "hoisted", (2,)),
    "rmc-hoisted-two-axes-time-major": Case(RMC, "hoisted", (2, 2), time_major=True),
    "rmc-output-gate": Case(RMC.clone(output_gate=True, num_blocks=2), "hoisted", (2,)),
    "lstm": Case(LSTM, "auto", (2,)),
    "lstm-two-axes": Case(LSTM, "auto", (2, 2)),
}


class Run:
    """A case with its variables and inputs, all arrays batch-major."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rnn = RNN(case.cell, implementation=case.implementation, return_carry=True)
        keys = jax.random.split(jax.random.key(0), 3)
        self.x = jax.random.normal(keys[0], (*case.batch, T, FEATURES))
        variables = jax.jit(self.rnn.init)(keys[1], self.x)
        noise = jax.random.normal(keys[2], (2**14,))
        self.variables = jax.tree.map(
            lambda p: p + 0.1 * noise[: p.size].reshape(p.shape), variables
        )

    @property
    def time(self) -> int:
        return len(self.case.batch)

    def __call__(self, variables: Any, x: jax.Array, **options: Any) -> tuple[Any, jax.Array]:
        """Runs batch-major arrays through the case's layout."""
        if not self.case.time_major:
            return self.rnn.apply(variables, x, **options)  # type: ignore[return-value]
        options = {
            name: jnp.moveaxis(value, self.time, 0) if name in ("resets", "mask") else value
            for name, value in options.items()
        }
        carry, y = self.rnn.apply(
            variables, jnp.moveaxis(x, self.time, 0), time_major=True, **options
        )
        return carry, jnp.moveaxis(y, 0, self.time)

    def now(self, **options: Any) -> tuple[Any, jax.Array]:
        """Carry and outputs of its own variables and inputs, compiled quickly."""
        return jax.jit(lambda v, x: self(v, x, **options))(self.variables, self.x)

    @cached_property
    def plain(self) -> tuple[Any, jax.Array]:
        """The same of the whole sequence, with nothing else asked for."""
        return self.now()

    def steps(self, array: jax.Array, start: int, stop: int) -> jax.Array:
        return jax.lax.slice_in_dim(array, start, stop, axis=self.time)

    def join(self, *arrays: jax.Array) -> jax.Array:
        return jnp.concatenate(arrays, axis=self.time)

    def flags(self, *steps: int) -> jax.Array:
        return jnp.zeros((*self.case.batch, T), bool).at[..., list(steps)].set(True)


@pytest.fixture(scope="module", params=mostly_slow(CASES, keep=["rmc-hoisted", "lstm"]))
def run(request) -> Run:
    return Run(CASES[request.param])


def value_and_gradient(run: Run, function: Callable) -> tuple:
    """The result, and gradients in variables and inputs."""

    def loss(variables, x):
        result = function(variables, x)
        leaves = jax.tree.leaves(result)
        total = sum(
            jnp.sum(jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)) * leaf.reshape(-1))
            for leaf in leaves
        )
        return total / 10.0, result

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(run.variables, run.x)


def assert_close(first: tuple, second: tuple) -> None:
    def compare(a: jax.Array, b: jax.Array) -> None:
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4)

    jax.tree.map(compare, first, second)


def assert_same_function(run: Run, first: Callable, second: Callable) -> None:
    """Equal results, and equal gradients in variables and inputs."""
    assert_close(value_and_gradient(run, first), value_and_gradient(run, second))


def test_packed_with_resets_equals_apart(run):
    def packed(variables, x):
        return run(variables, x, resets=run.flags(0, 3, 4))

    def apart(variables, x):
        parts = [run(variables, run.steps(x, a, b)) for a, b in ((0, 3), (3, 4), (4, T))]
        return parts[-1][0], run.join(*(y for _, y in parts))

    assert_same_function(run, packed, apart)


def test_resets_of_some_sequences_only(run):
    carry = jax.tree.map(lambda m: m + 0.3, run.plain[0])
    first = jnp.zeros((*run.case.batch, T), bool).at[0, ..., 2].set(True)

    def packed(variables, x):
        return run(variables, x, resets=first, initial_carry=carry)

    def apart(variables, x):
        middle, begin = run(variables, run.steps(x, 0, 2), initial_carry=carry)
        goes_on = run(variables, run.steps(x, 2, T), initial_carry=middle)
        anew = run(variables, run.steps(x, 2, T))
        end = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), anew, goes_on)
        return end[0], run.join(begin, end[1])

    assert_same_function(run, packed, apart)


def test_reset_goes_to_the_cells_initial_memory(run):
    carry, fresh = run.plain
    carry = jax.tree.map(lambda m: m + 1.0, carry)
    _, reset = run.now(initial_carry=carry, resets=run.flags(0))
    _, carried = run.now(initial_carry=carry)
    np.testing.assert_allclose(reset, fresh, atol=1e-6)
    assert np.abs(carried - fresh).max() > 1e-2


def test_padded_with_mask_equals_unpadded(run):
    mask = ~run.flags(0, 3, T - 1)

    def padded(variables, x):
        # NaN where the mask is False: nothing of it may come through.
        x = jnp.where(mask[..., None], x, jnp.nan)
        carry, y = run(variables, x, mask=mask)
        return carry, run.join(run.steps(y, 1, 3), run.steps(y, 4, T - 1))

    def unpadded(variables, x):
        return run(variables, run.join(run.steps(x, 1, 3), run.steps(x, 4, T - 1)))

    assert_same_function(run, padded, unpadded)


def test_masked_output_is_that_of_the_last_valid_step(run):
    carry, _ = run.plain
    _, y = run.now(initial_carry=carry, mask=~run.flags(0, 3, 4))
    before = carry[1] if isinstance(carry, tuple) else carry
    before = before.reshape(*run.case.batch, -1)
    np.testing.assert_array_equal(jnp.take(y, 0, axis=run.time), before)
    for step in (3, 4):
        np.testing.assert_array_equal(
            jnp.take(y, step, axis=run.time), jnp.take(y, 2, axis=run.time)
        )


def test_reset_in_a_masked_step_is_passed_over(run):
    def both(variables, x):
        return run(variables, x, mask=~run.flags(2), resets=run.flags(2, 4))

    def without(variables, x):
        return run(variables, x, mask=~run.flags(2), resets=run.flags(4))

    assert_same_function(run, both, without)


def test_chunked_equals_whole(run):
    def whole(variables, x):
        return run(variables, x, resets=run.flags(4))

    def chunked(variables, x):
        carry, outputs = None, []
        for a, b in ((0, 1), (1, 5), (5, T)):
            carry, y = run(
                variables,
                run.steps(x, a, b),
                initial_carry=carry,
                resets=run.steps(run.flags(4), a, b),
            )
            outputs.append(y)
        return carry, run.join(*outputs)

    assert_same_function(run, whole, chunked)


def test_lengths_give_the_carry_of_the_last_valid_step(run):
    lengths = jnp.arange(math.prod(run.case.batch)).reshape(run.case.batch) * 2 + 1
    lengths = jnp.minimum(lengths, T).astype(jnp.int32)
    mask = jnp.broadcast_to(jnp.arange(T), (*run.case.batch, T)) < lengths[..., None]

    def by_lengths(variables, x):
        return run(variables, x, seq_lengths=lengths)[0]

    def by_mask(variables, x):
        return run(variables, x, mask=mask)[0]

    assert_same_function(run, by_lengths, by_mask)


def test_all_carries_are_those_after_every_step(run):
    def all_carries(variables, x):
        carry, carries, y = run_all(variables, x)
        last = jax.tree.map(lambda m: jnp.take(m, T - 1, axis=run.time), carries)
        middle = jax.tree.map(lambda m: jnp.take(m, 2, axis=run.time), carries)
        return carry, last, middle, y

    def by_hand(variables, x):
        carry, y = run(variables, x)
        return carry, carry, run(variables, run.steps(x, 0, 3))[0], y

    def run_all(variables, x):
        return run.rnn.apply(variables, x, return_all_carries=True)

    if run.case.time_major:
        apply = jax.jit(partial(run.rnn.apply, return_all_carries=True, time_major=True))
        carry, carries, y = apply(run.variables, jnp.moveaxis(run.x, run.time, 0))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[-1], atol=1e-6), carry, carries)
        assert y.shape[0] == T
    else:
        assert_same_function(run, all_carries, by_hand)


def test_reverse_with_resets_runs_the_same_episodes_backwards(run):
    def packed(variables, x):
        return run(variables, x, resets=run.flags(3), reverse=True, keep_order=True)[1]

    def apart(variables, x):
        parts = [
            run(variables, run.steps(x, a, b), reverse=True, keep_order=True)[1]
            for a, b in ((0, 3), (3, T))
        ]
        return run.join(*parts)

    assert_same_function(run, packed, apart)


def test_flax_rnn_gives_the_same(run):
    plain = nn.RNN(run.case.cell, return_carry=True)
    x = run.x
    key = jax.random.key(1)
    same, ours = jax.jit(plain.init)(key, x), jax.jit(run.rnn.init)(key, x)
    jax.tree.map(np.testing.assert_array_equal, same, ours)
    assert_same_function(run, run, lambda variables, x: plain.apply(variables, x))


@cache
def of_flagged_run(implementation: str, remat: str) -> tuple:
    run = Run(Case(RMC, implementation, (2,)))
    run.rnn = run.rnn.clone(remat=remat)
    options = {"resets": run.flags(2, 5), "mask": ~run.flags(3)}
    return value_and_gradient(run, lambda v, x: run(v, x, **options))


@pytest.mark.parametrize("remat", ["full", "save_products", "chunked"])
@pytest.mark.parametrize("implementation", mostly_slow(["scan", "hoisted"], keep=["hoisted"]))
def test_remat_changes_no_number(implementation, remat):
    assert_close(of_flagged_run(implementation, remat), of_flagged_run(implementation, "none"))


@pytest.mark.parametrize("time_major", [False, True])
def test_capture_keeps_the_time_axis_in_place(time_major):
    run = Run(Case(RMC.clone(num_blocks=2), "auto", (2,)))
    x = jnp.moveaxis(run.x, 1, 0) if time_major else run.x
    apply = partial(run.rnn.apply, time_major=time_major)
    captured_too = jax.jit(partial(apply, mutable=["intermediates"]))
    (_, y), captured = captured_too(run.variables, x)
    sown = captured["intermediates"]["cell"]
    lead = (T, 2) if time_major else (2, T)
    assert sown["attention_weights"][0].shape == (*lead, 2, 2, 3, 4)
    assert sown["input_gate"][0].shape == sown["forget_gate"][0].shape == (*lead, 3, 8)
    np.testing.assert_allclose(sown["attention_weights"][0].sum(-1), 1.0, rtol=1e-5)
    _, plain = jax.jit(apply)(run.variables, x)
    np.testing.assert_allclose(y, plain, atol=1e-5)


BAD = {
    "resets shape": (
        {"resets": jnp.zeros((2, 6), bool)},
        ValueError,
        r"resets .*\(2, 7\).*\(2, 6\)",
    ),
    "resets dtype": (
        {"resets": np.full((2, 7), "no")},
        TypeError,
        "resets must be bool or numbers.*<U2",
    ),
    "mask shape": ({"mask": jnp.zeros((7, 2), bool)}, ValueError, r"mask .*\(2, 7\).*\(7, 2\)"),
    "mask dtype": (
        {"mask": jnp.ones((2, 7), jnp.int32)},
        TypeError,
        "mask must be a bool.*int32; mask != 0 makes one",
    ),
    "lengths": (
        {"seq_lengths": jnp.zeros(2)},
        TypeError,
        "seq_lengths must be an integer.*float32",
    ),
    "carry": (
        {"initial_carry": jnp.zeros((2, 3, 7))},
        ValueError,
        r"initial_carry .*\(2, 3, 8\).*\(2, 3, 7\)",
    ),
    "integer carry": (
        {"initial_carry": jnp.zeros((2, 3, 8), jnp.int32)},
        TypeError,
        "initial_carry must be floating-point, got int32",
    ),
    "carry of another cell": (
        {"initial_carry": (jnp.zeros((2, 3, 8)), jnp.zeros((2, 3, 8)))},
        TypeError,
        "initial_carry must be one array",
    ),
    "reset carry": (
        {"resets": jnp.zeros((2, 7), bool), "reset_carry": jnp.zeros((3, 7))},
        ValueError,
        r"reset_carry .*\(3, 8\).*\(3, 7\)",
    ),
}


@cache
def run_of(implementation: str) -> Run:
    return Run(Case(RMC, implementation, (2,)))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("implementation", ["scan", "hoisted"])
def test_bad_arguments_are_named(name, implementation):
    run = run_of(implementation)
    options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        run(run.variables, run.x, **options)


def test_bad_attributes_are_named():
    with pytest.raises(ValueError, match=r"remat must be one of 'none'.*got 'some'"):
        RNN(RMC, remat="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"implementation must be one of 'auto'.*got 'fast'"):
        RNN(RMC, implementation="fast")
    with pytest.raises(ValueError, match="unroll must be at least 1, got 0"):
        RNN(RMC, unroll=0)
    x = jnp.zeros((2, 4, 3))
    with pytest.raises(ValueError, match="'hoisted' runs a RelationalMemoryCell only, got Opt"):
        RNN(LSTM, implementation="hoisted").init(jax.random.key(0), x)
    with pytest.raises(TypeError, match="inputs must be one array, got tuple"):
        RNN(RMC).init(jax.random.key(0), (x, x))
    with pytest.raises(ValueError, match=r"1 feature axes .*got shape \(3,\)"):
        RNN(RMC).init(jax.random.key(0), jnp.zeros(3))
