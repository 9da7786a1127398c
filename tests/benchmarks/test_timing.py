"""Order and clock of the rounds, on a clock that only the programs move."""

import gc

import pytest

from benchmarks.timing import interleave, summarise


class Machine:
    """A clock, and programs that move it on; each call is noted."""

    def __init__(self):
        self.now, self.calls, self.slowness = 0.0, [], 1.0

    def clock(self):
        return self.now

    def program(self, name, seconds):
        def run():
            self.calls.append(name)
            self.now += self.slowness * seconds

        return run


def test_samples_are_seconds_per_call():
    machine = Machine()
    programs = {"a": machine.program("a", 0.01), "b": machine.program("b", 1.0)}
    result = interleave(programs, rounds=4, warmup=2, min_seconds=0.2, clock=machine.clock)
    assert result.samples["a"] == pytest.approx([0.01] * 4)
    assert result.samples["b"] == pytest.approx([1.0] * 4)
    # Two calls to warm up, then as many in each round as fill 0.2 s, one at least.
    assert machine.calls.count("a") == 2 + 4 * 20
    assert machine.calls.count("b") == 2 + 4
    assert not result.interrupted


@pytest.mark.parametrize("warmup", [1, 2, 3])
def test_the_call_that_compiles_does_not_count(warmup):
    machine = Machine()
    run = machine.program("a", 0.08)

    def compiles_first():
        machine.now += 0.0 if machine.calls else 100.0
        run()

    result = interleave(
        {"a": compiles_first}, rounds=2, warmup=warmup, min_seconds=0.2, clock=machine.clock
    )
    # Two calls of 0.08 s would not fill 0.2 s.
    assert len(machine.calls) == max(warmup, 2) + 2 * 3
    assert result.samples["a"] == pytest.approx([0.08] * 2)


def test_each_round_runs_all_in_an_order_of_its_own():
    machine = Machine()
    names = "abcd"
    programs = {name: machine.program(name, 1.0) for name in names}
    interleave(programs, rounds=8, warmup=1, min_seconds=0.0, clock=machine.clock)
    assert machine.calls[:4] == list(names)
    rounds = ["".join(machine.calls[i : i + 4]) for i in range(4, 4 + 8 * 4, 4)]
    assert all(sorted(order) == list(names) for order in rounds)
    assert len(set(rounds)) > 1

    again = Machine()
    programs = {name: again.program(name, 1.0) for name in names}
    interleave(programs, rounds=8, warmup=1, min_seconds=0.0, clock=again.clock)
    assert again.calls == machine.calls
    other = Machine()
    programs = {name: other.program(name, 1.0) for name in names}
    interleave(programs, rounds=8, warmup=1, min_seconds=0.0, clock=other.clock, seed=1)
    assert other.calls != machine.calls


def test_a_slow_round_slows_all_alike():
    machine = Machine()
    programs = {"a": machine.program("a", 1.0), "b": machine.program("b", 2.0)}

    def progress(rounds):
        for number in rounds:
            machine.slowness = 1.0 + number
            yield number

    result = interleave(
        programs, rounds=3, warmup=1, min_seconds=0.0, progress=progress, clock=machine.clock
    )
    assert result.samples["a"] == pytest.approx([1.0, 2.0, 3.0])
    ratios = [b / a for a, b in zip(result.samples["a"], result.samples["b"], strict=True)]
    assert ratios == pytest.approx([2.0] * 3)


def test_interruption_keeps_what_is_done():
    machine = Machine()

    def interrupted():
        if len(machine.calls) > 7:
            raise KeyboardInterrupt
        machine.program("a", 1.0)()

    result = interleave(
        {"a": interrupted, "b": machine.program("b", 1.0)},
        rounds=10,
        warmup=1,
        min_seconds=0.0,
        clock=machine.clock,
    )
    assert result.interrupted
    assert 2 <= len(result.samples["b"]) < 10
    assert gc.isenabled()
    assert set(result.summaries()) == {"a", "b"}


def test_nothing_to_summarise():
    with pytest.raises(ValueError, match="samples must hold at least one number"):
        summarise([])
    assert summarise([2.0]).q1 == summarise([2.0]).q3 == 2.0
