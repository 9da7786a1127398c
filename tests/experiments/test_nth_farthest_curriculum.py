"""The stages of Nth Farthest: their samples, when they end, and that they are part of the state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.problem import Mean
from experiments.common.steps import Programs
from experiments.nth_farthest import PRESETS
from experiments.nth_farthest.config import STAGES, Config, RMCConfig, TaskConfig
from experiments.nth_farthest.curriculum import CurriculumConfig, make_curriculum, sample
from experiments.nth_farthest.model import make_model
from experiments.nth_farthest.train import make_problem, stage_bands
from rrnn_jax.tasks import nth_farthest

TASK = nth_farthest.Config(4, 3)
decode = jax.jit(nth_farthest.decode, static_argnums=1)
answer = jax.jit(nth_farthest.answer)
TWO = CurriculumConfig(
    correlation=(1.0, 0.0),
    least_correlation=(1.0, 0.0),
    ranks=(1, 0),
    reference_first=(1.0, 0.0),
    earlier_weight=(0.5, 0.0),
    until_accuracy=(0.6,),
    accuracy_updates=3,
)
TINY = Config(
    model="rmc",
    readout_features=4,
    task=TaskConfig(4, 3),
    rmc=RMCConfig(mem_slots=2, num_heads=1, head_size=4),
    curriculum=dataclasses.replace(TWO, until_accuracy=(), max_updates=(3,)),
    train=dataclasses.replace(
        PRESETS["small"].train,
        **{"steps": 8, "batch_size": 8, "micro_batch_size": 4, "num_seeds": 2, "warmup_steps": 0},
    ),
)


def test_a_batch_is_what_its_stage_says():
    draw = jax.jit(lambda stage: sample(jax.random.key(0), TWO, TASK, stage, 256))
    first, second = jax.device_get([draw(np.int32(stage)) for stage in (0, 1)])
    asked = jax.device_get([decode(batch.inputs, TASK) for batch in (first, second)])
    question = asked[0]
    assert (question.rank == 0).all()
    assert (question.labels[:, 0] == question.reference).all()
    # Two of three coordinates are the reference's up to a sign.
    copies = np.abs(question.vectors) == np.abs(question.vectors[:, :1])
    assert (copies[:, 1:].sum(-1) == 2).all()
    # The reference is first and only the farthest is asked for: every step has an answer.
    np.testing.assert_array_equal(first.weights, np.tile([0.5, 0.5, 0.5, 1.0], (256, 1)))
    question = asked[1]
    assert set(question.rank) == {0, 1, 2, 3}
    assert (question.labels[:, 0] == question.reference).mean() < 0.4
    np.testing.assert_array_equal(second.weights, np.tile([0.0, 0.0, 0.0, 1.0], (256, 1)))
    for batch, question in zip((first, second), asked, strict=True):
        np.testing.assert_array_equal(batch.targets[:, -1], answer(question))


def levels(config: CurriculumConfig, accuracies: list[float]) -> list[tuple[int, int]]:
    """Stage and updates in it after each update."""
    curriculum = make_curriculum(config)
    advance = jax.jit(curriculum.advance)
    level, found = curriculum.level, []
    for accuracy in accuracies:
        level = advance(level, {"accuracy": Mean(jnp.float32(8 * accuracy), jnp.float32(8))})
        found.append((int(level.stage), int(level.updates)))
    return found


def test_a_stage_is_left_by_accuracy():
    # Not before three updates; the mean of the three is .6 at last.
    expected = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert levels(TWO, [0.9, 0.1, 0.9, 1.0, 1.0, 1.0, 1.0]) == expected
    # (.3, .3, .3) is not enough; .3 + (1 - .3) / 3 = .533, then .533 + (1 - .533) / 3 = .689.
    assert [stage for stage, _ in levels(TWO, [0.3, 0.3, 0.3, 1.0, 1.0])] == [0, 0, 0, 0, 1]


def test_a_stage_is_left_by_updates():
    config = dataclasses.replace(TWO, max_updates=(4,))
    assert [stage for stage, _ in levels(config, [0.0] * 6)] == [0, 0, 0, 1, 1, 1]
    config = dataclasses.replace(config, until_accuracy=())
    assert [stage for stage, _ in levels(config, [1.0] * 6)] == [0, 0, 0, 1, 1, 1]
    assert levels(CurriculumConfig(), [1.0] * 2) == [(0, 1), (0, 2)]


@pytest.fixture(scope="module")
def programs():
    return Programs(make_problem(TINY), TINY.train)


@pytest.fixture(scope="module")
def first(programs):
    """The first seed's state before training."""
    return jax.tree.map(lambda x: x[0], jax.device_get(programs.init().inner))


