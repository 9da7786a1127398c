"""Language models: ``python -m benchmarks.language_model [PART ...]``.

Five parts, each a few lines of JSON:

- ``train``: tokens per second of updates of the ``quick`` preset's models and, where PyTorch is
  installed, of its LSTM of the same width and of a transformer of nanoGPT's size for a CPU;
- ``softmax``: full and adaptive softmax, value and gradient, time and memory;
- ``write``: tokens per second with many tokens per call of the device, and with one, and of
  PyTorch's models with one;
- ``prompt``: time per token and memory for growing prompts, each in a process of its own;
- ``paper``: updates of the ``paper`` preset's memory core at its full size, with 250,000 words by
  Zipf's law and 4 rows instead of 384: time and memory.

Seconds are processor time of the process (all threads), medians of interleaved programs; ``prompt``
reads and writes once. On a shared machine only ratios within a run are reliable.
"""

import argparse
import dataclasses
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.options import add_shared, limit_threads_or_exit
from benchmarks.records import about
from benchmarks.timing import interleave
from experiments.common.environment import count_cores
from experiments.common.records import append_rows
from experiments.common.streaming import Window
from experiments.language_model.config import PRESETS, Config
from experiments.language_model.data.token_files import Split, Tokens
from experiments.language_model.data.vocabulary import END, Characters, Vocabulary, Words
from experiments.language_model.model import make_model
from experiments.language_model.problem import init_params, make_problem
from experiments.language_model.sampling import Choice, Session, Writer
from rrnn_jax.language import AdaptiveSoftmax, TiedEmbedding

PARTS = ("train", "softmax", "write", "prompt", "paper")
CUTOFFS = {10_000: (2_000,), 50_000: (5_000, 20_000), 250_000: (10_000, 20_000, 200_000)}
SOFTMAX_ROWS, SOFTMAX_STEPS, FEATURES = 16, 64, 256
PROMPTS = (1_000, 10_000, 100_000)
PAPER_ROWS, PAPER_WORDS = 4, 250_000
TORCH_WRITTEN = 128
_CHARACTERS = "".join(chr(code) for code in range(32, 97))

Programs = dict[str, Callable[[], Any]]
Rows = Iterator[dict[str, Any]]


def in_turns(programs: Programs, rounds: int) -> dict[str, float]:
    """Median processor seconds of each program; each runs once before."""
    runs = {n: lambda run=run: jax.block_until_ready(run()) for n, run in programs.items()}
    result = interleave(runs, rounds=rounds, warmup=1, min_seconds=0, clock=time.process_time)
    if result.interrupted:
        raise KeyboardInterrupt
    return {name: timing.median for name, timing in result.summaries().items()}


def train(rounds: int) -> Rows:
    """Updates of the quick preset's models."""
    base = PRESETS["quick"]
    batch, window = base.train.batch_size, base.text.window
    programs: Programs = {}
    sizes: dict[str, int] = {}
    for name in ("rmc", "lstm"):
        config = dataclasses.replace(base, model=name)
        programs[name], _, sizes[name] = _updates(config, Characters(_CHARACTERS))
    count = dict.fromkeys(programs, batch * window)
    for name, model in _torch_models(base).items():
        programs[name], sizes[name], count[name] = model.update, model.parameters, model.tokens
    for name, seconds in in_turns(programs, rounds).items():
        yield {"part": "train", "model": name, "parameters": sizes[name], "tokens": count[name],
               "tokens_per_second": round(count[name] / seconds)}  # fmt: skip


