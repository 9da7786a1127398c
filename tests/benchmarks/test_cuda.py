"""The measurements of the CUDA kernels, without a GPU."""

import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from benchmarks import cuda, stages
from benchmarks.problem import make_problem
from benchmarks.scan_throughput import parser as throughput_parser
from rrnn_jax.scan.cuda import launch, nvrtc
from rrnn_jax.scan.cuda.layout import Layout


def test_every_stage_has_its_mark():
    for kernel, marks in stages.MARKS.items():
        source = stages.marked(kernel)
        assert all(source.count(f" STAGE({i})") == 1 for i in range(len(marks)))
        # In the order of the step.
        places = [source.index(f" STAGE({i})") for i in range(len(marks))]
        if kernel == "backward":
            assert places == sorted(places)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(stages.MARKS, kernel, [("no such code;", "nothing")])
            with pytest.raises(ValueError, match=rf"{kernel}\.cu must have this once, got 0"):
                stages.marked(kernel)


@pytest.mark.skipif(nvrtc.nvrtc_missing(), reason="needs NVRTC")
@pytest.mark.parametrize("cluster", [1, 4])
@pytest.mark.parametrize("kernel", stages.MARKS)
def test_marked_kernels_compile(kernel, cluster):
    layout = Layout(64, 4, 4, 2, 1, "memory", flags=False, tiles=1, warps=4, cluster=cluster)
    ptx = cuda._marked_ptx(kernel, layout, True)
    assert ptx.count("%clock") == len(stages.MARKS[kernel]) + 1


@pytest.mark.parametrize("part", ["probe", "check", "stages", "kernels", "l2"])
def test_parts_say_why_there_is_nothing_to_measure(part, capsys):
    assert cuda.main(["--here", part, "--toy"]) == 0
    for line in capsys.readouterr().out.splitlines():
        row = json.loads(line)
        assert (row["part"], row["environment"]["device"]) == (part, "cpu")
        assert "needs an NVIDIA GPU, got cpu" in (row.get("skipped"), row.get("why_not"))


@pytest.mark.parametrize("wrong", [None, math.nan, 0.5])
def test_a_wrong_gradient_fails_the_check(wrong, monkeypatch, capsys):
    """NaN after a finite gradient, too."""

    def gradients(model, problem):
        rounding = 0.0 if problem.setting.dtype == "float32" else 0.01
        return lambda *_: {"a": jnp.ones(2), "b": jnp.full(2, 1 + rounding)}

    def step(params, inputs):
        return {"a": jnp.ones(2), "b": jnp.full(2, (wrong or 1.0))}

    monkeypatch.setattr(cuda, "_why_not", lambda problem: None)
    monkeypatch.setattr(cuda, "_gradients", gradients)
    monkeypatch.setattr(cuda, "_steps", lambda problem: {"usual": step})
    assert cuda.main(["--here", "check", "--toy"]) == (0 if wrong is None else 1)
    row = json.loads(capsys.readouterr().out)
    assert (row["ok"], row["same_bits"]) == (wrong is None, wrong is None or wrong == 0.5)
    assert row["kernels"] == {None: 0.0, 0.5: 0.5}.get(wrong)


@pytest.mark.parametrize("part", cuda.THROUGHPUT)
def test_other_parts_are_commands_of_another_benchmark(part, tmp_path):
    for options in ([], ["--toy"]):
        given = cuda.parser().parse_args(["--out-dir", str(tmp_path), *options])
        (_, _, module, *rest), flags = cuda._command(part, given)
        assert module == "benchmarks.scan_throughput"
        throughput_parser().parse_args(rest)
        assert ("triton" in flags) == (not options)


def test_the_kernels_of_the_stages_fit_their_arguments(monkeypatch):
    monkeypatch.setattr(launch, "kernel_ptx", lambda *_: "")
    problem = make_problem(next(iter(cuda._settings(toy=True))))
    kept, d_carry = jax.eval_shape(
        partial(cuda._both_kernels, problem), problem.params["cell"], problem.inputs
    )
    batch, cell = problem.setting.batch, problem.cell
    assert d_carry.shape == (batch, cell.mem_slots, cell.mem_size)
    assert kept.shape[0] == problem.setting.steps
