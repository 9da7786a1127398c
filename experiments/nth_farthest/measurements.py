"""Measures memory and attention of a trained core on fresh sequences of Nth Farthest."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.refused import RefusedError
from experiments.nth_farthest.config import Config
from experiments.nth_farthest.model import make_model
from rrnn_jax import RNN
from rrnn_jax.tasks import nth_farthest
from rrnn_jax.visualize import (
    InputShare,
    attention_of,
    attention_share,
    captured_array,
    change_shares,
    input_share,
    memory_attention,
    reference_cases,
    reference_steps,
    share_by_lag,
    slot_movement,
    write_shares,
)
from rrnn_jax.visualize.nth_farthest import case_steps

_STREAM = 3  # Stream of the seed's key; training and evaluation use the lower ones.


class Run(NamedTuple):
    """A model's captured values on B fresh sequences, as NumPy arrays.

    Attributes:
      question: the decoded sequences.
      is_correct: ``[B]``, whether the answer is correct.
      weights: ``[B, T, blocks, H, S, S+1]``.
      memories: ``[B, T, S, F]``, after each step.
      initial: ``[S, F]``, the memory before the first step.
      input_gate: ``[B, T, S, F]`` or ``[B, T, S, 1]``; None without gates.
      forget_gate: likewise.
      without_reference: ``[B, T, S, F]``, memories if another vector replaces the reference.
      without_other: likewise for the object that is shown after it (the first one if the reference
        is last).
    """

    question: nth_farthest.Question
    is_correct: np.ndarray
    weights: np.ndarray
    memories: np.ndarray
    initial: np.ndarray
    input_gate: np.ndarray | None
    forget_gate: np.ndarray | None
    without_reference: np.ndarray
    without_other: np.ndarray

    @property
    def steps(self) -> np.ndarray:
        """The step that shows the reference, ``[B]``."""
        return reference_steps(self.question)

    @property
    def writes(self) -> np.ndarray:
        """The distribution of the reference over the slots at that step, ``[B, S]``."""
        shares = change_shares(self.memories, self.without_reference)
        return shares[np.arange(len(shares)), self.steps]

    @property
    def heads(self) -> dict[str, np.ndarray]:
        """Attention ``[B, T, S, S+1]`` of each head, in the last block."""
        return {
            f"head {h + 1}": attention_of(self.weights, head=h)
            for h in range(self.weights.shape[3])
        }


def run_model(config: Config, params: Any, seed: int, count: int) -> Run:
    """Runs a memory core on `count` fresh sequences.

    Raises:
      RefusedError: there are too few sequences to show the three cases of `reference_cases`.
    """
    model = make_model(config)
    task = nth_farthest.Config(config.task.num_objects, config.task.num_features)
    sample = jax.jit(nth_farthest.sample, static_argnums=(1, 2))
    draw, redraw = jax.random.split(jax.random.fold_in(jax.random.key(seed), _STREAM))
    batch = sample(draw, task, count)
    question = jax.device_get(nth_farthest.decode(batch.inputs, task))
    try:
        reference_cases(question)
    except ValueError as error:
        raise RefusedError(f"--sequences {count} is too few: {error}") from error
    logits = jnp.asarray(jax.jit(model.apply)(params, batch.inputs))
    core = {"params": {"cell": params["params"]["cell"]}}

    @jax.jit
    def capture(inputs: jax.Array) -> Any:
        return RNN(model.cell).apply(
            core, inputs, return_all_carries=True, mutable=["intermediates"]
        )

    (carries, _), captured = capture(batch.inputs)
    carry = model.cell.initialize_carry(jax.random.key(0), batch.inputs[0, 0].shape)
    steps = reference_steps(question)
    vectors = sample(redraw, task, count).inputs[:, 0, : task.num_features]
    replaced = [
        batch.inputs.at[np.arange(count), step, : task.num_features].set(vectors)
        for step in (steps, (steps + 1) % task.num_objects)
    ]
    gates = {
        f"{gate}_gate": None
        if config.rmc.gate_style == "none"
        else captured_array(captured, f"{gate}_gate")
        for gate in ("input", "forget")
    }
    without_reference, without_other = (_memory(capture(inputs)[0][0]) for inputs in replaced)
    return Run(
        question=question,
        is_correct=np.asarray(jnp.argmax(logits, -1) == batch.targets),
        weights=captured_array(captured, "attention_weights"),
        memories=_memory(carries),
        initial=_memory(carry),
        **gates,
        without_reference=without_reference,
        without_other=without_other,
    )


def _memory(carry: Any) -> np.ndarray:
    """The memory of a carry, without h of an output gate."""
    return np.asarray(carry[0] if isinstance(carry, tuple) else carry)


def measure(run: Run) -> dict[str, Any]:
    """Measures how the reference is written and attended to, in the last block.

    The definitions are those of `rrnn_jax.visualize`.

    Returns:
      ``accuracy`` and ``sequences``; ``written``: how evenly the reference is spread over the slots
      when it is shown, and how much the last memory changes with another vector for the reference,
      or for another object; ``memory_share``: the share of the attention to memory of the slot that
      the reference was written to, before and after it was shown, with both chance levels, in all
      sequences, by case, and by head; ``share``: the same for all attention, including the input's
      row; ``more_than_others``: the share of sequences whose slot gets more of it afterwards than
      in other sequences; ``by_lag``: `memory_share` by steps since the reference was shown;
      ``input``: the attention to the input, by step.
    """
    weights, steps = attention_of(run.weights), run.steps
    slots = run.writes.argmax(-1)
    rows = np.arange(len(steps))
    by_gate = write_shares(weights, run.input_gate)[rows, steps].argmax(-1)
    changes = [
        slot_movement(other[:, -1:], run.memories[:, -1]).sum(-1).mean()
        for other in (run.without_reference, run.without_other)
    ]
    views = {"all": weights, **run.heads}
    memory = attention_share(memory_attention(weights), slots, steps)
    seen = steps < len(weights[0]) - 1
    return {
        "accuracy": _number(run.is_correct.mean()),
        "sequences": len(steps),
        "written": {
            "largest_share": _number(run.writes.max(-1).mean()),
            "even_share": _number(1 / weights.shape[2]),
            "same_slot_by_attention_and_gate": _number((slots == by_gate).mean()),
            "change_by_reference": _number(changes[0]),
            "change_by_other_object": _number(changes[1]),
        },
        "memory_share": _by_case_and_head(
            {name: memory_attention(view) for name, view in views.items()}, slots, steps
        ),
        "share": _by_case_and_head(views, slots, steps),
        "more_than_others": _number((memory.after > memory.others_after)[seen].mean()),
        "by_lag": {
            name: {
                "lag": lags.lags.tolist(),
                "share": _list(lags.share),
                "others": _list(lags.others),
            }
            for name, view in views.items()
            for lags in [share_by_lag(memory_attention(view), slots, steps)]
        },
        "input": {name: _inputs(input_share(view, steps)) for name, view in views.items()},
    }


def _by_case_and_head(
    views: Mapping[str, np.ndarray], slots: np.ndarray, steps: np.ndarray
) -> dict[str, Any]:
    """Means of `attention_share` in all sequences, by case (mean of heads), and by head."""
    shares = {name: attention_share(view, slots, steps) for name, view in views.items()}
    cases = case_steps(views["all"].shape[1])
    means = {name: _means(share, np.ones(len(steps), bool)) for name, share in shares.items()}
    by_case = {f"seen {case}": _means(shares["all"], steps == step) for case, step in cases.items()}
    return {"all": means.pop("all"), **by_case, **means}


def _means(share: Any, where: np.ndarray) -> dict[str, float | None]:
    """Means over the chosen sequences; None if none has such a step."""
    means = {}
    for name in ("before", "after", "others_before", "others_after"):
        values = getattr(share, name)[where]
        values = values[np.isfinite(values)]
        means[name] = _number(values.mean()) if len(values) else None
    return {**means, "uniform": _number(share.uniform)}


def _inputs(share: InputShare) -> dict[str, Any]:
    names = ("before", "shown", "after")
    return {**{name: _list(getattr(share, name)) for name in names}, "uniform": share.uniform}


def _list(values: np.ndarray) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