def softmax(rounds: int) -> Rows:
    """Value and gradient of 1,024 tokens, words by Zipf's law."""
    shape = (SOFTMAX_ROWS, SOFTMAX_STEPS)
    hidden = jax.random.normal(jax.random.key(0), (*shape, FEATURES))
    for size, cutoffs in CUTOFFS.items():
        words = _zipf(size, shape)
        modules = {
            "full": TiedEmbedding(size, FEATURES),
            "adaptive": AdaptiveSoftmax(size, FEATURES, cutoffs),
        }
        programs: Programs = {}
        memory: dict[str, Any] = {}
        for name, module in modules.items():
            variables = module.init(jax.random.key(1), hidden[:1, :1], jnp.zeros((1, 1), int))

            def loss(variables: Any, hidden: jax.Array, words: jax.Array, module=module) -> Any:
                return -jnp.mean(module.apply(variables, hidden, words))

            args = (variables, hidden, jnp.asarray(words))
            compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile()
            programs[name] = lambda c=compiled, a=args: c(*a)
            used: Any = compiled.memory_analysis()
            memory[name] = {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables)),
                "temporary_mib": round(used.temp_size_in_bytes / 2**20, 1),
            }
        seconds = in_turns(programs, rounds)
        yield {"part": "softmax", "words": size, "tokens": words.size, "features": FEATURES,
               "cutoffs": cutoffs, "seconds": {k: round(v, 4) for k, v in seconds.items()},
               "times_as_fast": round(seconds["full"] / seconds["adaptive"], 2),
               **memory}  # fmt: skip


def write(rounds: int, count: int = 512) -> Rows:
    """Writing with the quick preset's memory core."""
    programs: Programs = {}
    rows_of: dict[str, tuple[int, int]] = {}
    for rows, chunk, written in ((1, count, count), (32, count, count), (1, 32, count), (1, 1, 32)):
        writer, session = _writer(rows, chunk)
        name = f"{rows} rows, {chunk} tokens per call"
        programs[name] = lambda w=writer, s=session, n=written: w.write(s, n, 0)[1]
        rows_of[name] = rows, written
    for name, model in _torch_models(PRESETS["quick"]).items():
        programs[name], rows_of[name] = model.write, (1, TORCH_WRITTEN)
    for name, seconds in in_turns(programs, rounds).items():
        rows, written = rows_of[name]
        yield {"part": "write", "program": name,
               "tokens_per_second": round(rows * written / seconds)}  # fmt: skip


def prompt(rounds: int) -> Rows:
    """Prompts of 1,000 to 100,000 tokens, and one token after them."""
    del rounds
    for length in PROMPTS:
        # A process of its own: the peak of a process does not fall again.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
            yield processes.submit(_after_prompt, length).result()


def _after_prompt(length: int) -> dict[str, Any]:
    jax.config.update("jax_enable_compilation_cache", False)  # Compilation is part of the peak.
    writer, session = _writer(1, 32)
    tokens = np.random.default_rng(0).integers(0, 65, length)
    writer.write(writer.read(session, tokens[:300]), 32, 0)
    started = time.process_time()
    after = writer.read(session, tokens)
    jax.block_until_ready(after.carry)
    read = time.process_time() - started
    started = time.process_time()
    writer.write(after, 320, 0)
    written = time.process_time() - started
    return {"part": "prompt", "tokens": length,
            "microseconds_per_token_read": round(1e6 * read / length, 2),
            "microseconds_per_token_written": round(1e6 * written / 320, 1),
            "carry_bytes": sum(np.asarray(x).nbytes for x in jax.tree.leaves(after.carry)),
            "peak_memory_mib": peak_memory_mib()}  # fmt: skip


def peak_memory_mib() -> int:
    """The most memory that this process had."""
    status = Path("/proc/self/status")
    if not status.exists():
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    # Not getrusage's, which a new process inherits from the one that started it.
    found = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return round(int(found["VmHWM"].split()[0]) / 1024)


