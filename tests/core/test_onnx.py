"""ONNX files: of one step, looped over by the caller, and of whole sequences of a fixed length."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrnn_jax import RNN, RelationalMemoryCell
from tests.core.random_variables import normal, random_variables

WANTED = "needs the extra `onnx`: pip install -e '.[onnx]'"
jax2onnx: Any = pytest.importorskip("jax2onnx", reason=WANTED)
onnxruntime: Any = pytest.importorskip("onnxruntime", reason=WANTED)


# The converter's own warnings, of packages that it imports.
pytestmark = pytest.mark.filterwarnings("ignore")

cell = RelationalMemoryCell(mem_slots=4, head_size=8, num_heads=2)
x = normal(np.random.default_rng(0), (4, 6, 5))


def session_of(function: Any, *shapes: tuple[int, ...]) -> Any:
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return onnxruntime.InferenceSession(jax2onnx.to_onnx(function, inputs).SerializeToString())


def test_a_whole_sequence_runs_elsewhere():
    rnn = RNN(cell)
    variables = random_variables(rnn, x)
    session = session_of(lambda x: rnn.apply(variables, x), x.shape)
    (y,) = session.run(None, {session.get_inputs()[0].name: np.asarray(x)})
    np.testing.assert_allclose(y, rnn.apply(variables, x), atol=1e-5)


def test_one_step_runs_elsewhere():
    variables = random_variables(RNN(cell), x)
    own = {"params": variables["params"]["cell"]}
    carry = cell.initialize_carry(jax.random.key(0), (4, 5))

    def step(carry: jax.Array, x: jax.Array) -> Any:
        return cell.apply(own, carry, x)

    session = session_of(step, carry.shape, x[:, 0].shape)
    names = [entry.name for entry in session.get_inputs()]
    state, outputs = np.asarray(carry), []
    for t in range(x.shape[1]):
        state, y = session.run(None, dict(zip(names, (state, np.asarray(x[:, t])), strict=True)))
        outputs.append(y)
    expected = RNN(cell).apply(variables, x)
    np.testing.assert_allclose(np.stack(outputs, axis=1), jnp.asarray(expected), atol=1e-5)
