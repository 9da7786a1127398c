"""Writing: the same text for the same seed, however it is cut; whole characters; stops."""

import errno
import io
import json
import re
import signal
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common.records import write_json
from experiments.common.restore import PARAMS_FILE
from experiments.language_model import generate as generate_module
from experiments.language_model.data.vocabulary import Bytes, Characters
from experiments.language_model.generate import Decoder, generate, main, make_parser
from experiments.language_model.sampling import CHUNK, Choice, Session, Writer, draw
from experiments.language_model.saved import load
from experiments.language_model.sessions import load_session
from tests.experiments.language_model.small import TEXT, bytes_saved, small_saved
from tests.grids import mostly_slow

small = cache(small_saved)


def make_writer(chunk=8, saved=None, **choice) -> Writer:
    saved = saved or small()
    return Writer(saved.model, saved.params, Choice(**choice), chunk)


def written(writer: Writer, session: Session, count: int, seed: int = 0) -> list[int]:
    return writer.write(session, count, seed)[1].tolist()


@pytest.mark.slow
def test_the_same_however_it_is_cut():
    long, short = make_writer(40), make_writer(7)
    start = long.start(small().vocabulary.start)
    whole = written(long, start, 40)
    assert written(short, start, 40) == whole
    assert written(short, start, 40, seed=1) != whole
    session, first = short.write(start, 11, 0)
    _, second = short.write(session, 29, 0)
    assert [first[0].tolist() + second[0].tolist()] == whole


def test_a_prompt_is_read_like_a_text_of_its_own():
    """Step by step, over the edge of a call."""
    writer = make_writer(temperature=0.0)
    prompt = small().vocabulary.encode((TEXT * 2)[:300])
    start = writer.start(small().vocabulary.start)
    carry, tokens = small().model.initial_carry(1), [small().vocabulary.start, *prompt]
    step = jax.jit(lambda t, c: small().model.apply(small().params, t, c, method="step"))
    for token in tokens[:-1]:
        carry, _ = step(jnp.array([token]), carry)
    session = writer.read(start, prompt)
    np.testing.assert_allclose(session.carry, carry, atol=1e-5)
    assert session.last.tolist() == [prompt[-1]]
    cut = writer.read(writer.read(start, prompt[:77]), prompt[77:])
    np.testing.assert_allclose(cut.carry, carry, atol=1e-5)


def test_rows_branch_from_one_state():
    writer = make_writer()
    session = writer.read(writer.start(0), small().vocabulary.encode(TEXT[:20]))
    rows = writer.branch(session, 3)
    texts = written(writer, rows, 20)
    assert len({tuple(text) for text in texts}) == 3  # One key, but a draw for each row.
    with pytest.raises(ValueError, match="session must have one row, got 3"):
        writer.branch(rows, 2)


