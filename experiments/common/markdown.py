"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], lines: Iterable[Iterable[str]]) -> str:
    """A table.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    text = ["| " + " | ".join(row) + " |" for row in (head, *lines)]
    text.insert(1, "|" + "---|" * len(head))
    return "\n".join(text)