def test_the_loss_by_hand(programs, first):
    state, problem, model = first, programs.problem, make_model(TINY)

    @jax.jit  # Of the update's numbers, which compile without its gradient.
    def update(state, key):
        metrics = problem.update(state, key, None)[1]
        return {name: metrics[name] for name in ("loss", "last_loss", "accuracy")}

    metrics = update(state, jax.random.key(2))
    draw = jax.jit(lambda key: sample(key, TWO, TASK, jnp.int32(0), 8))
    batch = jax.device_get(draw(jax.random.key(2)))
    apply = jax.jit(model.apply, static_argnames="every_step")
    logits = np.asarray(apply(state.params, batch.inputs, every_step=True))
    last = apply(state.params, batch.inputs)
    np.testing.assert_allclose(logits[:, -1], last, rtol=1e-5, atol=1e-6)
    cross_entropy = jax.jit(optax.softmax_cross_entropy_with_integer_labels)
    losses = np.asarray(cross_entropy(logits, batch.targets))
    expected = np.mean(losses @ np.array([0.5, 0.5, 0.5, 1.0]))
    np.testing.assert_allclose(metrics["loss"].value(), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["last_loss"].value(), losses[:, -1].mean(), rtol=1e-5)
    right = (logits[:, -1].argmax(-1) == batch.targets[:, -1]).mean()
    np.testing.assert_allclose(metrics["accuracy"].value(), right, rtol=1e-5)


@pytest.mark.slow
def test_the_level_is_state_of_each_seed(programs):
    state, metrics = programs.train_chunk(programs.init(), 2)
    assert state.inner.level.stage.tolist() == [0, 0]
    assert state.inner.level.updates.tolist() == [2, 2]
    # The device's copy goes on as a restored one does.
    restored = programs.place(jax.device_get(state))
    state, metrics = programs.train_chunk(state, 2)
    again, _ = programs.train_chunk(restored, 2)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert state.inner.level.stage.tolist() == [1, 1]
    np.testing.assert_allclose(metrics["stage"].value(), [0.5, 0.5])  # 0, 1
    _, metrics = programs.train_chunk(state, 2)
    np.testing.assert_allclose(metrics["stage"].value(), [1.0, 1.0])


def test_evaluation_is_the_papers_task_in_every_stage(programs, first):
    state, problem = first, programs.problem
    last = state._replace(level=state.level._replace(stage=jnp.int32(1)))
    judge = jax.jit(problem.evaluations["valid"].step)
    found, other = (judge(s, (), jax.random.key(4), None)[1] for s in (state, last))
    jax.tree.map(np.testing.assert_array_equal, found, other)
    plain = make_problem(dataclasses.replace(TINY, staged=False))
    same = jax.jit(plain.evaluations["valid"].step)(state, (), jax.random.key(4), None)[1]
    np.testing.assert_array_equal(found["accuracy"].total, same["accuracy"].total)


def test_presets_of_the_papers_task_share_the_curriculum():
    for name in ("quick", "laptop", "paper"):
        assert PRESETS[name].curriculum == STAGES
        assert PRESETS[name].task == TaskConfig(8, 16)
        assert PRESETS[name].staged
    assert not PRESETS["small"].staged
    # Training ends on what is nearly the paper's task.
    assert STAGES.by_stage("ranks")[-1] == STAGES.by_stage("reference_first")[-1] == 0


def test_bands_of_the_first_seed():
    rows = [
        {"split": "train", "seed": seed, "step": step, "stage": stage}
        for seed, stages in ((0, (0.0, 0.9, 1.0, 2.0)), (1, (0.0, 0.0, 0.0, 0.0)))
        for step, stage in zip((10, 20, 30, 40), stages, strict=True)
    ]
    expected = [("1", 0, 10), ("2", 10, 30), ("3", 30, 40)]
    assert stage_bands(rows) == expected
    assert stage_bands([{"split": "train", "seed": 0, "step": 10, "loss": 1.0}]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": (1, 2, 3)}, r"ranks must have 1 value or one for each of 3 stages|correlation"),
        ({"until_accuracy": (0.5, 0.5)}, "until_accuracy must have a value for each of 2 stages"),
        ({"until_accuracy": ()}, "max_updates must be positive without until_accuracy"),
        ({"correlation": (1.5, 0.0)}, r"correlation must lie in \[0, 1\]"),
        ({"correlation": (0.5, 0.0)}, "least_correlation must be at most correlation="),
        ({"earlier_weight": (-1.0,)}, "earlier_weight must not be negative"),
        ({"accuracy_updates": 0}, "accuracy_updates must be at least 1, got 0"),
    ],
)
def test_bad_stages(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TWO, **options)
