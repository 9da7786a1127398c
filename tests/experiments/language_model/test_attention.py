"""Attention over text: the numbers are the core's own, and the page shows them."""

import re
from functools import partial
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from experiments.common.refused import RefusedError
from experiments.language_model.attention import figure, look_inside, page
from experiments.language_model.config import RMCConfig
from experiments.language_model.data.vocabulary import Characters
from rrnn_jax.visualize import captured_array
from tests.experiments.language_model.small import TEXT, small_saved

READ = "1 fish, <&>\n"


@pytest.fixture(scope="module")
def insides():
    return look_inside(small_saved(Characters(TEXT + READ)), READ)


def test_shares_are_those_of_the_core(insides):
    """The attention of the only slot to itself and to the input sums to one."""
    assert "".join(insides.tokens) == READ
    assert list(insides.rows) == [
        *("head 1 to the input", "head 2 to the input"),
        *("written", "kept"),
    ]
    for row in insides.rows.values():
        assert row.shape == (len(READ),)
        assert ((row > 0) & (row < 1)).all()
    # Heads differ, and so do tokens.
    assert np.ptp(insides.rows["head 1 to the input"]) > 1e-3
    assert np.abs(insides.rows["head 1 to the input"] - insides.rows["head 2 to the input"]).max()


def test_each_slot_has_its_rows():
    """With the memory's rows given, so that what differs between slots is known."""
    saved = small_saved(Characters(TEXT), rmc=RMCConfig(mem_slots=2, num_heads=2, head_size=4))
    rows = look_inside(saved, "1 fish").rows
    parts = ("head 1 to the input", "head 2 to the input", "written", "kept")
    heads = [f"slot {s}, {part}" for s in (1, 2) for part in parts[:2]]
    assert list(rows) == heads + [f"slot {s}, {part}" for part in parts[2:] for s in (1, 2)]
    inputs = saved.vocabulary.encode("1 fish")[None]
    carry = saved.model.initial_carry(1)
    capture = jax.jit(partial(saved.model.apply, mutable=["intermediates"]))
    _, captured = capture(saved.params, inputs, inputs, carry)
    weights = captured_array(captured["intermediates"], "attention_weights")[0, :, 0]
    gate = captured_array(captured["intermediates"], "forget_gate")[0]
    for s in (0, 1):
        np.testing.assert_array_equal(
            rows[f"slot {s + 1}, head 2 to the input"], weights[:, 1, s, 2]
        )
        np.testing.assert_allclose(rows[f"slot {s + 1}, kept"], gate[:, s].mean(-1), rtol=1e-6)


def test_page_is_whole_and_stands_alone(insides):
    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.values, self.open = [], []

        def handle_starttag(self, tag, attrs):
            if tag == "span":
                self.values.append([float(v) for v in dict(attrs)["data-v"].split(",")])

    text = page(insides, "A <title>")
    reader = Reader()
    reader.feed(text)
    found = np.array(reader.values)
    assert found.shape == (len(READ), 5)
    np.testing.assert_allclose(found[:, 0], insides.rows["head 1 to the input"], atol=1e-3)
    assert "A &lt;title&gt;" in text
    assert "&lt;</span>" in text
    assert not re.search(r"(src|href)=", text)  # Nothing is loaded.


def test_figure_has_a_row_for_each_head_and_gate(insides):
    drawing = figure(insides, "title")
    labels = [label.get_text() for label in drawing.axes[0].get_yticklabels()]
    assert labels == list(insides.rows)


@pytest.mark.slow
def test_what_has_no_attention_is_refused():
    with pytest.raises(
        RefusedError, match="only the memory core has attention; this model is lstm"
    ):
        look_inside(small_saved(model="lstm"), "1 fish")
    with pytest.raises(RefusedError, match="--text must have 1 to 5000 tokens, got 0"):
        look_inside(small_saved(), "")
    with pytest.raises(RefusedError, match=r"--text, for which .* does not have 'é'"):
        look_inside(small_saved(), "é")
