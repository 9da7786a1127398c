"""An ONNX file of one step, looped over by the caller: whole sequences convert for no cell."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.random_variables import normal, random_variables

jax2onnx: Any = pytest.importorskip("jax2onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")


# The converter's own warnings, of packages that it imports.
@pytest.mark.filterwarnings("ignore")
def test_one_step_runs_elsewhere():
    cell = RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2)
    x = normal(np.random.default_rng(0), (4, 6, 5))
    variables = random_variables(RNN(cell), x)
    own = {"params": variables["params"]["cell"]}
    carry = cell.initialize_carry(jax.random.key(0), (4, 5))

    def step(carry: jax.Array, x: jax.Array) -> Any:
        return cell.apply(own, carry, x)

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (carry, x[:, 0])]
    session = onnxruntime.InferenceSession(jax2onnx.to_onnx(step, shapes).SerializeToString())
    names = [entry.name for entry in session.get_inputs()]
    state, outputs = np.asarray(carry), []
    for t in range(x.shape[1]):
        state, y = session.run(None, dict(zip(names, (state, np.asarray(x[:, t])), strict=True)))
        outputs.append(y)
    expected = RNN(cell).apply(variables, x)
    np.testing.assert_allclose(np.stack(outputs, axis=1), jnp.asarray(expected), atol=1e-5)
