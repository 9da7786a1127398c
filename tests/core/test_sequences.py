"""Resets, masks, lengths and chunks: packed equals apart, padded equals unpadded, cut equals whole.

Every property is checked for the Relational Memory Core (on each implementation) and for flax's
LSTM, with one and with two batch axes, in outputs, carries and gradients.
"""

import itertools
import math
from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.random_variables import random_variables
from tests.grids import mostly_slow

T, FEATURES = 6, 3


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


class Pulled(NamedTuple):
    """What a run gives, and the gradients of a weighted sum of it."""

    result: tuple[Any, ...]
    variables: Any
    x: np.ndarray
    carry: Any


class Run:
    """A case with its variables and inputs, all arrays batch-major and NumPy's.

    Results are weighted by `carry_weights` and `y_weights`, so that the gradients of parts of a
    sequence add up to those of the whole. A program serves all tests that use the same options.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rnn = RNN(case.cell, implementation=case.implementation, return_carry=True)
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(*case.batch, T, FEATURES)).astype(np.float32)
        self.variables = random_variables(RNN(case.cell), jnp.asarray(self.x))
        step = jax.random.key(0), (*case.batch, FEATURES)
        self.fresh = jax.tree.map(np.asarray, case.cell.initialize_carry(*step))
        self.carry_weights, self.other = (
            jax.tree.map(lambda m: rng.normal(size=m.shape).astype(np.float32), self.fresh)
            for _ in range(2)
        )
        size = math.prod(jax.tree.leaves(self.fresh)[-1].shape[len(case.batch) :])
        self.y_weights = rng.normal(size=(*case.batch, T, size)).astype(np.float32)
        self._pull = jax.jit(self._differentiate, static_argnames=("reverse", "all_carries"))

    @property
    def time(self) -> int:
        return len(self.case.batch)

    def __call__(self, variables: Any, x: jax.Array, **options: Any) -> tuple:
        """Runs batch-major arrays through the case's layout."""
        if not self.case.time_major:
            return self.rnn.apply(variables, x, **options)  # type: ignore[return-value]
        options = {
            name: jnp.moveaxis(value, self.time, 0) if name in ("resets", "mask") else value
            for name, value in options.items()
        }
        carry, *others = self.rnn.apply(  # type: ignore[misc]
            variables, jnp.moveaxis(x, self.time, 0), time_major=True, **options
        )
        return carry, *jax.tree.map(lambda y: jnp.moveaxis(y, 0, self.time), others)

    def _differentiate(
        self, x: Any, weights: Any, carry: Any, options: Any, reverse: bool, all_carries: bool
    ) -> Any:
        options = options | {"reverse": reverse, "keep_order": True} if reverse else options

        def function(variables: Any, x: Any, carry: Any) -> Any:
            more = {} if carry is None else {"initial_carry": carry}
            return self(variables, x, return_all_carries=all_carries, **more, **options)

        result, pull = jax.vjp(function, self.variables, x, carry)
        return Pulled(result, *pull(weights))

    def pull(
        self,
        x: np.ndarray,
        weights: tuple[Any, ...],
        initial_carry: Any = None,
        reverse: bool = False,
        **options: Any,
    ) -> Pulled:
        """A run with these weights of its results: the carry, all carries if there are, outputs."""
        found = self._pull(x, weights, initial_carry, options, reverse, len(weights) == 3)
        return jax.tree.map(np.asarray, found)

    def whole(self, **options: Any) -> Pulled:
        return self.pull(self.x, (self.carry_weights, self.y_weights), **options)

    def part(self, start: int, stop: int, carry_counts: bool = False, **options: Any) -> Pulled:
        """Of the inputs from a step on, three, of which those before `stop` count."""
        weights = self.steps(self.y_weights, start, start + 3).copy()
        self.steps(weights, stop - start, 3)[...] = 0
        last = jax.tree.map(lambda w: w * carry_counts, self.carry_weights)
        return self.pull(self.steps(self.x, start, start + 3), (last, weights), **options)

    def steps(self, array: np.ndarray, start: int, stop: int) -> np.ndarray:
        return array[(slice(None),) * self.time + (slice(start, stop),)]

    def join(self, *arrays: np.ndarray) -> np.ndarray:
        return np.concatenate(arrays, axis=self.time)

    def flags(self, *steps: int) -> np.ndarray:
        flags = np.zeros((*self.case.batch, T), bool)
        flags[..., list(steps)] = True
        return flags


@pytest.fixture(scope="module", params=mostly_slow(CASES, keep=["rmc-hoisted"]))
def run(request) -> Run:
    return Run(CASES[request.param])