def paper(rounds: int) -> Rows:
    """Updates at the paper's sizes."""
    base = PRESETS["paper"]
    config = dataclasses.replace(
        base, model="rmc", train=dataclasses.replace(base.train, batch_size=PAPER_ROWS)
    )
    words = Words([END, *map(str, range(PAPER_WORDS - 1))])
    program, used, parameters = _updates(config, words)
    seconds = in_turns({"rmc": program}, rounds)["rmc"]
    tokens = PAPER_ROWS * config.text.window
    yield {"part": "paper", "model": "rmc", "parameters": parameters, "words": PAPER_WORDS,
           "tokens": tokens, "seconds_per_update": round(seconds, 2),
           "tokens_per_second": round(tokens / seconds, 1),
           "state_mib": round(used.argument_size_in_bytes / 2**20),
           "temporary_mib": round(used.temp_size_in_bytes / 2**20),
           "peak_memory_mib": peak_memory_mib()}  # fmt: skip


def _updates(config: Config, vocabulary: Vocabulary) -> tuple[Callable[[], Any], Any, int]:
    """Updates on a random text, one after the other; the memory of one; the parameters."""
    batch, window = config.train.batch_size, config.text.window
    tokens = _zipf(vocabulary.size, (1 + 4 * batch * window,))
    splits = {name: Split(name, tokens, len(tokens), len(tokens)) for name in ("train", "valid")}
    counts = np.ones(vocabulary.size, np.int64)
    problem = make_problem(config, Tokens(vocabulary, splits, counts, {}))
    assert problem.feed is not None
    data: Window = jax.tree.map(lambda x: jnp.asarray(x[0]), problem.feed(0, 1))
    key = jax.random.key(1)
    state = jax.jit(problem.init)(jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    # As in training, the old state's memory is reused.
    update = jax.jit(problem.update, donate_argnums=0).lower(state, key, data).compile()
    states = [state]
    del state

    def program() -> Any:
        new, metrics = update(states.pop(), key, data)
        states.append(new)
        return metrics

    return program, update.memory_analysis(), parameters


def _zipf(size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Words by Zipf's law."""
    chances = 1 / np.arange(1, size + 1)
    return np.random.default_rng(0).choice(size, shape, p=chances / chances.sum())


def _writer(rows: int, chunk: int) -> tuple[Writer, Session]:
    model = make_model(dataclasses.replace(PRESETS["quick"], model="rmc"), 65)
    params = init_params(model, jax.random.key(0))
    writer = Writer(model, params, Choice(temperature=0.8, top_k=20), chunk)
    return writer, writer.branch(writer.start(0), rows)


class TorchModel(NamedTuple):
    """A model of PyTorch.

    Attributes:
      parameters: number of them.
      update: an update of `tokens` tokens.
      tokens: tokens of an update.
      write: writes `TORCH_WRITTEN` tokens.
    """

    parameters: int
    update: Callable[[], Any]
    tokens: int
    write: Callable[[], Any]


def _torch_models(base: Config) -> dict[str, TorchModel]:
    """PyTorch's models by name; none without PyTorch."""
    try:
        from benchmarks import torch_text
    except ImportError:
        return {}
    lstm = torch_text.LSTM(65, base.text.embedding_size, base.lstm.lstm_features)
    transformer = torch_text.Transformer(65, 128, 4, 4, 64)
    models = {
        "torch_lstm": (lstm, base.train.batch_size, base.text.window),
        "torch_transformer": (transformer, 12, 64),
    }
    return {
        name: TorchModel(
            torch_text.count(model),
            torch_text.update(model, rows, steps),
            rows * steps,
            torch_text.write(model, TORCH_WRITTEN),
        )
        for name, (model, rows, steps) in models.items()
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.language_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("parts", nargs="*", metavar="PART", help=f"of {PARTS} (default: all)")
    add_shared(result.add_argument, rounds=7, threads=0, out=None)
    return result


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    arguments = parser()
    given = arguments.parse_args(args)
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        arguments.error(f"parts must be of {PARTS}")
    limit_threads_or_exit(arguments, given.threads)
    made = {"train": train, "softmax": softmax, "write": write, "prompt": prompt,
            "paper": paper}  # fmt: skip
    for part in given.parts or PARTS:
        for row in made[part](given.rounds):
            print(json.dumps(row), flush=True)
            if given.out is not None:
                append_rows(given.out, [about("language_model", threads=count_cores()) | row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
