"""Runs of actor-critics with one core or all of them, compared with a random policy."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common import loop
from experiments.common.actor_critic.agent import Agent
from experiments.common.actor_critic.config import MODELS, TITLES, GameConfig, make_agent
from experiments.common.actor_critic.episode import save_episode
from experiments.common.actor_critic.evaluation import Groups, no_groups, play, standard_error
from experiments.common.actor_critic.problem import actor_critic
from experiments.common.cells import recipe
from experiments.common.metrics import curve, read_metrics
from experiments.common.plots import plot_curves
from experiments.common.problem import Problem, Score
from experiments.common.records import write_json
from experiments.common.run_directory import check_run, open_run, write_evaluation
from rrnn_jax.envs import Environment

RANDOM_EPISODES = 1000


class Game(NamedTuple):
    """The game of an experiment.

    Attributes:
      env: the environment.
      score: the metric of agents.
      title: title of plots.
      test_episodes: number of episodes of the test.
      groups: groups of episodes in evaluations.
      easy: params of the environment for easy levels (default: its `default_params`).
    """

    env: Environment
    score: Score
    title: str
    test_episodes: int
    groups: Groups = no_groups
    easy: Any = None


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


def random_scores(game: Game, seed: int = 0) -> dict[str, float]:
    """The metrics of 1,000 fresh episodes of a random policy."""
    nobody = Agent(game.env.num_actions)  # Its parameters are not asked for.
    run = functools.partial(play, game.env, nobody, None, episodes=RANDOM_EPISODES)

    @jax.jit
    def metrics(key: jax.Array) -> dict[str, jax.Array]:
        found = run(key, params=game.env.default_params).metrics(game.groups)
        return {name: mean.value() for name, mean in found.items()}

    return {name: float(value) for name, value in metrics(jax.random.key(seed)).items()}


def train(
    config: GameConfig,
    game: Game,
    run_dir: Path,
    *,
    resume: bool | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains the models of `config.model`, draws the plots, and returns the summary.

    One model is trained in `run_dir`, several in subdirectories with their names.

    Args:
      config: the run's config.
      game: the game.
      run_dir: the run's directory; an unfinished run resumes.
      resume: see `experiments.common.run_directory.open_run`.
      progress: whether to draw a progress bar.

    Returns:
      For each model: steps, parameters, metrics of the evaluations by seed, training time; also
      written to ``summary.json``.
    """
    configs = _configs(config)
    problems = {name: make_problem(one, game) for name, one in configs.items()}
    directories = _directories(config, run_dir)
    for name, one in configs.items():
        open_run(directories[name], one, resume)
    by_chance = random_scores(game)
    summary: dict[str, Any] = {}
    for name, one in configs.items():
        outcome = loop.train(problems[name], one.train, directories[name], name, progress)
        summary[name] = loop.summarise(outcome, one.train)
        frames = summary[name]["steps"] * one.train.batch_size * one.learner.unroll
        summary[name] |= {"frames": frames, "random": by_chance}
        plot(one, game, {name: directories[name]}, directories[name], by_chance)
        write_json(directories[name] / "summary.json", summary[name])
        save_episode(
            directories[name] / "plots" / "episode.gif",
            game.env,
            make_agent(one, game.env.num_actions),
            jax.tree.map(lambda x: x[0], outcome.state.params),
            title=f"{game.title}: {TITLES[name]}",
        )
    if len(configs) > 1:
        plot(config, game, directories, run_dir, by_chance)
        write_json(run_dir / "summary.json", summary)
    return summary


def evaluate(config: GameConfig, game: Game, run_dir: Path) -> dict[str, Any]:
    """Plays the test's episodes with the newest checkpoints; writes ``evaluation.json``."""
    result: dict[str, Any] = {}
    directories = _directories(config, run_dir)
    for name, one in _configs(config).items():
        check_run(directories[name], one)
        problem = make_problem(one, game)
        step, means = loop.evaluate_run(problem, one.train, directories[name], "test")
        result[name] = {"step": step, "seeds": list(one.train.seeds), "evaluation": means}
        write_evaluation(directories[name], result[name])
    return result


def plot(
    config: GameConfig,
    game: Game,
    directories: Mapping[str, Path],
    run_dir: Path,
    by_chance: Mapping[str, float],
) -> list[Path]:
    """Draws score, return and entropy of all models and seeds from their metrics files."""
    rows = {TITLES[name]: read_metrics(directory) for name, directory in directories.items()}
    frames = config.train.batch_size * config.learner.unroll

    def draw(name: str, split: str, metric: str, label: str, **options: Any) -> Path:
        curves = {
            title: {
                seed: ([step * frames for step in steps], values)
                for seed, (steps, values) in curve(read, split, metric).items()
            }
            for title, read in rows.items()
        }
        path = run_dir / "plots" / f"{name}.png"
        return plot_curves(
            path, curves, title=game.title, y_label=label, x_label="frames", **options
        )

    score = game.score
    return [
        draw("score", "valid", score.name, score.label or score.name, y_limits=score.limits,
             trivial=by_chance[score.name]),
        draw("return", "valid", "return", "mean return of fresh episodes",
             trivial=by_chance["return"]),
        draw("entropy", "train", "entropy", "entropy of the policy (nats)"),
    ]  # fmt: skip


def table(results: Mapping[str, Any], game: Game) -> str:
    """The test of all models as a Markdown table: the return and, if it exists, the solved share.

    Errors are standard errors over seeds, or over the episodes of a single seed.
    """
    found = {name: result.get("test", result.get("evaluation")) for name, result in results.items()}
    metrics = ("return", "greedy_return", "solved", "greedy_solved")
    names = [name for name in metrics if name in next(iter(found.values()))]
    lines = [f"| core | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for name, means in found.items():
        cells = [_with_error(means, metric, game.test_episodes) for metric in names]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def _configs(config: GameConfig) -> dict[str, GameConfig]:
    names = MODELS if config.model == "all" else (config.model,)
    return {name: dataclasses.replace(config, model=name) for name in names}


def _directories(config: GameConfig, run_dir: Path) -> dict[str, Path]:
    names = list(_configs(config))
    return {name: run_dir if len(names) == 1 else run_dir / name for name in names}