assert_close = partial(chex.assert_trees_all_close, atol=2e-6, rtol=1e-4)


def total(*parts: Any) -> Any:
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)


def test_packed_with_resets_equals_apart(run):
    resets, everywhere = run.flags(0, 2, 3), ~run.flags()
    packed = run.whole(initial_carry=run.other, resets=resets, mask=everywhere)
    parts = [run.part(0, 2), run.part(2, 3), run.part(3, T, carry_counts=True)]
    lengths = (2, 1, 3)
    y = [run.steps(part.result[1], 0, n) for part, n in zip(parts, lengths, strict=True)]
    x = [run.steps(part.x, 0, n) for part, n in zip(parts, lengths, strict=True)]
    assert_close(packed.result, (parts[-1].result[0], run.join(*y)))
    assert_close(packed.x, run.join(*x))
    assert_close(packed.variables, total(*(part.variables for part in parts)))
    assert_close(packed.carry, jax.tree.map(np.zeros_like, run.other))


def test_chunks_and_resets_of_some_sequences_only(run):
    """In two chunks, with the carry's gradient handed back; in one of them some are reset."""
    resets = run.flags(4)
    resets[0, ..., 3] = True
    whole = run.whole(initial_carry=run.other, resets=resets)
    flags = [run.steps(run.flags(4), a, a + 3) for a in (0, 3)]

    def begins_anew(fresh: np.ndarray, carry: np.ndarray) -> np.ndarray:
        return np.concatenate([fresh[:1], carry[1:]])

    middle, _ = run.part(0, 3, initial_carry=run.other, resets=flags[0]).result
    start = jax.tree.map(begins_anew, run.fresh, middle)
    second = run.part(3, T, carry_counts=True, initial_carry=start, resets=flags[1])
    handed = jax.tree.map(begins_anew, jax.tree.map(np.zeros_like, middle), second.carry)
    weights = handed, run.steps(run.y_weights, 0, 3)
    first = run.pull(run.steps(run.x, 0, 3), weights, initial_carry=run.other, resets=flags[0])
    assert_close(whole.result, (second.result[0], run.join(first.result[1], second.result[1])))
    assert_close(whole.x, run.join(first.x, second.x))
    assert_close(whole.variables, total(first.variables, second.variables))
    assert_close(whole.carry, first.carry)


def test_reset_goes_to_the_cells_initial_memory(run):
    _, fresh = run.whole().result
    _, reset = run.whole(initial_carry=run.other, resets=run.flags(0)).result
    _, carried = run.whole(initial_carry=run.other, resets=run.flags()).result
    np.testing.assert_allclose(reset, fresh, atol=1e-6)
    assert np.abs(carried - fresh).max() > 1e-2


def test_padded_with_mask_equals_unpadded(run):
    there, mask = [1, 2, 4], ~run.flags(0, 3, 5)
    # NaN where the mask is False: nothing of it may come through.
    x = np.where(mask[..., None], run.x, np.nan)
    weights = np.where(mask[..., None], run.y_weights, 0)
    padded = run.pull(x, (run.carry_weights, weights), initial_carry=run.fresh, mask=mask)
    x, weights = run.x[..., there, :], run.y_weights[..., there, :]
    unpadded = run.pull(x, (run.carry_weights, weights))
    assert_close((padded.result[0], padded.result[1][..., there, :]), unpadded.result)
    assert_close((padded.variables, padded.x[..., there, :]), (unpadded.variables, unpadded.x))
    np.testing.assert_array_equal(np.delete(padded.x, there, axis=-2), 0)


def test_masked_output_is_that_of_the_last_valid_step(run):
    carry = run.other
    _, y = run.whole(initial_carry=carry, mask=~run.flags(0, 3, 4)).result
    before = carry[1] if isinstance(carry, tuple) else carry
    np.testing.assert_array_equal(y[..., 0, :], before.reshape(*run.case.batch, -1))
    np.testing.assert_array_equal(y[..., 3:5, :], y[..., [2, 2], :])


def test_reset_in_a_masked_step_is_passed_over(run):
    both, without = (
        run.whole(initial_carry=run.other, mask=~run.flags(2), resets=run.flags(*steps))
        for steps in ((2, 4), (4,))
    )
    assert_close(both, without)


def test_lengths_give_the_carry_of_the_last_valid_step(run):
    lengths = np.arange(math.prod(run.case.batch), dtype=np.int32).reshape(run.case.batch) * 2 + 1
    lengths = np.minimum(lengths, T)
    weights = run.carry_weights, np.zeros_like(run.y_weights)
    mask = np.broadcast_to(np.arange(T), (*run.case.batch, T)) < lengths[..., None]
    by_lengths = run.pull(run.x, weights, seq_lengths=lengths)
    by_mask = run.pull(run.x, weights, initial_carry=run.fresh, mask=mask)
    assert_close(by_lengths.result[0], by_mask.result[0])
    assert_close((by_lengths.variables, by_lengths.x), (by_mask.variables, by_mask.x))


