"""Runs of actor-critics with one core or all of them, compared with policies without learning."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common import markdown
from experiments.common.actor_critic.config import (
    MODELS,
    POLICIES,
    POLICIES_FILE,
    TITLES,
    GameConfig,
    make_agent,
    policy_lines,
)
from experiments.common.actor_critic.episode import save_episode
from experiments.common.actor_critic.evaluation import (
    Groups,
    Policy,
    no_groups,
    play,
    standard_error,
)
from experiments.common.actor_critic.problem import actor_critic, played_episodes
from experiments.common.cells import recipe
from experiments.common.environment import describe_environment
from experiments.common.plots import plot_metric
from experiments.common.problem import Problem, Score
from experiments.common.records import write_json
from experiments.common.run_directory import as_json
from experiments.common.runs import evaluate_runs, list_runs, train_runs
from rrnn_jax.envs import Environment


class Game(NamedTuple):
    """The game of an experiment.

    Attributes:
      env: the environment.
      score: the metric of agents.
      title: title of plots.
      test_episodes: number of episodes of the test.
      groups: groups of episodes in evaluations.
      easy: params of the environment for easy levels (default: its `default_params`).
      heuristic: a hand-written policy to compare with, or None.
    """

    env: Environment
    score: Score
    title: str
    test_episodes: int
    groups: Groups = no_groups
    easy: Any = None
    heuristic: Policy | None = None


def make_problem(config: GameConfig, game: Game) -> Problem:
    """The problem of the game with one agent, for the training loop."""
    agent = make_agent(config, game.env.num_actions)
    return actor_critic(
        recipe(config, config.model, config.train),
        config.learner,
        env=game.env,
        agent=agent,
        score=game.score,
        test_episodes=game.test_episodes,
        groups=game.groups,
        easy=game.easy,
    )


def policy_scores(game: Game) -> dict[str, dict[str, float]]:
    """The metrics of fresh episodes of the random policy and of the heuristic, if there is one.

    Both play `game.test_episodes` episodes on the same levels. Groups without episodes have no
    metrics.
    """
    params = game.env.default_params
    all_actions = jnp.ones((game.env.num_actions,), bool)

    def metrics(policy: Policy, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        played = play(game.env, policy, None, key, params, game.test_episodes).metrics(game.groups)
        return {name: (mean.value(), mean.count) for name, mean in played.items()}

    policies: dict[str, Policy] = {"random": lambda obs, last_action: all_actions}
    if game.heuristic is not None:
        policies["heuristic"] = game.heuristic
    found = {name: jax.jit(metrics, static_argnums=0)(policy, jax.random.key(0))
             for name, policy in policies.items()}  # fmt: skip
    return {
        policy: {name: float(value) for name, (value, count) in means.items() if count}
        for policy, means in found.items()
    }


def train(
    make_game: Callable[[Any], Game],
    config: GameConfig,
    run_dir: Path,
    *,
    resume: bool | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the models of `config.model`, see `experiments.common.runs.train_runs`."""
    game = make_game(config)
    policies = functools.cache(lambda: policy_scores(game))

    def finish(summary: Any, directory: Path, one: GameConfig, outcome: Any) -> dict[str, Any]:
        save_episode(
            directory / "plots" / "episode.gif",
            game.env,
            make_agent(one, game.env.num_actions),
            jax.tree.map(lambda x: x[0], outcome.state.params),
            title=f"{game.title}: {TITLES[one.model]}",
        )
        frames = summary["steps"] * one.train.batch_size * one.learner.unroll
        return {"frames": frames, **policies()}

    return train_runs(
        list_runs(config, MODELS, run_dir),
        run_dir,
        lambda one: make_problem(one, game),
        finish,
        lambda directories, to, _: plot(config, game, directories, to, policies()),
        resume=resume,
        progress=progress,
    )


def evaluate(make_game: Callable[[Any], Game], config: GameConfig, run_dir: Path) -> dict[str, Any]:
    """Plays both streams' episodes with the newest checkpoints; writes ``evaluation.json``."""
    game, runs = make_game(config), list_runs(config, MODELS, run_dir)
    return evaluate_runs(runs, lambda one: make_problem(one, game))


def measure_policies(config: GameConfig, game: Game, run_dir: Path) -> dict[str, Any]:
    """Plays the policies that agents are compared with; writes ``policies.json``."""
    run_dir.mkdir(parents=True, exist_ok=True)  # Before the work, if it cannot be made.
    result = {"policies": policy_scores(game)}
    settings = {name: as_json(config)[name] for name in ("preset", "task")}
    about = {"environment": describe_environment(), "config": settings}
    write_json(run_dir / POLICIES_FILE, about | result["policies"])
    return result


def plot(
    config: GameConfig,
    game: Game,
    directories: Mapping[str, Path],
    run_dir: Path,
    policies: Mapping[str, Mapping[str, float]],
) -> list[Path]:
    """Draws score, return and entropy of all models and seeds from their metrics files."""
    frames = config.train.batch_size * config.learner.unroll

    def draw(name: str, split: str, metric: str, label: str, **options: Any) -> Path:
        options |= {"title": game.title, "x_label": "frames", "y_label": label}
        path = run_dir / "plots" / f"{name}.png"
        return plot_metric(path, directories, split, metric, frames, **options)

    score = game.score
    return [
        draw("score", "valid", score.name, score.label or score.name, y_limits=score.limits,
             trivial=policy_lines(policies, score.name)),
        draw("return", "valid", "return", "mean return of fresh episodes",
             trivial=policy_lines(policies, "return")),
        draw("entropy", "train", "entropy", "entropy of the policy (nats)"),
    ]  # fmt: skip


def table(results: Mapping[str, Any], game: Game, batch_size: int) -> str:
    """The test of all models and policies as a Markdown table: return and, if any, solved share.

    Errors are standard errors over seeds, or over the episodes of a single seed, of which agents
    play whole batches.
    """
    rows: dict[str, dict[str, list[float]]] = {}
    agents = played_episodes(game.test_episodes, batch_size)
    episodes = dict.fromkeys(POLICIES.values(), game.test_episodes)
    for name, result in results.items():
        for policy, title in POLICIES.items():
            if policy in result:  # The same in all results.
                rows[title] = {metric: [value] for metric, value in result[policy].items()}
        if means := result.get("test"):
            rows[TITLES[name]] = means
    metrics = ("return", "greedy_return", "solved", "greedy_solved")
    names = [name for name in metrics if any(name in means for means in rows.values())]
    cells = [
        [title, *(_with_error(means, name, episodes.get(title, agents)) if name in means else ""
                  for name in names)]
        for title, means in rows.items()
    ]  # fmt: skip
    return markdown.table(["core", *names], cells)


def _with_error(means: Mapping[str, Any], metric: str, episodes: int) -> str:
    values = means[metric]
    mean = sum(values) / len(values)
    if len(values) > 1:
        squares = sum(value**2 for value in values) / len(values)
        error = standard_error(mean, squares, len(values))
    elif f"{metric}_squared" in means:
        error = standard_error(mean, means[f"{metric}_squared"][0], episodes)
    else:  # A share: its square's mean is itself.
        error = standard_error(mean, mean, episodes)
    return f"{mean:.3g} ± {error:.2g}"
