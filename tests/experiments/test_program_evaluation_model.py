"""The encoder-decoder: handover, ways of decoding, padding, sizes, the tasks' lengths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.program_evaluation import PRESETS, Config
from experiments.program_evaluation.config import (
    MODELS,
    DifficultyConfig,
    DNCConfig,
    EntNetConfig,
    LSTMConfig,
    RMCConfig,
)
from experiments.program_evaluation.data import make_task
from experiments.program_evaluation.metrics import answer_loss
from experiments.program_evaluation.model import make_cell, make_model
from tests.core.random_variables import random_variables
from tests.grids import mostly_slow

V, T_IN, T_OUT, B = 5, 4, 3, 3

TINY = Config(
    task="copy",
    model="rmc",
    difficulty=DifficultyConfig(length=1, nesting=1, memorization_length=2),
    rmc=RMCConfig(mem_slots=2, num_heads=1, head_size=4, gate_style="memory"),
    lstm=LSTMConfig(lstm_features=3, lstm_layers=1),
    dnc=DNCConfig(4, 3, 1, 1, lstm_size=4, feedforward_size=5, dnc_outputs=6),
    entnet=EntNetConfig(num_cells=2, cell_size=3),
)


def make(**changes):
    """A tiny model with random parameters, biases included, and a batch."""
    model = make_model(dataclasses.replace(TINY, **changes), V, T_OUT)
    inputs = jax.random.randint(jax.random.key(1), (B, T_IN), 0, V)
    mask = jnp.arange(T_IN) < jnp.array([4, 1, 3])[:, None]
    return model, random_variables(model, inputs, mask), inputs, mask


def test_decoder_starts_where_the_encoder_ends():
    model, params, inputs, mask = make(implementation="scan")  # It compiles faster.
    logits = jax.jit(model.apply)(params, inputs, mask)
    assert logits.shape == (B, T_OUT, V)
    cell = make_cell(TINY)
    variables = {"params": params["params"]["cell"]}
    readout = params["params"]["readout"]
    step = jax.jit(lambda carry, x: cell.apply(variables, carry, x))

    @jax.jit
    def read(x):
        for i in range(4):
            layer = readout[f"hidden_{i}"]
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x @ readout["output"]["kernel"] + readout["output"]["bias"]

    for row in range(B):
        carry = cell.initialize_carry(jax.random.key(0), (1, V))
        for t in range(int(mask[row].sum())):  # Padding is never seen.
            carry, _ = step(carry, jax.nn.one_hot(inputs[row, t], V)[None])
        for t in range(T_OUT):
            carry, output = step(carry, jnp.zeros((1, V)))
            np.testing.assert_allclose(logits[row, t], read(output)[0], rtol=1e-5, atol=1e-5)


def test_teacher_forcing_agrees_with_feedback_where_predictions_are_right():
    model, params, inputs, mask = make(model="lstm", decoding="autoregressive")
    fed_back = jax.jit(model.apply)(params, inputs, mask)
    taught = make_model(
        dataclasses.replace(TINY, model="lstm", decoding="teacher_forced"), V, T_OUT
    )
    apply = jax.jit(taught.apply)
    right = jnp.argmax(fed_back, axis=-1)
    np.testing.assert_allclose(apply(params, inputs, mask, right), fed_back, rtol=1e-5, atol=1e-5)
    # Another first character: the same first logits, others after it; the last one is fed nowhere.
    wrong = right.at[:, 0].add(1).at[:, -1].add(1) % V
    logits = apply(params, inputs, mask, wrong)
    np.testing.assert_array_equal(logits[:, 0], apply(params, inputs, mask, right)[:, 0])
    assert np.all(np.abs(logits - fed_back).max(-1)[:, 1:] > 1e-4)
    # Without targets, as in evaluation, it is fed its own answers.
    np.testing.assert_array_equal(apply(params, inputs, mask), fed_back)


def test_padding_changes_neither_loss_nor_gradient():
    model, params, inputs, mask = make(model="lstm")
    targets = jnp.ones((B, T_OUT), jnp.int32)
    target_mask = jnp.arange(T_OUT) < jnp.array([3, 2, 1])[:, None]

    @jax.jit
    def gradient(inputs, targets):
        def loss(params):
            return answer_loss(model.apply(params, inputs, mask), targets, target_mask)[0]

        return jax.value_and_grad(loss)(params)

    loss, expected = gradient(inputs, targets)
    other = gradient(jnp.where(mask, inputs, 0), jnp.where(target_mask, targets, 3))
    assert loss == other[0] > 0
    jax.tree.map(np.testing.assert_array_equal, expected, other[1])
    changed = gradient(inputs.at[1, 0].add(1) % V, targets)[0]
    assert changed != loss


def test_metrics_are_pooled_over_characters():
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]], [[0.75, 0.25], [np.nan, np.nan]]]))
    targets, mask = jnp.array([[1, 1], [0, 1]]), jnp.array([[True, True], [True, False]])
    loss, metrics = answer_loss(logits, targets, mask)
    # Ties go to the first character: wrong, right; right and padding.
    expected = -(np.log(0.5) + 2 * np.log(0.75)) / 3
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-6)
    assert metrics["accuracy"] == (2, 3)
    assert metrics["sequence_accuracy"] == (1, 2)
    both = metrics["accuracy"] + answer_loss(logits[:1], targets[:1], mask[:1])[1]["accuracy"]
    np.testing.assert_allclose(both.value(), 3 / 5)


DNC = {"model": "dnc"}
ENTNET = {"model": "entnet", "entnet": EntNetConfig("henaff", num_cells=2, cell_size=3)}


@pytest.mark.parametrize(
    "changes",
    mostly_slow(
        [DNC, DNC | {"task": "control"}, {"model": "entnet"}, ENTNET],
        keep=[DNC | {"task": "control"}, ENTNET],
    ),
)
def test_every_model_answers_by_every_character(changes):
    model, params, inputs, mask = make(**changes)
    if changes["model"] == "dnc":
        kernel = params["params"]["cell"]["controller_0"]["kernel"]
        assert kernel.shape == ((V + 3 + 4, 16) if "task" in changes else (V + 3, 5))
    apply = jax.jit(model.apply)
    logits = apply(params, inputs, mask)
    for t in range(T_IN):
        changed = apply(params, inputs.at[:, t].add(1) % V, mask)
        np.testing.assert_array_equal(np.any(changed != logits, axis=(1, 2)), mask[:, t])


def parameters(config: Config) -> int:
    inputs, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.bool_)
    shapes = jax.eval_shape(make_model(config, 45, 1).init, jax.random.key(0), inputs, mask)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("task", ["addition", "copy"])
def test_quick_preset_gives_all_models_the_same_number_of_parameters(task):
    config = dataclasses.replace(PRESETS["quick"], task=task)
    sizes = [parameters(dataclasses.replace(config, model=model)) for model in MODELS]
    assert max(sizes) <= 1.1 * min(sizes)


def test_paper_preset_has_the_papers_sizes():
    config = PRESETS["paper"]
    assert config.decoding == "non_autoregressive"
    assert (config.train.steps, config.train.batch_size) == (200_000, 128)
    assert (config.train.learning_rate, config.train.eval_samples) == (1e-3, 12_800)
    assert config.difficulty == DifficultyConfig(5, 2, 5, "mix")
    cells = {m: make_cell(dataclasses.replace(config, model=m, task="copy")) for m in MODELS}
    assert cells["rmc"].output_size == 2048
    assert (cells["rmc"].mem_slots, cells["rmc"].num_heads) == (4, 4)
    assert cells["rmc"].gate_style == "memory"
    assert cells["lstm"].widths == (1024, 1024)
    assert cells["lstm"].skip_connections
    assert cells["entnet"].features * cells["entnet"].num_cells == 1024
    dnc = cells["dnc"]
    assert (dnc.memory_size, dnc.word_size, dnc.num_reads, dnc.num_writes) == (80, 64, 4, 1)
    assert (dnc.controller, dnc.controller_layers, dnc.controller_size) == ("feedforward", 2, 256)
    assert make_cell(dataclasses.replace(config, model="dnc", task="program")).controller == "lstm"


@pytest.mark.parametrize(
    ("task", "length", "nesting", "inputs", "outputs"),
    [
        ("addition", 2, 2, 10, 3),  # (12+34)+56
        ("control", 1, 2, 27, 2),  # x=(x=1for[2]x+=3)for[4]x+=5
        ("program", 3, 1, 19, 4),  # 123if456<789else123
        ("double", 3, 1, 3, 6),
    ],
)
def test_padding_that_no_sample_reaches_is_cut_off(task, length, nesting, inputs, outputs):
    difficulty = DifficultyConfig(length, nesting, memorization_length=length)
    data = make_task(dataclasses.replace(TINY, task=task, difficulty=difficulty))
    assert (data.input_steps, data.output_steps) == (inputs, outputs)
    batch = jax.jit(data.sample_hardest, static_argnums=1)(jax.random.key(0), 2000)
    assert batch.inputs.shape == batch.input_mask.shape == (2000, inputs)
    assert batch.targets.shape == batch.target_mask.shape == (2000, outputs)
    assert batch.input_lengths.max() == inputs
    assert batch.target_lengths.max() == outputs
