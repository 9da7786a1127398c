"""Weights of the authors' DNC: where each goes, files, and errors that name the array."""

import chex
import jax
import numpy as np
import pytest

from rrnn_jax.interop import dnc_from_reference, from_sonnet, load_dnc_reference
from tests.baselines import golden

# Of two write heads and three read heads, words of size 3.
WIDTHS = {
    **{"write_vectors": 6, "erase_vectors": 6, "free_gate": 3, "allocation_gate": 2},
    **{"write_gate": 2, "read_mode": 15, "write_keys": 6, "write_strengths": 2},
    **{"read_keys": 9, "read_strengths": 3},
}


def reference_arrays() -> dict[str, np.ndarray]:
    """Weights of the golden case with two write heads, without ``params/``."""
    arrays = golden.load("dnc_02_two_writes_clip0p5").arrays
    prefix = "params/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def test_each_array_goes_where_its_name_says():
    arrays = reference_arrays()
    params = dnc_from_reference(arrays)
    assert set(params) == {"controller_0", "interface", "output"}
    for name, module in (("controller_0", "controller"), ("output", "output")):
        np.testing.assert_array_equal(params[name]["kernel"], arrays[f"{module}/w"])
        np.testing.assert_array_equal(params[name]["bias"], arrays[f"{module}/b"])
    start = 0
    for part, width in WIDTHS.items():
        columns = slice(start, start + width)
        for leaf, letter in (("kernel", "w"), ("bias", "b")):
            value = params["interface"][leaf][..., columns]
            np.testing.assert_array_equal(value, arrays[f"interface/{part}/{letter}"])
        start += width
    assert params["interface"]["bias"].shape == (start,)


@pytest.mark.parametrize("name", golden.NAMES)
def test_golden_files_load(name):
    params = load_dnc_reference(golden.FOLDER / f"{name}.npz")
    chex.assert_trees_all_equal(jax.tree.map(jax.numpy.asarray, params), golden.load(name).params())


def test_load_ignores_other_groups_only_beside_params(tmp_path):
    arrays, other = reference_arrays(), {"inputs": np.ones(3), "config/seed": 1}
    np.savez(tmp_path / "bare.npz", **arrays)
    chex.assert_trees_all_equal(
        load_dnc_reference(str(tmp_path / "bare.npz")), dnc_from_reference(arrays)
    )
    np.savez(tmp_path / "mixed.npz", **arrays, **other)
    with pytest.raises(ValueError, match="'inputs' is unknown"):
        load_dnc_reference(tmp_path / "mixed.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(
        ValueError, match=r"an \.npz of named arrays, got .*: it holds a single array"
    ):
        load_dnc_reference(tmp_path / "one.npy")


def test_results_do_not_share_memory_with_the_arguments():
    arrays = reference_arrays()
    params = dnc_from_reference(arrays)
    before = params["output"]["kernel"].copy()
    arrays["output/w"][:] = 0
    np.testing.assert_array_equal(params["output"]["kernel"], before)


@pytest.mark.parametrize("load", [dnc_from_reference, from_sonnet])
@pytest.mark.parametrize(("arrays", "kind"), [([np.ones(3)], "list"), (np.ones(3), "ndarray")])
def test_arguments_that_are_no_mappings(load, arrays, kind):
    with pytest.raises(TypeError, match=f"arrays must be a mapping from .* to arrays, got {kind}"):
        load(arrays)


def test_missing_unknown_and_repeated_arrays():
    arrays = reference_arrays()
    for name in arrays:
        rest = {other: value for other, value in arrays.items() if other != name}
        with pytest.raises(ValueError, match=f"'{name}' is missing; got "):
            dnc_from_reference(rest)
    with pytest.raises(ValueError, match=r"'head/w' is unknown; expected .*controller/w"):
        dnc_from_reference({**arrays, "head/w": np.ones((2, 2))})
    with pytest.raises(ValueError, match="'output/b' is given twice"):
        dnc_from_reference({**arrays, "params/output/b": arrays["output/b"]})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("output/b", (4, 1), r"1 axes, got shape \(4, 1\)"),
        ("output/w", (14, 4), r"shape \(15, 4\) \(W=3, R=3, P=2, C=6\), got \(14, 4\)"),
        ("controller/b", (20,), r"shape \(5, 6\) \(.* C=5\), got \(6, 6\)"),
        ("controller/w", (15, 24), r"I \+ R\*W \+ C > 15 rows .*, got 15"),
        ("controller/w", (19, 23), r"shape \(19, 24\) .*, got \(19, 23\)"),
        ("interface/read_mode/w", (6, 9), r"shape \(6, 15\) .*, got \(6, 9\)"),
        ("interface/write_keys/b", (3,), r"shape \(6,\) .*, got \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit(name, shape, message):
    arrays = {**reference_arrays(), name: np.ones(shape, np.float32)}
    with pytest.raises(ValueError, match=message):
        dnc_from_reference(arrays)


def test_kinds_of_values():
    arrays = {**reference_arrays(), "output/b": np.ones(4, np.int32)}
    with pytest.raises(TypeError, match="'output/b' must be floating-point, got int32"):
        dnc_from_reference(arrays)
