r"""The text of programs, as tokens.

Every text is a selection from a master text. The master text of a config contains, in reading
order, all characters that a program may have:

- for every operation, the outermost first, ``x=(``;
- the first operand of the innermost;
- for every operation, the innermost first, ``ifBBB>CCCelse``, then ``for[k]x+=``, whose first
  character also stands for ``+``, ``-`` or ``*``, and ``DDD)``.

A program skips a few parts of it: an operation that is not a branch skips ``ifBBB>CCCelse``, one
that is not a loop all but the first character of ``for[k]x+=``, and a literal shorter than L its
leading digits. The place of the character at step t is t plus all that is skipped before it:

.. math:: \mathrm{place}_t = t + \sum_{g} [t \ge \mathrm{start}_g] \, \mathrm{skipped}_g

where the start of a gap is the number of characters shown before it. This takes a few vector
instructions per character and gap and one look-up per character, instead of assembling strings.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrnn_jax.tasks.characters import VOCABULARY, ZERO
from rrnn_jax.tasks.programs import Form, Programs
from rrnn_jax.typing import Array


class Gap(NamedTuple):
    """Skipped parts of the master text.

    Attributes:
      start: ``[G, B]`` int32, number of characters shown before.
      skipped: ``[G, B]`` int32, number of characters skipped.
    """

    start: Array
    skipped: Array


def write(programs: Programs, form: Form, steps: int) -> tuple[Array, Array]:
    """Tokens ``[B, T]`` int32, undefined after the ends of programs, and their lengths ``[B]``."""
    gaps, lengths = _gaps(programs, form)
    gaps = jax.lax.optimization_barrier(gaps)
    master = jax.lax.optimization_barrier(_master(programs, form).T)
    step = jax.lax.broadcasted_iota(jnp.int32, (lengths.shape[0], steps), 1)
    place = step
    for start, skipped in (pair for gap in gaps for pair in zip(*gap, strict=True)):
        place = place + jnp.where(step >= start[:, None], skipped[:, None], 0)
    place = jnp.minimum(place, master.shape[1] - 1)
    return jnp.take_along_axis(master, place, axis=1, mode="promise_in_bounds"), lengths


def _master(programs: Programs, form: Form) -> Array:
    """The master text ``[W, B]`` int32."""
    N, B = programs.operator.shape
    first, literals, times = (
        ZERO + x.astype(jnp.int32) for x in (programs.first, programs.literals, programs.times)
    )
    pieces = []
    if "if" in form.operators:
        compare = jnp.where(programs.greater, VOCABULARY.index(">"), VOCABULARY.index("<"))
        pieces += [_constant("if", (N, B)), literals[:, 0], compare[:, None], literals[:, 1]]
        pieces += [_constant("else", (N, B))]
    if form.operators != ("if",):
        pieces += [_operator_token(programs, form)[:, None]]
    if "for" in form.operators:
        pieces += [_constant("or[", (N, B)), times[:, None], _constant("]x+=", (N, B))]
    pieces += [literals[:, -1], _constant(")", (N, B))]
    suffixes = jnp.concatenate(pieces, axis=1).reshape(-1, B)
    prefix = (_prefix(form) * N)[:-1]  # No parenthesis encloses the innermost literal.
    return jnp.concatenate([_constant(prefix, (B,)), first, suffixes])


def _gaps(programs: Programs, form: Form) -> tuple[list[Gap], Array]:
    """All gaps, and the lengths ``[B]`` of the programs."""
    L = form.length
    length = programs.length[None]
    is_branch, is_loop = (_is_operator(name, programs, form) for name in ("if", "for"))
    # Before the innermost literal: "x=" of loops, and "(".
    depth = jax.lax.broadcasted_iota(jnp.int32, is_loop.shape, 0)
    whole = len(_prefix(form)) - (depth == 0).astype(jnp.int32)
    skipped = whole - jnp.where(is_loop, 2, 0) - (depth > 0).astype(jnp.int32)
    skipped = jnp.where(programs.exists, skipped, whole)
    starts, end = _running_sum((whole - skipped)[::-1], jnp.zeros_like(programs.length))
    gaps = [Gap(starts, skipped[::-1]), Gap(end[None], L - length)]
    # After it. A parenthesis closes every operation; a program ends before its last one.
    branch = jnp.where(is_branch, 7 + 2 * length, 0)
    infix_width = _infix_width(form)
    infix = jnp.where(is_branch, 0, jnp.where(is_loop, 9, 1))
    shown = branch + infix + length + 1
    starts, _ = _running_sum(shown, end + programs.length)
    lengths = jnp.max(jnp.where(programs.exists, starts + shown - 1, 0), axis=0)
    if "if" in form.operators:
        missing = jnp.where(is_branch, L - length, 0)
        gaps += [
            Gap(starts + jnp.where(is_branch, 2, 0), jnp.where(is_branch, missing, 7 + 2 * L)),
            Gap(starts + 3 + length, missing),
        ]
    gaps += [Gap(starts + branch + infix, infix_width - infix + L - length)]
    return gaps, lengths


def _prefix(form: Form) -> str:
    return "x=(" if "for" in form.operators else "("


def _infix_width(form: Form) -> int:
    if "for" in form.operators:
        return len("for[k]x+=")
    return 0 if form.operators == ("if",) else 1


def _operator_token(programs: Programs, form: Form) -> Array:
    """``[N, B]``, the first token of an operator's text."""
    token = jnp.zeros(programs.operator.shape, jnp.int32)
    for i, name in enumerate(form.operators):
        token = jnp.where(programs.operator == i, VOCABULARY.index(name[0]), token)
    return token


def _is_operator(name: str, programs: Programs, form: Form) -> Array:
    """``[N, B]`` bool."""
    if name not in form.operators:
        return jnp.zeros(programs.operator.shape, bool)
    return programs.operator == form.operators.index(name)


def _running_sum(values: Array, start: Array) -> tuple[Array, Array]:
    """Sums ``[N, B]`` of `start` ``[B]`` and all previous values, and the sum of all ``[B]``."""
    sums = [start]
    for value in values:
        sums.append(sums[-1] + value)
    return jnp.stack(sums[:-1]), sums[-1]


def _constant(text: str, shape: tuple[int, ...]) -> Array:
    """Tokens of a text, repeated to ``[N, len(text), B]`` or ``[len(text), B]``."""
    *lead, batch = shape
    tokens = jnp.array([VOCABULARY.index(character) for character in text], jnp.int32)
    return jax.lax.broadcast_in_dim(tokens, (*lead, len(text), batch), (len(lead),))