LOG_PROBS = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), [0.4, 0.3, 0.2, 0.1]),
        (Choice(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Choice(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Choice(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (Choice(top_p=0.1), [1, 0, 0, 0]),
        (Choice(top_k=3, top_p=0.5), [4 / 7, 3 / 7, 0, 0]),
        (Choice(temperature=0.0), [1, 0, 0, 0]),
        (Choice(top_k=9), [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_draws_have_the_distribution_asked_for(choice, expected):
    rows = jnp.broadcast_to(LOG_PROBS, (20_000, 4))
    found = np.bincount(draw(jax.random.key(0), rows, choice), minlength=4) / 20_000
    assert (found[np.array(expected) == 0] == 0).all()
    np.testing.assert_allclose(found, expected, atol=0.015)  # Four deviations.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0, got -1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0"),
    ],
)
def test_choices_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Choice(**options)


@given(st.text(max_size=30), st.lists(st.integers(1, 5), min_size=60, max_size=60))
def test_bytes_come_out_as_whole_characters(text, cuts):
    decoder, content, shown = Decoder(Bytes()), text.encode(), ""
    for cut in cuts:
        part, content = content[:cut], content[cut:]
        shown += decoder.feed(np.frombuffer(part, np.uint8), final=not content)
        assert text.startswith(shown)
        if not content:
            break
    shown += decoder.feed(np.frombuffer(content, np.uint8), final=True)
    assert shown == text


@pytest.mark.parametrize("cut", [1, 2, 3, 50])
def test_stops_end_the_text_before_them(cut):
    text = "ab\na b\n\nc"
    vocabulary = Characters(text)
    decoder = Decoder(vocabulary, ["\n\n", "xyz"])
    tokens = vocabulary.encode(text)
    shown = [decoder.feed(tokens[i : i + cut]) for i in range(0, len(tokens), cut)]
    assert "".join(shown) == "ab\na b"
    assert decoder.is_stopped
    if cut == 1:
        assert shown[2:4] == ["", "\na"]  # It might have been the stop.


def save_small(folder, saved=None):
    """As `saved.save` writes it."""
    from flax.traverse_util import flatten_dict

    from experiments.common.run_directory import open_run

    saved = saved or small()
    open_run(folder, saved.config)
    write_json(folder / "vocabulary.json", saved.vocabulary.state())
    flat = flatten_dict(saved.params, sep="/")
    np.savez(folder / PARAMS_FILE, step=np.int32(3), **flat)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small(tmp_path_factory.mktemp("saved") / "run")


def run(*args) -> str:
    out = io.StringIO()
    generate(make_parser().parse_args([str(arg) for arg in args]), out, io.StringIO())
    return out.getvalue()


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_session_goes_on_as_if_it_had_not_ended(folder, tmp_path, monkeypatch):
    options = (folder, "--seed", 5)
    whole = run(*options, "--prompt", "1 fish", "--max-tokens", 100)
    assert len(whole) == 101
    carry = tmp_path / "carry"
    first = run(*options, "--prompt", "1 fish", "--max-tokens", 37, "--save-carry", carry)
    second = run(*options, "--max-tokens", 63, "--load-carry", carry)
    assert first[:-1] + second == whole
    kept = carry.read_bytes()
    with monkeypatch.context() as full:
        full.setattr(np, "savez", raising(OSError("the disk is full")))
        with pytest.raises(OSError, match="full"):
            run(*options, "--max-tokens", 1, "--load-carry", carry, "--save-carry", carry)
    assert carry.read_bytes() == kept
    # Prompts can be read one after the other, too.
    run(*options, "--prompt", "1 ", "--max-tokens", 1, "--save-carry", carry)
    assert run(*options, "--load-carry", carry, "--max-tokens", 10) != whole[:11]


def test_many_samples_and_stops(folder):
    found = run(folder, "--num-samples", 3, "--max-tokens", 60, "--stop", "f", "--temperature", 1)
    texts = found.split("--- sample ")[1:]
    assert len(texts) == 3
    assert all("f" not in text for text in texts)
    assert run(folder, "--max-tokens", 5, "--echo", "--prompt", "2 fish").startswith("2 fish")


@pytest.mark.parametrize("rows", mostly_slow([1, 3], keep=[1]))
def test_bytes_are_shown_as_text_of_one_session_or_two(tmp_path, rows):
    """The first session ends within a character."""
    saved = bytes_saved()
    saved = saved._replace(params=jax.tree.map(np.array, saved.params))
    output = saved.params["params"]["output"]
    output["bias"][[*"é".encode()]] += 1e3  # Writes the two bytes of é, in any order.
    output["embedding"][[*"é".encode()]] = 0.0
    writer = make_writer(32, saved)
    session = writer.branch(writer.start(saved.vocabulary.start), rows)
    tokens = writer.write(session, 32, 7)[1]
    decoders = [Decoder(Bytes()) for _ in range(rows)]
    cut = 0
    while not any(decoder.incomplete for decoder in decoders):
        for decoder, row in zip(decoders, tokens, strict=True):
            decoder.feed(row[cut : cut + 1])
        cut += 1
    folder, carry = save_small(tmp_path / "bytes", saved), tmp_path / "carry"
    options = folder, "--seed", 7, "--temperature", 1, "--num-samples", rows
    first = run(*options, "--max-tokens", cut, "--save-carry", carry)
    second = run(*options, "--max-tokens", 32 - cut, "--load-carry", carry)
    halves = (re.split("--- sample . ---\n", text)[-rows:] for text in (first, second))
    found = ["".join(part[:-1] for part in parts) for parts in zip(*halves, strict=True)]
    assert found == [Decoder(Bytes()).feed(row, final=True) for row in tokens]


@pytest.mark.parametrize("rows", [1, 2])
def test_ctrl_c_writes_the_text_so_far(folder, tmp_path, monkeypatch, capsys, rows):
    stream = Writer.stream

    def interrupted(self, session, count, seed):
        for part in stream(self, session, count, seed):
            if count > 1:  # Not the call that compiles.
                signal.raise_signal(signal.SIGINT)
            yield part

    monkeypatch.setattr(Writer, "stream", interrupted)
    carry = tmp_path / "carry"
    options = ["--max-tokens", "100", "--num-samples", str(rows), "--save-carry", str(carry)]
    assert main([str(folder), *options]) == 130
    found = capsys.readouterr()
    assert f"stopped after {CHUNK} of 100 tokens" in found.err
    texts = re.split("--- sample . ---\n", found.out)[-rows:]
    assert [len(text) for text in texts] == [CHUNK + 1] * rows
    assert load_session(carry, load(folder))[0].written == CHUNK


def test_a_closed_pipe_ends_quietly(folder, monkeypatch, capfd):
    def closed(*args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(generate_module, "generate", closed)
    assert main([str(folder)]) == 0
    assert capfd.readouterr().err == ""


def test_what_cannot_be_done_is_said(folder, tmp_path, capsys):
    for args, message in [
        ((tmp_path / "none",), "there is no run in"),
        ((folder, "--max-tokens", "0"), "--max-tokens must be at least 1, got 0"),
        ((folder, "--top-k", "999"), "--top-k must be at most"),
        ((folder, "--top-p", "0"), "--top-p must be above 0"),
        ((folder, "--temperature", "-1"), "--temperature must be at least 0"),
        ((folder, "--prompt", "fish é"), "--prompt: the vocabulary of"),
        ((folder, "--prompt", "fish \udcff"), r"the prompt must be UTF-8, got 'fish \udcff'"),
        ((folder, "--prompt", "a", "--prompt-file", "b"), "exclude each other"),
        ((folder, "--stop", "a", "--save-carry", "b"), "exclude each other"),
        ((folder, "--save-carry", "none/b"), "--save-carry: there is no folder none"),
        ((folder, "--save-carry", tmp_path), "--save-carry must be a file, got the folder"),
        ((folder, "--run-seed", "1"), "holds a saved model, which has no seeds, got 1"),
        ((folder, "--load-carry", str(folder / "config.json")), "does not hold a session"),
        ((folder, "--load-carry", "nowhere"), "there is no file nowhere"),
    ]:
        assert main([str(arg) for arg in args]) == 2
        assert message in capsys.readouterr().err


def test_a_session_of_another_model_is_refused(folder, tmp_path, capsys):
    carry = tmp_path / "carry"
    run(folder, "--max-tokens", 3, "--save-carry", carry)
    other = small()._replace(params=jax.tree.map(lambda x: x + 1, small().params))
    assert main([str(save_small(tmp_path / "other", other)), "--load-carry", str(carry)]) == 2
    assert "is the session of another model" in capsys.readouterr().err


def test_parameters_of_another_config_are_refused(folder, tmp_path, capsys):
    config = json.loads((folder / "config.json").read_text())
    config["rmc"]["head_size"] = 8
    other = save_small(tmp_path / "other")
    write_json(other / "config.json", config)
    assert main([str(other)]) == 2
    assert "does not hold the parameters of the config" in capsys.readouterr().err
    content = (other / PARAMS_FILE).read_bytes()
    for size in (0, 50, len(content) - 50):
        (other / PARAMS_FILE).write_bytes(content[:size])
        assert main([str(other)]) == 2
        assert "params.npz is empty or damaged" in capsys.readouterr().err