def test_all_carries_are_those_after_every_step(run):
    def at_steps(w: np.ndarray, *steps: int) -> np.ndarray:
        weights = np.zeros((*run.case.batch, T, *w.shape[run.time :]), np.float32)
        for step in steps:
            weights[(slice(None),) * run.time + (step,)] = w
        return weights

    nothing = jax.tree.map(np.zeros_like, run.carry_weights)
    weights = jax.tree.map(lambda w: at_steps(w, 2, T - 1), run.carry_weights)
    found = run.pull(run.x, (nothing, weights, run.y_weights))
    last, middle = (
        jax.tree.map(lambda m, t=t: m.take(t, axis=run.time), found.result[1]) for t in (T - 1, 2)
    )
    whole = run.whole()
    part = run.pull(
        run.steps(run.x, 0, 3), (run.carry_weights, np.zeros_like(run.steps(run.y_weights, 0, 3)))
    )
    assert_close((found.result[0], found.result[2]), whole.result)
    assert_close((last, middle), (whole.result[0], part.result[0]))
    assert_close(found.variables, total(whole.variables, part.variables))
    assert_close(found.x, run.join(run.steps(whole.x, 0, 3) + part.x, run.steps(whole.x, 3, T)))


def test_reverse_with_resets_runs_the_same_episodes_backwards(run):
    packed = run.whole(reverse=True, resets=run.flags(3))
    flip = partial(np.flip, axis=run.time)
    first, second = (
        run.pull(
            flip(run.steps(run.x, a, a + 3)),
            (
                jax.tree.map(lambda w, a=a: w * (a == 0), run.carry_weights),
                flip(run.steps(run.y_weights, a, a + 3)),
            ),
        )
        for a in (0, 3)
    )
    y = run.join(flip(first.result[1]), flip(second.result[1]))
    assert_close(packed.result, (first.result[0], y))
    assert_close(packed.x, run.join(flip(first.x), flip(second.x)))
    assert_close(packed.variables, total(first.variables, second.variables))


def test_flax_rnn_gives_the_same(run):
    plain, x = nn.RNN(run.case.cell, return_carry=True), jnp.asarray(run.x)
    key = jax.random.key(1)
    same, ours = jax.jit(lambda x: (plain.init(key, x), run.rnn.init(key, x)))(x)
    jax.tree.map(np.testing.assert_array_equal, same, ours)

    @jax.jit
    def theirs(x: Any, weights: Any) -> Any:
        result, pull = jax.vjp(plain.apply, run.variables, x)
        return result, *pull(weights)

    found = run.whole()
    expected = theirs(run.x, (run.carry_weights, run.y_weights))
    assert_close((found.result, found.variables, found.x), expected)


@cache
def of_flagged_run(implementation: str, remat: str) -> Pulled:
    run = Run(Case(RMC, implementation, (2,)))
    run.rnn = run.rnn.clone(remat=remat)
    return run.whole(resets=run.flags(2, 5), mask=~run.flags(3))


@pytest.mark.parametrize(
    ("implementation", "remat"),
    mostly_slow(
        itertools.product(("scan", "hoisted"), ("full", "save_products", "chunked")),
        keep=[("hoisted", "save_products"), ("hoisted", "chunked")],
    ),
)
def test_remat_changes_no_number(implementation, remat):
    assert_close(of_flagged_run(implementation, remat), of_flagged_run(implementation, "none"))


BAD = {
    "resets shape": (
        {"resets": jnp.zeros((2, 5), bool)},
        ValueError,
        r"resets .*\(2, 6\).*\(2, 5\)",
    ),
    "resets dtype": (
        {"resets": np.full((2, 6), "no")},
        TypeError,
        "resets must be bool or numbers.*<U2",
    ),
    "mask shape": ({"mask": jnp.zeros((6, 2), bool)}, ValueError, r"mask .*\(2, 6\).*\(6, 2\)"),
    "mask dtype": (
        {"mask": jnp.ones((2, 6), jnp.int32)},
        TypeError,
        r"mask must be a bool.*int32; convert numbers by jnp.asarray\(mask\) != 0",
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
    with pytest.raises(ValueError, match=r"1 feature axes .*got shape \(3,\)"):
        RNN(RMC).init(jax.random.key(0), jnp.zeros(3))
