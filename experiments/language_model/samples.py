"""Samples that a model writes at every evaluation in training."""

from collections.abc import Callable

from experiments.common.problem import Params
from experiments.language_model.data.vocabulary import Vocabulary
from experiments.language_model.model import LanguageModel
from experiments.language_model.sampling import Choice, Writer

LENGTHS = {"characters": 200, "bytes": 200, "words": 40, "bpe": 60}


def make_show(model: LanguageModel, vocabulary: Vocabulary) -> Callable[[Params], str]:
    """``show(params) -> text`` of a fixed seed, at temperature 0.8."""
    writer: Writer | None = None

    def show(params: Params) -> str:
        nonlocal writer
        if writer is None:  # One program for all evaluations.
            writer = Writer(model, params, Choice(temperature=0.8), LENGTHS[vocabulary.kind])
        writer.params = params
        session = writer.start(vocabulary.start)
        _, tokens = writer.write(session, LENGTHS[vocabulary.kind], seed=0)
        return vocabulary.decode(tokens[0]).decode(errors="replace")

    return show
