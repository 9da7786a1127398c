"""Writes text: ``python -m experiments.language_model.generate RUN --prompt TEXT``."""

import argparse
import codecs
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from experiments.common.cli import exit_code
from experiments.common.interrupts import Interrupted, StopRequest
from experiments.common.refused import RefusedError
from experiments.language_model.data.corpus import read_text
from experiments.language_model.data.vocabulary import Vocabulary, encode_prompt
from experiments.language_model.sampling import Choice, Session, Writer
from experiments.language_model.saved import load
from experiments.language_model.sessions import load_session, save_session


class Decoder:
    """Incremental decoding of tokens to text, up to a stop.

    Bytes of an incomplete character are held back, and so is a possible beginning of a stop.

    Args:
      vocabulary: the vocabulary.
      stops: texts that end the output; they are not part of it.
      begun: bytes of an incomplete character that come before the tokens.
    """

    def __init__(
        self, vocabulary: Vocabulary, stops: Sequence[str] = (), begun: bytes = b""
    ) -> None:
        self._vocabulary, self._stops = vocabulary, stops
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = self._bytes.decode(begun)
        self.is_stopped = False

    @property
    def incomplete(self) -> bytes:
        """The bytes of an incomplete character that are held back."""
        return self._bytes.getstate()[0]

    def feed(self, tokens: np.ndarray, final: bool = False) -> str:
        """The text that is complete now.

        Args:
          tokens: ``[n]``, new tokens.
          final: whether they are the last ones.
        """
        if self.is_stopped:
            return ""
        self._held += self._bytes.decode(self._vocabulary.decode(tokens.tolist()), final)
        ends = [end for end in map(self._held.find, self._stops) if end >= 0]
        if ends:
            self.is_stopped = True
            return self._held[: min(ends)]
        keep = 0 if final else max(map(self._overlap, self._stops), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[-keep:] * bool(keep)
        return text

    def _overlap(self, stop: str) -> int:
        """The number of characters at the end of the held text that may begin a stop."""
        sizes = range(min(len(stop) - 1, len(self._held)), 0, -1)
        return next((size for size in sizes if self._held.endswith(stop[:size])), 0)


def generate(options: argparse.Namespace, out: TextIO, log: TextIO) -> None:
    """Writes text according to the options to `out`, and messages to `log`.

    Raises:
      RefusedError: see `_check` and the functions that read files.
      Interrupted: Ctrl-C, after the text so far is written (and saved).
    """
    choice = _check(options)
    saved = load(options.run_dir, options.run_seed)
    if options.top_k is not None and options.top_k > saved.vocabulary.size:
        raise RefusedError(f"--top-k must be at most {saved.vocabulary.size}, the vocabulary")
    prompt = read_text(options.prompt_file) if options.prompt_file else options.prompt
    try:
        tokens = encode_prompt(saved.vocabulary, prompt)
    except RefusedError as error:
        raise RefusedError(f"--prompt: {error}") from None
    writer = Writer(saved.model, saved.params, choice)
    session, begun = writer.start(saved.vocabulary.start), [b""]
    if options.load_carry:
        session, begun = load_session(options.load_carry, saved)
    if len(session.last) > 1 and options.num_samples not in (1, len(session.last)):
        raise RefusedError(
            f"--num-samples must be that of the session, {len(session.last)}, or left out"
        )
    started = time.perf_counter()
    session = writer.read(session, tokens)
    if options.num_samples > len(session.last):
        session, begun = writer.branch(session, options.num_samples), begun * options.num_samples
    np.asarray(writer.write(session, 1, options.seed)[1])  # Compiles; the result is discarded.
    ready = time.perf_counter()
    if options.echo:
        out.write(prompt)
    if len(tokens):  # A prompt does not complete a character.
        begun = [b""] * len(begun)
    decoders = [Decoder(saved.vocabulary, options.stop, one) for one in begun]
    with StopRequest() as stop:
        session, count = _write(writer, session, decoders, options, out, stop)
    seconds = time.perf_counter() - ready
    rows = len(session.last)
    print(
        f"{len(tokens)} tokens read, compiled in {ready - started:.1f} s; {count} tokens written "
        f"in {seconds:.2f} s: {rows * count / max(seconds, 1e-9):,.0f} tokens/s",
        file=log,
    )
    if options.save_carry:
        held = [decoder.incomplete for decoder in decoders]
        save_session(options.save_carry, session, held, saved)
    if stop.requested:
        raise Interrupted(f"stopped after {count} of {options.max_tokens} tokens")


def _write(
    writer: Writer,
    session: Session,
    decoders: Sequence[Decoder],
    options: argparse.Namespace,
    out: TextIO,
    stop: StopRequest,
) -> tuple[Session, int]:
    """Writes one sample incrementally, or several in parallel and prints them one by one."""
    rows = len(session.last)
    texts = [""] * rows
    count = 0
    reached = session
    for new, tokens in writer.stream(session, options.max_tokens, options.seed):
        reached = new
        count += tokens.shape[1]
        # A saved session completes the last character.
        is_last = (count == options.max_tokens or stop.requested) and not options.save_carry
        for row, decoder in enumerate(decoders):
            text = decoder.feed(tokens[row], is_last)
            if rows == 1:
                out.write(text)
                out.flush()
            texts[row] += text
        if stop.requested or all(decoder.is_stopped for decoder in decoders):
            break
    if rows == 1:
        out.write("\n")
    else:
        for row, text in enumerate(texts):
            out.write(f"--- sample {row + 1} ---\n{text}\n")
    out.flush()
    return reached, count


def _check(options: argparse.Namespace) -> Choice:
    if options.prompt and options.prompt_file:
        raise RefusedError("--prompt and --prompt-file exclude each other")
    for name in ("max_tokens", "num_samples"):
        if getattr(options, name) < 1:
            option = "--" + name.replace("_", "-")
            raise RefusedError(f"{option} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.seed < 2**32:
        raise RefusedError(f"--seed must be from 0 to 2^32 - 1, got {options.seed}")
    if "" in options.stop:
        raise RefusedError("--stop must not be empty")
    if options.stop and options.save_carry:
        raise RefusedError("--save-carry and --stop exclude each other: the carry has read beyond "
                           "the point where --stop cuts the text off")  # fmt: skip
    if options.save_carry and not options.save_carry.parent.is_dir():
        raise RefusedError(f"--save-carry: there is no folder {options.save_carry.parent}")
    if options.save_carry and options.save_carry.is_dir():
        raise RefusedError(f"--save-carry must be a file, got the folder {options.save_carry}")
    try:
        return Choice(options.temperature, options.top_k, options.top_p)
    except ValueError as error:
        raise RefusedError(f"--{str(error).replace('_', '-', 1)}") from None


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.language_model.generate",
        description="Writes text with a trained model. The same seed gives the same text.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("run_dir", metavar="RUN", type=Path, help="run directory, of one model")
    add("--prompt", default="", help="text to continue")
    add("--prompt-file", type=Path, help="file that holds it")
    add("--temperature", type=float, default=0.8, help="0: always the most likely token")
    add("--top-k", type=int, help="sample from the k most likely tokens only")
    add("--top-p", type=float, default=1.0, help="sample from the most likely share p only")
    add("--num-samples", type=int, default=1, help="texts that continue the same prompt")
    add("--max-tokens", type=int, default=500, help="tokens to write")
    add("--stop", action="append", default=[], help="text to end before; may be given repeatedly")
    add("--seed", type=int, default=0, help="seed of the sampling")
    add("--run-seed", type=int, help="which seed of the run; None: its first")
    add(
        "--load-carry",
        type=Path,
        help="continue a saved session (one row as any "
        "number of samples, several as the same number)",
    )
    add("--save-carry", type=Path, help="save the session at the end")
    add("--echo", action="store_true", help="write the prompt, too")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line, and returns the exit code."""
    options = make_parser().parse_args(args)
    try:
        return exit_code(lambda: generate(options, sys.stdout, sys.stderr))
    except BrokenPipeError:  # As with `generate ... | head`; Python flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
