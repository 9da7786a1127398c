"""A sequence on the CUDA kernels, as `RNN` runs one: emulated, or compiled for a GPU."""

from functools import partial
from typing import Any
from unittest import mock

from rrnn_jax import RelationalMemoryCell
from rrnn_jax.scan import cuda
from rrnn_jax.scan.cuda import support
from rrnn_jax.scan.cuda.layout import Gpu, layout_of
from rrnn_jax.scan.dispatch import Request
from rrnn_jax.scan.plain import Lifting
from rrnn_jax.scan.sequence import SequenceInputs, without_unused

_USUAL = Lifting(1, {}, "params", False, {"params": False})


def kernels_run(
    cell: RelationalMemoryCell,
    params: Any,
    x: Any,
    carry: Any,
    reset_carry: Any = None,
    resets: Any = None,
    mask: Any = None,
    time_axis: int = 1,
    tiles: int | None = None,
    cluster: int = 1,
    gpu: Gpu | None = None,
) -> tuple[Any, Any]:
    """Final carry and outputs ``[B, T, S*F]``, in the cell's dtype."""
    sequence = without_unused(SequenceInputs(x, resets, mask), time_axis, repeat=False)
    request = Request(cell, sequence, carry, reset_carry, time_axis, _USUAL)
    layout = partial(layout_of, tiles=tiles, cluster=cluster)
    with (
        mock.patch.object(cuda, "layout_of", layout),
        mock.patch.object(support, "default_gpu", return_value=gpu),
    ):
        outputs, _ = cuda.run(request, {"params": params})
    return outputs.carry, outputs.outputs
