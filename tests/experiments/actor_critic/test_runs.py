"""Runs of the two commands at tiny sizes: files, resume to the bit, refusals, both losses."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import box_world, mini_pacman
from experiments.box_world.__main__ import main
from experiments.box_world.train import make_game
from experiments.common.actor_critic import rollout, runs
from experiments.common.actor_critic.config import AgentConfig, make_agent
from experiments.common.actor_critic.episode import record
from experiments.common.cells import LSTMConfig, RMCConfig
from experiments.common.cli import EXIT_REFUSED
from experiments.common.optimizers import make_optimizer
from experiments.common.problem import Score
from experiments.common.run_directory import is_finished, open_run
from tests.core.random_variables import random_variables
from tests.experiments import toys
from tests.experiments.toys import Count

TINY = dataclasses.replace(
    box_world.PRESETS["smoke"],
    model="lstm",
    task=dataclasses.replace(
        box_world.PRESETS["smoke"].task, grid_size=5, max_steps=4, test_episodes=8
    ),
    lstm=LSTMConfig(lstm_features=4),
    agent=AgentConfig(width=4),
    learner=dataclasses.replace(
        box_world.PRESETS["smoke"].learner,
        unroll=3, minibatch_envs=2, epochs=1, level_pool=8, fresh_levels=4,
    ),
    train=dataclasses.replace(
        box_world.PRESETS["smoke"].train,
        steps=4, batch_size=4, chunk_steps=2, eval_every=2, eval_samples=4, checkpoint_every=2,
    ),
)  # fmt: skip


def test_policies_have_no_metrics_of_levels_that_are_not_played():
    def groups(states):
        return {"three": states == 3, "four": states == 4}  # All count to 3.

    found = runs.policy_scores(runs.Game(Count(), Score("return"), "Count", 2, groups))
    assert found["random"] == {
        **{"return": 3.0, "length": 3.0, "return_squared": 9.0, "return_three": 3.0}
    }


def test_policies_have_a_directory_of_their_own(tmp_path, monkeypatch):
    def measure(game):
        assert Path("runs/box_world/smoke/policies").is_dir()  # Made before the work.
        return {"random": {"return": 1.0, "return_squared": 2.0}}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "policy_scores", measure)
    assert main(["--preset", "smoke", "--policies-only"]) == 0
    found = sorted(path for path in Path("runs").rglob("*") if path.is_file())
    assert found == [Path("runs/box_world/smoke/policies/policies.json")]


def test_errors_of_a_table_are_those_of_the_episodes_played():
    """Agents play whole batches: eight episodes for six; policies play six."""
    game = runs.Game(Count(), Score("solved"), "Count", test_episodes=6)
    results = {"lstm": {"test": {"solved": [0.5]}, "random": {"solved": 0.5}}}
    lines = runs.table(results, game, batch_size=4).splitlines()
    for title, count in (("LSTM", 8), ("random policy", 6)):
        assert f"| {title} | 0.5 ± {(0.25 / (count - 1)) ** 0.5:.2g} |" in lines


def test_another_number_of_test_episodes_is_played_in_the_same_run(tmp_path):
    more = dataclasses.replace(TINY, task=dataclasses.replace(TINY.task, test_episodes=12))
    open_run(tmp_path / "game", TINY)
    (tmp_path / "game" / "summary.json").write_text("{}")
    assert is_finished(tmp_path / "game", TINY)
    assert not is_finished(tmp_path / "game", more)
    open_run(tmp_path / "game", more)
    assert not (tmp_path / "game" / "summary.json").exists()
    train = dataclasses.replace(toys.CONFIG, steps=5, checkpoint_every=5, eval_every=5)

    def tested(steps):
        """A test of so many steps, recorded in a run or before."""
        one = toys.regression(train)
        test = dataclasses.replace(one.evaluations["test"], num_steps=steps, samples=8 * steps)
        one = dataclasses.replace(one, evaluations={**one.evaluations, "test": test})
        return toys.run(tmp_path / "run", one, train).test

    before = tested(2)
    assert tested(2) == before != tested(3)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, monkeypatch):
    """Environments, carries, levels and optimiser come back as they were."""
    whole = box_world.train(TINY, tmp_path / "whole", progress=False)["lstm"]
    # Stopped after two updates: time is over at once.
    limited = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, minutes=1e-9))
    with pytest.raises(Exception, match="stopped at step 2"):
        box_world.train(limited, tmp_path / "cut", progress=False)
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    config["train"]["minutes"] = None
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config))
    box_world.train(TINY, tmp_path / "cut", progress=False)
    files = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert files[0] == files[1]
    assert whole["frames"] == 4 * 4 * 3
    assert 0 <= whole["random"]["solved"] <= 1
    assert {"return", "greedy_solved", "length"} <= set(whole["test"])
    for plot in ("score.png", "return.png", "entropy.png", "episode.gif"):
        assert (tmp_path / "whole" / "plots" / plot).stat().st_size > 500
    again = box_world.evaluate(TINY, tmp_path / "whole")["lstm"]
    assert again["evaluation"] == whole["test"]
    alone = runs.measure_policies(TINY, make_game(TINY), tmp_path / "policies")["policies"]
    assert alone == {name: whole[name] for name in ("random", "heuristic")}
    kept = json.loads((tmp_path / "policies" / "policies.json").read_text())
    assert kept["random"] == whole["random"]
    assert kept["config"]["task"]["grid_size"] == 5
    table = runs.table({"lstm": whole}, make_game(TINY), TINY.train.batch_size)
    assert "| LSTM |" in table
    assert "| random policy |" in table
    assert f"| heuristic | {whole['heuristic']['return']:.3g} ±" in table
    assert f"{whole['test']['solved'][0]:.3g} ±" in table


@pytest.mark.slow
def test_mini_pacman_with_vtrace_and_two_seeds(tmp_path):
    config = dataclasses.replace(
        mini_pacman.PRESETS["quick"],
        model="none",
        task=dataclasses.replace(
            mini_pacman.PRESETS["quick"].task, mode="rush", max_frames=5, test_episodes=4
        ),
        agent=TINY.agent,
        learner=dataclasses.replace(TINY.learner, loss="vtrace", level_pool=0),
        train=dataclasses.replace(TINY.train, steps=2, num_seeds=2),
    )
    result = mini_pacman.train(config, tmp_path, progress=False)["none"]
    assert len(result["test"]["return"]) == 2
    assert result["test"]["return"][0] != result["test"]["return"][1]
    assert max(result["test"]["length"]) <= 5
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["split"] == "train"]
    assert all(np.isfinite([row["loss"], row["entropy"], row["kl"]]).all() for row in trained)


@pytest.mark.slow
def test_an_episode_of_the_memory_core_is_recorded_with_its_attention():
    config = dataclasses.replace(
        TINY, model="rmc", rmc=RMCConfig(mem_slots=2, num_heads=2, head_size=4)
    )
    env = make_game(config).env
    agent = make_agent(config, env.num_actions)

    def begin(key):
        play = rollout.begin(env, agent, key, env.default_params, 1)
        inputs = (play.obs, play.reset, play.action, play.reward)
        return play.carry, *jax.tree.map(lambda x: x[None], inputs)

    variables = random_variables(agent, *jax.eval_shape(begin, jax.random.key(0)))
    frames, attention, captions = record(env, agent, variables, jax.random.key(2), at_most=3)
    assert len(frames) == len(captions) == 3
    assert attention is not None
    assert attention.shape == (3, 2, 3)  # Of two slots to two slots and the input.
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--micro-batch-size", "64"], "--micro-batch-size must be None with an actor-critic"),
        (["--average-decay", "0.5"], "--average-decay must be None with an actor-critic, got 0.5"),
        (["--batch-size", "100"], "--minibatch-envs must divide --batch-size=100, got 64"),
        (["--grid-size", "6"], "--grid-size=6 has room for 2 items at most"),
        (["--level-pool", "100"], "--level-pool must be 0 or a multiple of --fresh-levels=128"),
        (["--level-pool", "0"], "--easy-share must be 0 with --level-pool=0, got 0.25"),
        (
            ["--preset", "smoke", "--easy-share", "0.5"],
            "--easy-share must be 0: the game has no easier",
        ),
        (["--test-episodes", "0"], "--test-episodes must be at least 1, got 0"),
        (["--policies-only", "--resume"], "--policies-only excludes --resume, --fresh"),
        (["--policies-only", "--seed=1"], "--policies-only excludes --model, --seed and --num"),
        (["--policies-only", "--model", "lstm"], "--policies-only excludes --model, --seed and"),
    ],
)
def test_bad_options_are_refused(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--run-dir", str(tmp_path)])
    assert stopped.value.code == EXIT_REFUSED
    said = capsys.readouterr().err
    assert message in said
    assert not list(tmp_path.iterdir())


def test_presets_are_the_papers():
    paper = box_world.PRESETS["paper"]
    frames = paper.train.steps * paper.train.batch_size * paper.learner.unroll
    assert frames == pytest.approx(1e9, rel=1e-5)
    assert (paper.learner.unroll, paper.learner.minibatch_envs) == (40, 32)
    assert paper.learner.gradient_steps(paper.train.batch_size) == 3
    assert paper.rmc.mem_slots * paper.rmc.num_heads * paper.rmc.head_size == 1024
    assert paper.rmc.gate_style == "memory"


def test_the_papers_optimiser_makes_the_updates_of_a_summed_loss():
    """IMPALA's constants, clipping 40 and epsilon 0.1, are for sums over 32 times 40 steps."""
    train = dataclasses.replace(box_world.PRESETS["paper"].train, schedule="constant")
    sums = dataclasses.replace(train, clip_norm=40.0, epsilon=0.1)
    rng = np.random.default_rng(0)
    for scale in (1e-4, 3e-2, 1.0):  # Below the clipping and beyond.
        updates = []
        gradients = [rng.normal(size=100).astype(np.float32) * scale / 10 for _ in range(3)]
        for config, factor in ((train, 1), (sums, 32 * 40)):
            optimizer = make_optimizer(config)
            state = optimizer.init(gradients[0])
            for gradient in gradients:
                update, state = optimizer.update(factor * gradient, state)
            updates.append(update)
        np.testing.assert_allclose(*updates, rtol=1e-5)
